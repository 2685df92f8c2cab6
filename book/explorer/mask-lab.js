// The mask lab: which weights of a 12 x 12 matrix go, and what the layer loses, by magnitude, Wanda and OBS.

import { gramOf, normalMatrix } from "./matrix.js";
import { layerError, magnitude, masked, obs, repaired, wanda } from "./methods.js";
import { percent, picture, signed, squares, table, tag, words } from "./svg.js";

const SIZE = 12;
const RANK = [3, 8, 0, 11, 5, 1, 9, 6, 2, 10, 4, 7]; // of each input's norm when they are spread
const METHODS = { magnitude: ["Magnitude", magnitude], wanda: ["Wanda", wanda], obs: ["OBS", obs] };

const spreadNorms = (spread) => RANK.map((rank) => spread ** (rank / (SIZE - 1) - 0.5));

export function labPattern({ group, sparsity, kept }) {
  const share = sparsity / 100;
  return {
    row: { group: "row", sparsity: share },
    layer: { group: "layer", sparsity: share },
    block: { group: "block", sparsity: share, width: 4 },
    tiles: { group: "tiles", sparsity: share, size: 2 },
    nm: { group: "nm", n: kept, m: 4 },
  }[group];
}

// Of each method: its mask, its weights, the error of the mask alone and the error once the kept weights make up.
export function compareMethods(state) {
  const W = normalMatrix(SIZE, SIZE, state.seed);
  const G = gramOf(state.norms, state.correlation);
  const pattern = labPattern(state);
  const results = Object.entries(METHODS).map(([name, [label, method]]) => {
    const { weights, keep } = method(W, G, pattern);
    const alone = layerError(W, masked(W, keep), G);
    return { name, label, weights, keep, alone, repaired: layerError(W, repaired(W, G, keep).weights, G) };
  });
  return { W, G, results };
}

function bars(results, chosen, top) {
  const most = Math.max(1e-9, ...results.map((r) => Math.max(r.alone, r.repaired)));
  const bar = (y, share, kind, text) => [
    tag("rect", { x: 92, y, width: (175 * share) / most, height: 13, class: kind }),
    words(98 + (175 * share) / most, y + 11, `${percent(share)} ${text}`, { class: "small" }),
  ];
  return results.map((r, i) => {
    const y = top + 40 * i;
    const mark = r.name === chosen ? "chosen" : "";
    return tag(
      "g",
      { class: `bars ${mark}`, "data-at": `${SIZE + i},0`, "data-say": `${r.label}: ${errorsInWords(r)}` },
      words(86, y + 19, r.label, { class: "name", "text-anchor": "end" }),
      bar(y, r.alone, "bar hollow", "mask alone"),
      bar(y + 15, r.repaired, "bar", "repaired"),
    );
  });
}

const errorsInWords = (r) => `error of the mask alone ${percent(r.alone)}, repaired ${percent(r.repaired)}`;

function describeWeight(W, G, result, i, j) {
  const now = result.weights[i][j];
  const fate = !result.keep[i][j] ? "pruned" : now === W[i][j] ? "kept" : `kept, moved to ${signed(now)}`;
  return `Output ${i + 1}, input ${j + 1} (norm ${Math.sqrt(G[j][j]).toFixed(2)}): ${signed(W[i][j])}, ${fate}.`;
}

function drawLab(state) {
  const { W, G, results } = compareMethods(state);
  const chosen = results.find((r) => r.name === state.method);
  const [cell, left, top] = [31, 34, 62];
  const loudest = Math.max(...state.norms);
  const norms = state.norms.map((norm, j) => {
    const height = Math.max(1.5, (40 * norm) / loudest);
    return tag("rect", { x: left + j * cell + 6, y: 54 - height, width: cell - 12, height, class: "norm" });
  });
  const bottom = top + SIZE * cell;
  const kept = chosen.keep.flat().filter(Boolean).length;
  const error = state.method === "obs" ? chosen.repaired : chosen.alone;
  const sentence =
    `${chosen.label}: ${kept} of ${SIZE * SIZE} weights stay, and the layer loses ${percent(error)} ` +
    `of its output's energy${state.method === "obs" ? " after the repair" : ""}.`;
  const about = `A 12 by 12 matrix of weights with a bar for each input's norm above it. ${sentence}`;
  return {
    sentence,
    picture: picture(
      left + SIZE * cell + 8,
      bottom + 140,
      about,
      words(left, 10, "norms of the inputs", { class: "small" }),
      norms,
      tag("text", { x: 0, y: 0, class: "small", transform: `translate(22 ${top + 210}) rotate(-90)` }, "outputs"),
      squares({
        now: chosen.weights,
        before: W,
        keep: chosen.keep,
        cell,
        left,
        top,
        say: (i, j) => describeWeight(W, G, chosen, i, j),
      }),
      bars(results, state.method, bottom + 18),
    ),
    table: table(
      "Error of the layer with these zeros",
      ["mask chosen by", "weights kept", "mask alone", "kept weights make up"],
      results.map((r) => [r.label, r.keep.flat().filter(Boolean).length, percent(r.alone), percent(r.repaired)]),
      results.indexOf(chosen),
    ),
  };
}

const logOf = (norm) => Math.round(10 * Math.log10(norm)) / 10;

export const maskLab = {
  start: { method: "magnitude", group: "row", sparsity: 50, kept: 2, spread: 10, correlation: 0.5, seed: 1 },
  prepare: (state) => ({ ...state, norms: spreadNorms(state.spread) }),
  controls: [
    { kind: "choice", id: "method", label: "Method", options: Object.entries(METHODS).map(([k, [label]]) => [k, label]) },
    {
      kind: "choice",
      id: "group",
      label: "Weights are compared",
      options: [
        ["row", "within each row"],
        ["layer", "over the layer"],
        ["block", "in blocks of 4 columns"],
        ["nm", "in fours (N:M)"],
        ["tiles", "as tiles of 2 x 2"],
      ],
    },
    {
      kind: "slider", id: "sparsity", label: "Sparsity", min: 0, max: 100, step: 1,
      show: (value) => `${value}\u00a0%`, shown: (state) => state.group !== "nm",
    },
    {
      kind: "slider", id: "kept", label: "Kept of every four", min: 0, max: 4, step: 1,
      show: (value) => `${value}:4`, shown: (state) => state.group === "nm",
    },
    {
      kind: "slider", id: "spread", label: "Loudest input", min: 0, max: 2, step: 0.1,
      read: (state) => logOf(state.spread),
      write: (state, value) => ({ ...state, spread: 10 ** value, norms: spreadNorms(10 ** value) }),
      show: (value) => `${(10 ** value).toPrecision(2)} times the quietest`,
    },
    {
      kind: "slider", id: "correlation", label: "Correlation of any two inputs", min: 0, max: 0.95, step: 0.05,
      show: (value) => value.toFixed(2),
    },
    {
      kind: "fold",
      label: "The norm of each input",
      controls: RANK.map((_, j) => ({
        kind: "slider", id: `norm${j + 1}`, label: `Input ${j + 1}`, min: -1, max: 1, step: 0.1,
        read: (state) => logOf(state.norms[j]),
        write: (state, value) => ({ ...state, norms: state.norms.map((n, l) => (l === j ? 10 ** value : n)) }),
        show: (value) => (10 ** value).toPrecision(2),
      })),
    },
    { kind: "button", label: "Another matrix", press: (state) => ({ ...state, seed: state.seed + 1 }) },
  ],
  draw: drawLab,
};
