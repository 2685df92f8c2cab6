// Bytes and break-even: how much each format stores at a sparsity, and when a product could be faster for it.

import { bitmaskBits, bitmaskBreakEven, csrBits, csrBreakEven, entropyBits, fasterFrom, formatsAt, timesDense } from "./sizes.js";
import { legend, line, marker, path, picture, table, tag, trimmed, words } from "./svg.js";

const LOOKS = {
  dense: ["square", "dense", "dense"],
  bitmask: ["diamond", "sparsegpt", "bitmask"],
  csr: ["circle", "wanda", "CSR"],
  nm24: ["star", "magnitude", "2:4"],
  nm14: ["hexagon", "best", "1:4"],
};
const [LEFT, TOP, WIDTH, HEIGHT, MOST] = [52, 62, 380, 250, 1.6]; // of the frame; the axis ends at 160 % of dense

const sizeInWords = (bytes) => {
  const [unit, name] = bytes >= 1e9 ? [1e9, "GB"] : bytes >= 1e6 ? [1e6, "MB"] : [1e3, "kB"];
  return `${(bytes / unit).toPrecision(3)}\u00a0${name}`;
};

export function settingOf({ bits, index, width, work, bandwidth, rate, tokens }) {
  return [
    { b: bits, i: index, length: 2 ** width, work },
    { bandwidth: 1e9 * 10 ** bandwidth, rate: 1e9 * 10 ** rate, tokens: 2 ** tokens },
  ];
}

function frame(b) {
  const levels = [0, 0.5, 1, 1.5];
  const y = (share) => TOP + HEIGHT * (1 - Math.min(share, MOST) / MOST);
  const x = (s) => LEFT + WIDTH * s;
  const grid = levels.map((share) => [
    line(LEFT, y(share), LEFT + WIDTH, y(share), share === 1 ? "axis strong" : "axis"),
    words(LEFT - 6, y(share) + 5, `${100 * share}\u00a0%`, { class: "small", "text-anchor": "end" }),
  ]);
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((s) =>
    words(x(s), TOP + HEIGHT + 18, `${100 * s}\u00a0%`, { class: "small", "text-anchor": "middle" }),
  );
  const title = words(LEFT, TOP + HEIGHT + 38, "zeros", { class: "small" });
  return { x, y, drawn: [grid, ticks, title, words(8, 14, `size, of dense with ${b} bits a weight`, { class: "small" })] };
}

function curve(bitsAt, b, { x, y }, kind) {
  const points = Array.from({ length: 101 }, (_, k) => [k / 100, bitsAt(k / 100) / b]).filter(([, share]) => share <= MOST);
  return points.length ? path(points.map(([s, share]) => [x(s), y(share)]), `curve ${kind}`) : "";
}

