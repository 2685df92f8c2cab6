// The roofline: where a product lies between bytes and arithmetic, what zeros change, and what was measured of it.

import { bitsOf, limitsOf, paysFrom, speedUp, zerosOf } from "./roof.js";
import { legend, line, marker, path, picture, table, tag, trimmed, words } from "./svg.js";

const LOOKS = {
  dense: ["square", "dense", "dense"],
  bitmask: ["diamond", "sparsegpt", "bitmask"],
  nm24: ["star", "magnitude", "2:4"],
};
const TYPES = { 32: "float32", 16: "bfloat16", 8: "int8", 4: "int4" };
const BATCHES = Array.from({ length: 10 }, (_, k) => k); // 2^k tokens: 1 to 512
const LIMITS = { reading: "reading", arithmetic: "arithmetic", expanding: "expanding" };
const [LEFT, TOP, WIDTH, HEIGHT] = [58, 84, 380, 270]; // of the frame
const [LEAST, MOST] = [0.35, 11000]; // operations a byte

const inUnits = (value, unit) => {
  const rounded = Number(value.toPrecision(3));
  const [size, letter] = [[1e15, "P"], [1e12, "T"], [1e9, "G"]].find(([least]) => rounded >= least) ?? [1e9, "G"];
  return `${(rounded / size).toPrecision(3)}\u00a0${letter}${unit}`;
};
const readable = (value) => String(value < 100 ? Number(value.toPrecision(3)) : Math.round(value));

export const productOf = ({ bits, batch }) => ({ b: bits, tokens: 2 ** batch });

export const machineOf = ({ bits, bandwidth, rate, zeros }, data) => ({
  bandwidth: data.bandwidth * 10 ** (bandwidth / 10),
  rate: data.rate * 10 ** (rate / 10),
  skips: zeros === "skip",
  expanding: zeros === "expand" ? (data.expanding[bits] ?? 0) : 0,
});

// What was measured of a format with these bits; on another bandwidth nothing was.
export const measuredOf = (format, { bits, bandwidth }, data) =>
  bandwidth ? [] : data.points.filter((point) => point.format === format && point.bits === bits);

const atSetting = (format, state, data) =>
  measuredOf(format, state, data).find(
    (point) => point.tokens === 2 ** state.batch && point.zeros === zerosOf(format, state.sparsity / 100),
  );

const weightsOf = ({ matrix: [rows, columns] }) => rows * columns;
const rateOf = (point, data) => (2 * weightsOf(data) * point.tokens) / (point.ms / 1e3);
const perByteOf = (point, data) => (2 * weightsOf(data) * point.tokens) / (1e6 * point.megabytes);

function scalesOf(lowest, highest) {
  const [low, high] = [Math.log10(lowest), Math.log10(highest)];
  const x = (perByte) => LEFT + (WIDTH * Math.log(perByte / LEAST)) / Math.log(MOST / LEAST);
  const y = (value) => TOP + HEIGHT * (1 - (Math.log10(value) - low) / (high - low));
  const steps = high - low < 2.4 ? [1, 2, 5] : [1];
  const decades = Array.from({ length: Math.ceil(high) - Math.floor(low) + 1 }, (_, k) => Math.floor(low) + k);
  const marks = decades.flatMap((k) => steps.map((step) => step * 10 ** k)).filter((v) => v >= lowest && v <= highest);
  const named = (value) => inUnits(value, "").replace(/\.?0+(?=\u00a0)/, (zeros) => (zeros.startsWith(".") ? "" : zeros));
  const drawn = [
    marks.map((value) => [
      line(LEFT, y(value), LEFT + WIDTH, y(value), "axis"),
      words(LEFT - 6, y(value) + 5, named(value), { class: "small", "text-anchor": "end" }),
    ]),
    [0.5, 2, 8, 32, 128, 512, 2048, 8192].map((value) => [
      line(x(value), TOP + HEIGHT, x(value), TOP + HEIGHT + 4, "axis strong"),
      words(x(value), TOP + HEIGHT + 19, String(value), { class: "small", "text-anchor": "middle" }),
    ]),
    line(LEFT, TOP + HEIGHT, LEFT + WIDTH, TOP + HEIGHT, "axis strong"),
    words(LEFT, TOP + HEIGHT + 39, "operations a byte (log scale)", { class: "small" }),
    words(8, 14, "operations a second, those of the dense product (log scale)", { class: "small" }),
  ];
  return { x, y, drawn };
}

