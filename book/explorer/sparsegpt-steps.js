// SparseGPT as a film: each frame is one column visited, what it cost, and how the weights behind it made up for it.

import { gramOf, normalMatrix } from "./matrix.js";
import { layerError } from "./methods.js";
import { sparsegptStates } from "./sparsegpt.js";
import { line, percent, picture, signed, squares, table, tag, words } from "./svg.js";

const [OUTPUTS, INPUTS] = [6, 12];
const LOUDNESS = [1.3, 0.7, 1, 1.6, 0.8, 1.2, 0.6, 1, 1.5, 0.9, 1.1, 0.8]; // the norms of the inputs

export const stepsPattern = (group) =>
  ({
    block: { group: "block", sparsity: 0.5, width: 4 },
    row: { group: "row", sparsity: 0.5 },
    nm: { group: "nm", n: 2, m: 4 },
  })[group];

export function film(state) {
  const W = normalMatrix(OUTPUTS, INPUTS, state.seed);
  const G = gramOf(LOUDNESS, state.correlation);
  return { W, G, states: sparsegptStates(W, G, stepsPattern(state.group)) };
}

function sentenceOf(states, column, error) {
  if (column === 0) return "Nothing is pruned yet: press Step, and column 1 is visited.";
  const { gone, cost } = states[column];
  const [goes, costs] = gone === 1 ? ["1 weight goes", "costs"] : [`${gone || "no"} weights go`, "cost"];
  const price = gone ? ` and ${costs} ${cost.toFixed(3)}` : "";
  const end = column === INPUTS ? ", and that was the last" : "";
  return `Column ${column} is settled: ${goes}${price}${end}. Layer error so far: ${percent(error)}.`;
}

// One bar a column: its cost, drawn under the column itself. Columns still to come have none.
function bill(states, column, cell, left, top) {
  const most = Math.max(...states.map((s) => s.cost), 1e-9);
  const bars = states.slice(1, column + 1).map((s, j) => {
    const height = (60 * s.cost) / most;
    return tag(
      "g",
      {
        class: `bars ${j + 1 === column ? "chosen" : ""}`,
        "data-at": `${OUTPUTS},${j}`,
        "data-say": `Column ${j + 1}: ${s.gone} pruned, cost ${s.cost.toFixed(4)}; the bill so far ${s.billed.toFixed(4)}.`,
      },
      tag("rect", { x: left + j * cell + 5, y: top, width: cell - 10, height: Math.max(height, 1), class: "bar" }),
    );
  });
  return [words(left, top - 5, "the bill: what each column cost", { class: "small" }), bars];
}

function drawSteps(state) {
  const { W, G, states } = film(state);
  const { column } = state;
  const now = states[column];
  const before = states[Math.max(0, column - 1)];
  const error = layerError(W, now.weights, G);
  const [cell, left, top] = [34, 14, 26];
  const moved = (i, j) => (j >= column ? now.weights[i][j] - before.weights[i][j] : 0);
  const most = Math.max(1e-9, ...W.flatMap((row, i) => row.map((_, j) => Math.abs(moved(i, j)))));
  const tint = now.weights.map((row, i) =>
    row.map((_, j) =>
      tag("rect", {
        x: left + j * cell, y: top + i * cell, width: cell, height: cell,
        class: "moved", opacity: (0.45 * Math.abs(moved(i, j))) / most,
      }),
    ),
  );
  // A weight that has been chosen to go but whose column is still to come is there all the same.
  const visible = now.keep.map((row) => row.map((kept, j) => kept || j >= column));
  const edge = left + column * cell;
  const bottom = top + OUTPUTS * cell;
  const sentence = sentenceOf(states, column, error);
  const say = (i, j) => {
    const w = now.weights[i][j];
    if (!visible[i][j]) return `Output ${i + 1}, input ${j + 1}: was ${signed(W[i][j])}, pruned.`;
    const change = moved(i, j) ? `, ${signed(moved(i, j), 3)} of it in this step` : "";
    const fate = j < column ? "settled" : now.keep[i][j] ? "still to come" : "still to come, chosen to go";
    return `Output ${i + 1}, input ${j + 1}: ${signed(W[i][j])} at first, now ${signed(w)}${change}; ${fate}.`;
  };
  return {
    sentence,
    picture: picture(
      left + INPUTS * cell + 14,
      bottom + 132,
      `A matrix of ${OUTPUTS} outputs and ${INPUTS} inputs after ${column} of ${INPUTS} columns, and the cost of each column. ${sentence}`,
      words(left, 16, column ? "settled" : "", { class: "small" }),
      words(left + INPUTS * cell, 16, column < INPUTS ? "still to come" : "", { class: "small", "text-anchor": "end" }),
      tint,
      squares({
        now: now.weights, before: W, keep: visible, cell, left, top, say,
        kind: (i, j) => (now.keep[i][j] ? "" : "doomed"),
      }),
      line(edge, top - 6, edge, bottom + 6, "edge"),
      bill(states, column, cell, left, bottom + 38),
      words(left, bottom + 122, `sum of the costs ${now.billed.toFixed(4)}, error computed afresh ${now.measured.toFixed(4)}`),
    ),
    table: table(
      "The bill adds up: costs, their sum, and the error computed afresh",
      ["column", "pruned", "cost", "sum", "afresh"],
      states.slice(1).map((s, j) => [j + 1, s.gone, ...[s.cost, s.billed, s.measured].map((x) => x.toFixed(4))]),
      column - 1,
    ),
  };
}

const go = (by) => (state) => ({ ...state, column: Math.min(INPUTS, Math.max(0, state.column + by)) });

export const sparsegptSteps = {
  start: { column: 5, group: "block", correlation: 0.7, seed: 4 },
  prepare: (state) => state,
  controls: [
    {
      kind: "row",
      controls: [
        { kind: "button", label: "Back", press: go(-1), usable: (state) => state.column > 0 },
        { kind: "button", label: "Step", press: go(1), usable: (state) => state.column < INPUTS },
        { kind: "play", id: "column", label: "Play", max: INPUTS, every: 1100 },
      ],
    },
    { kind: "slider", id: "column", label: "Columns visited", min: 0, max: INPUTS, step: 1, show: (v) => `${v} of ${INPUTS}` },
    {
      kind: "choice", id: "group", label: "The mask is chosen",
      options: [
        ["block", "in blocks of 4 columns, all rows (50 %)"],
        ["nm", "two of every four (2:4)"],
        ["row", "once, at the start, in each row (50 %)"],
      ],
    },
    {
      kind: "slider", id: "correlation", label: "Correlation of any two inputs", min: 0, max: 0.95, step: 0.05,
      show: (value) => value.toFixed(2),
    },
    { kind: "button", label: "Another matrix", press: (state) => ({ ...state, seed: state.seed + 1 }) },
  ],
  draw: drawSteps,
};