function drawBytes(state) {
  const [setting, machine] = settingOf(state);
  const { b, i, length } = setting;
  const s = state.sparsity / 100;
  const formats = formatsAt(s, setting);
  const times = timesDense(s, setting, machine);
  const at = { dense: s, bitmask: s, csr: s, nm24: 0.5, nm14: 0.75 };
  const axes = frame(b);
  const name = (key) => LOOKS[key][2];
  const facts = (key) =>
    `${name(key)}, ${trimmed(at[key])} zeros: ${formats[key].bits.toFixed(2)} bits a weight, ` +
    `${trimmed(formats[key].bits / b)} of dense; predicted time ${times[key].ratio.toFixed(2)} of dense (${times[key].bound})`;
  const points = Object.keys(LOOKS).map((key, place) => {
    const share = formats[key].bits / b;
    const off = share > MOST ? [words(axes.x(at[key]) + 9, TOP + 12, "off the top", { class: "small" })] : [];
    return tag(
      "g",
      { "data-at": `0,${place}`, "data-say": `${facts(key)}.` },
      marker(LOOKS[key][0], axes.x(at[key]), axes.y(share), `mark ${LOOKS[key][1]}`),
      off,
    );
  });
  const [least] = ["dense", "bitmask", "csr"].sort((p, q) => formats[p].bits - formats[q].bits);
  const sentence =
    `At ${trimmed(s)} zeros and ${b} bits a value the smallest of dense, bitmask and CSR is ${name(least)}: ` +
    `${formats[least].bits.toFixed(2)} bits a weight, a predicted ${times[least].ratio.toFixed(2)} of the dense time.`;
  const pays = {
    dense: "",
    bitmask: `from ${trimmed(bitmaskBreakEven(b))}`,
    csr: csrBreakEven(b, i, length) < 1 ? `from ${trimmed(csrBreakEven(b, i, length))}` : "never",
    nm24: formats.nm24.bits < b ? "yes" : "no",
    nm14: formats.nm14.bits < b ? "yes" : "no",
  };
  const fast = (key) => {
    if (key === "dense") return "";
    if (key.startsWith("nm")) return times[key].ratio < 1 ? "yes" : "no";
    const from = fasterFrom(key, setting, machine);
    return from === null ? "never" : from === 0 ? "always" : `from ${trimmed(from)}`;
  };
  return {
    sentence,
    picture: picture(
      LEFT + WIDTH + 20,
      TOP + HEIGHT + 46,
      `Bits a weight against the share of zeros for each format, relative to dense. ${sentence}`,
      legend(Object.values(LOOKS), 14, 38),
      axes.drawn,
      line(axes.x(s), TOP, axes.x(s), TOP + HEIGHT, "edge"),
      curve((z) => bitmaskBits(z, b), b, axes, "sparsegpt"),
      curve((z) => csrBits(z, b, i, length), b, axes, "wanda"),
      curve((z) => entropyBits(z, b), b, axes, "bound"),
      ["dashed: the bound for", "zeros in random places"].map((text, i) =>
        words(axes.x(0.02), axes.y(0.24) + 18 * i, text, { class: "small" }),
      ),
      points,
    ),
    table: table(
      `A square matrix of ${length} x ${length}`,
      ["format", "zeros", "bits a weight", "bytes", "smaller than dense", "time, of dense", "limited by", "faster than dense"],
      Object.keys(LOOKS).map((key) => [
        name(key), trimmed(at[key]), formats[key].bits.toFixed(2), sizeInWords((formats[key].bits / 8) * length ** 2), pays[key],
        times[key].ratio.toFixed(2), times[key].bound, fast(key),
      ]),
      Object.keys(LOOKS).indexOf(least),
    ),
  };
}

const powerOfTwo = (value) => String(2 ** value);
const giga = (value, unit) => `${Number((10 ** value).toPrecision(2))}\u00a0${unit}`;

export const bytes = {
  start: { bits: 16, sparsity: 60, index: 16, width: 12, bandwidth: 1.3, rate: 2.2, tokens: 0, work: 4 },
  prepare: (state) => state,
  controls: [
    { kind: "slider", id: "sparsity", label: "Zeros", min: 0, max: 99, step: 1, show: (value) => `${value}\u00a0%` },
    {
      kind: "choice", id: "bits", label: "Bits of a value",
      options: [4, 8, 16, 32].map((value) => [value, String(value)]),
    },
    {
      kind: "choice", id: "index", label: "Bits of a CSR index",
      options: [8, 16, 32, 64].map((value) => [value, String(value)]),
    },
    { kind: "slider", id: "width", label: "Inputs of the layer", min: 8, max: 14, step: 1, show: powerOfTwo },
    { kind: "slider", id: "bandwidth", label: "Memory bandwidth", min: 0.5, max: 3.7, step: 0.1, show: (v) => giga(v, "GB/s") },
    { kind: "slider", id: "rate", label: "Arithmetic", min: 0.5, max: 6, step: 0.1, show: (v) => giga(v, "Gop/s") },
    { kind: "slider", id: "tokens", label: "Tokens at once", min: 0, max: 11, step: 1, show: powerOfTwo },
    { kind: "slider", id: "work", label: "Operations to place a value", min: 0, max: 32, step: 1, show: (value) => String(value) },
  ],
  draw: drawBytes,
};