// The roof of the dense product; dashed what each limit alone would allow, and `flats`, which the chosen format has of its own.
function roof({ bandwidth, rate }, flats, kind, top, { x, y }) {
  const [start, end] = [Math.max(LEAST, Math.min(rate / bandwidth, MOST)), Math.min(MOST, top / bandwidth)];
  const at = (perByte) => [x(perByte), y(Math.min(rate, perByte * bandwidth))];
  return [
    flats.map((flat) => path([[LEFT, y(flat)], [LEFT + WIDTH, y(flat)]], `curve ${kind} bound`)),
    path([[LEFT, y(rate)], [x(start), y(rate)]], "curve dense bound"),
    end > start ? path([[x(start), y(start * bandwidth)], [x(end), y(end * bandwidth)]], "curve dense bound") : "",
    path([at(LEAST), at(start), at(MOST)], "curve dense"),
  ];
}

const settingInWords = (format, s, { bits, batch }) => {
  const zeros = format === "dense" ? "" : `, ${trimmed(zerosOf(format, s))} zeros`;
  return `${LOOKS[format][2]}${zeros}, ${TYPES[bits]}, ${2 ** batch} token${batch ? "s" : ""}`;
};

function drawRoofline(state, data) {
  const [product, machine, s] = [productOf(state), machineOf(state, data), state.sparsity / 100];
  const shown = [...new Set(["dense", state.format])];
  const found = Object.fromEntries(Object.keys(LOOKS).map((format) => [format, limitsOf(format, s, product, machine)]));
  const here = found[state.format];
  const gain = (format) => speedUp(format, s, product, machine);
  const points = shown
    .flatMap((format) => measuredOf(format, state, data))
    .sort((a, b) => perByteOf(a, data) - perByteOf(b, data));
  const highest = 2 * Math.max(...shown.map((format) => found[format].allowed.arithmetic));
  const lowest = 0.7 * Math.min(LEAST * machine.bandwidth, machine.rate, ...points.map((point) => rateOf(point, data)));
  const scale = scalesOf(lowest, highest);
  const { x, y } = scale;

  const from = paysFrom(product, machine);
  const pays = from === null ? "never" : from === 0 ? "from the first zero" : `from ${trimmed(from)}`;
  const measured = (format) => atSetting(format, state, data)?.gain;
  const told = measured(state.format);
  const versus = state.format === "dense" ? "" : `, ${gain(state.format).toFixed(2)} times dense${told ? ` (measured: ${told.toFixed(2)})` : ""}`;
  const setting = settingInWords(state.format, s, state);
  const sentence =
    `${setting[0].toUpperCase()}${setting.slice(1)}: ${readable(here.perByte)} operations a byte, limited by ${LIMITS[here.bound]} ` +
    `to ${inUnits(here.most, "op/s")}${versus}. A bitmask ${from === null ? "never pays" : `pays ${pays}${from ? " zeros on" : " on"}`}.`;

  const edge = machine.rate / machine.bandwidth;
  const about = (format) =>
    `${settingInWords(format, s, state)}: ${readable(found[format].perByte)} operations a byte; ` +
    Object.entries(found[format].allowed).map(([limit, most]) => `${LIMITS[limit]} allows ${inUnits(most, "op/s")}`).join(", ") +
    `: ${gain(format).toFixed(2)} times dense.`;
  const spot = (row, place, say, ...children) => tag("g", { "data-at": `${row},${place}`, "data-say": say }, ...children);
  const marks = shown.map((format, place) =>
    spot(0, place, about(format), marker(LOOKS[format][0], x(found[format].perByte), y(found[format].most), `mark ${LOOKS[format][1]}`)),
  );
  const dots = BATCHES.map((batch) => {
    const there = limitsOf(state.format, s, { ...product, tokens: 2 ** batch }, machine);
    const against = speedUp(state.format, s, { ...product, tokens: 2 ** batch }, machine).toFixed(2);
    return spot(
      0, 2 + batch,
      `${settingInWords(state.format, s, { ...state, batch })}: ${readable(there.perByte)} operations a byte, limited by ${LIMITS[there.bound]}: ${against} times dense.`,
      tag("circle", { cx: x(there.perByte), cy: y(there.most), r: 3, class: `mark ${LOOKS[state.format][1]}` }),
    );
  });
  const hollow = points.map((point, place) => {
    const [shape, kind] = LOOKS[point.format];
    const [across, height, roofThere] = [x(perByteOf(point, data)), y(rateOf(point, data)), found[point.format].most];
    const what = settingInWords(point.format, point.zeros, { bits: point.bits, batch: Math.log2(point.tokens) });
    const against = point.format === "dense" ? "" : `, ${point.gain.toFixed(2)} times our dense product`;
    return spot(
      1, place,
      `Measured, ${what}: ${point.ms.toPrecision(3)} ms, ${inUnits(rateOf(point, data), "op/s")}${against}.`,
      point === atSetting(point.format, state, data) ? line(across, height, across, y(roofThere), `whisker ${kind}`) : "",
      marker(shape, across, height, `mark measured ${kind}`),
    );
  });
  const flats = [here.allowed.arithmetic, here.allowed.expanding].filter((flat) => flat && flat !== machine.rate);
  const limits = state.zeros === "expand" ? ["reading", "arithmetic", "expanding"] : ["reading", "arithmetic"];
  return {
    sentence,
    picture: picture(
      LEFT + WIDTH + 14,
      TOP + HEIGHT + 47,
      `Roofline: operations a second against operations a byte, for the dense product and the chosen format. ${sentence}`,
      scale.drawn,
      legend([...shown.map((format) => LOOKS[format]), ...(points.length ? [["circle", "measured dense", "measured"]] : [])], 14, 38),
      words(8, 60, `roof: ${inUnits(machine.bandwidth, "B/s")} and ${inUnits(machine.rate, "op/s")}, edge at ${readable(edge)} operations a byte`, { class: "small" }),
      roof(machine, flats, LOOKS[state.format][1], highest, scale),
      line(x(here.perByte), TOP + HEIGHT, x(here.perByte), y(here.most), "edge"),
      dots,
      hollow,
      marks,
    ),
    table: table(
      `A matrix of ${data.matrix.join(" x ")}, ${TYPES[state.bits]}, ${2 ** state.batch} token${state.batch ? "s" : ""} at once`,
      ["format", "zeros", "MB", "operations a byte", ...limits.map((limit) => `${LIMITS[limit]} allows`), "limited by", "times dense", "measured", "faster than dense"],
      Object.keys(LOOKS).map((format) => [
        LOOKS[format][2],
        trimmed(zerosOf(format, s)),
        ((bitsOf(format, s, state.bits) / 8) * (weightsOf(data) / 1e6)).toFixed(2),
        readable(found[format].perByte),
        ...limits.map((limit) => (found[format].allowed[limit] ? inUnits(found[format].allowed[limit], "op/s") : "")),
        LIMITS[found[format].bound],
        gain(format).toFixed(2),
        measured(format)?.toFixed(2) ?? "",
        { dense: "", bitmask: pays, nm24: gain("nm24") > 1 ? "yes" : "no" }[format],
      ]),
      Object.keys(LOOKS).indexOf(state.format),
    ),
  };
}

const times = (measured, unit) => (tenths, state) => inUnits(state[measured] * 10 ** (tenths / 10), unit);

export const roofline = {
  start: { sparsity: 70, bits: 32, format: "bitmask", batch: 0, zeros: "multiply", bandwidth: 0, rate: 0 },
  prepare: (state, data) => ({ ...state, itsBandwidth: data.bandwidth, itsRate: data.rate }), // the measured machine's
  controls: [
    { kind: "choice", id: "format", label: "Format", options: Object.entries(LOOKS).map(([format, [, , label]]) => [format, label]) },
    {
      kind: "slider", id: "sparsity", label: "Zeros", min: 0, max: 95, step: 1,
      show: (value) => `${value}\u00a0%`, shown: (state) => state.format === "bitmask",
    },
    { kind: "choice", id: "bits", label: "Numbers", options: [32, 16, 8, 4].map((bits) => [bits, TYPES[bits]]) },
    { kind: "slider", id: "batch", label: "Tokens at once", min: BATCHES[0], max: BATCHES[BATCHES.length - 1], step: 1, show: (value) => String(2 ** value) },
    {
      kind: "choice", id: "zeros", label: "The product",
      options: [["multiply", "multiplies zeros"], ["expand", "and expanding takes time"], ["skip", "skips zeros"]],
    },
    { kind: "slider", id: "bandwidth", label: "Memory bandwidth", min: -10, max: 25, step: 1, show: times("itsBandwidth", "B/s") },
    { kind: "slider", id: "rate", label: "Arithmetic", min: -10, max: 40, step: 1, show: times("itsRate", "op/s") },
    {
      kind: "button", label: "The measured machine",
      press: (state) => ({ ...state, bandwidth: 0, rate: 0 }), usable: (state) => state.bandwidth !== 0 || state.rate !== 0,
    },
  ],
  draw: drawRoofline,
};
