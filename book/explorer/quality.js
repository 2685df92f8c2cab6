// The quality explorer: every run of book/results/sweep.jsonl, times dense or as perplexity, and what fits a budget.

import { legend, line, marker, path, picture, table, tag, words } from "./svg.js";

const METHODS = {
  magnitude: ["down", "Magnitude"],
  wanda: ["circle", "Wanda"],
  sparsegpt: ["diamond", "SparseGPT"],
  admm: ["cross", "ADMM"],
  best: ["hexagon", "best recipe"],
};
const TEXTS = { wikipedia: "Wikipedia", news: "news" };
const [LEFT, TOP, WIDTH, HEIGHT] = [46, 62, 386, 290]; // of the frame
const RANGE = [0.9, 60]; // times dense: what is above is drawn at the upper edge

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const percents = (pattern) => (pattern.endsWith("%") ? Number(pattern.slice(0, -1)) : 1000);

export const patternsOf = (runs) =>
  [...new Set(runs.map((run) => run.pattern))].sort((a, b) => percents(a) - percents(b) || (a < b ? -1 : 1));

// What was measured of a method at a pattern: its runs, and the mean of each number; null if there was no run.
export function cellOf(runs, method, pattern, text) {
  const here = runs.filter((run) => run.method === method && run.pattern === pattern);
  if (!here.length) return null;
  const times = here.map((run) => run.relative[text]);
  return { times, relative: mean(times), perplexity: mean(here.map((run) => run.perplexity[text])) };
}

// The highest sparsity in per cent at which a method stays within `budget` times dense, with every lower one; null if none.
export function fits(runs, method, text, budget) {
  let last = null;
  for (const pattern of patternsOf(runs).filter((name) => name.endsWith("%"))) {
    const cell = cellOf(runs, method, pattern, text);
    if (!cell || cell.relative > budget) break;
    last = pattern;
  }
  return last;
}

const readable = (value) => (value < 100 ? value.toPrecision(3) : String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, ","));
const spaced = (pattern) => pattern.replace("%", "\u00a0%");

function sentenceOf(state, runs) {
  const found = state.methods.map((method) => {
    const most = fits(runs, method, state.text, state.budget);
    return `${METHODS[method][1]} ${most ? spaced(most) : "nothing"}`;
  });
  if (!found.length) return "Choose a method.";
  return `Zeros within ${state.budget.toPrecision(3)} times the dense perplexity on ${TEXTS[state.text]}: ${found.join(", ")}.`;
}

function axes(state, data, patterns) {
  const slot = WIDTH / patterns.length;
  const x = (pattern) => LEFT + slot * (patterns.indexOf(pattern) + 0.5);
  const [low, high] = RANGE.map(Math.log);
  const y = (times) => TOP + HEIGHT * (1 - (Math.min(Math.log(times), high) - low) / (high - low));
  const unit = state.measure === "perplexity" ? data.dense[state.text] : 1;
  const marks = [1, 2, 5, 10, 20, 50].map((times) => [
    line(LEFT, y(times), LEFT + WIDTH, y(times), "axis"),
    words(LEFT - 5, y(times) + 5, readable(times * unit).replace(/\.0*$/, ""), { class: "small", "text-anchor": "end" }),
  ]);
  const names = patterns.map((pattern) =>
    words(x(pattern), TOP + HEIGHT + 18, pattern.replace("%", ""), { class: "small", "text-anchor": "middle" }),
  );
  const title = unit === 1 ? "times the dense perplexity" : "perplexity";
  return { x, y, drawn: [marks, names, words(LEFT, TOP + HEIGHT + 38, "% of weights zero, and N:M", { class: "small" }), words(8, TOP - 12, `${title} (log scale)`, { class: "small" })] };
}

function series(state, runs, method, place, patterns, { x, y }) {
  const [shape, label] = METHODS[method];
  const cells = patterns.map((pattern) => [pattern, cellOf(runs, method, pattern, state.text)]).filter(([, cell]) => cell);
  const line = cells.filter(([pattern, cell]) => pattern.endsWith("%") && cell.relative <= RANGE[1]);
  const points = cells.map(([pattern, cell]) => {
    const each = cell.times.length > 1 ? ` (runs: ${cell.times.map(readable).join(", ")})` : "";
    const above = cell.relative > RANGE[1] ? "; above the picture" : "";
    return tag(
      "g",
      {
        "data-at": `${place},${patterns.indexOf(pattern)}`,
        "data-say": `${label}, ${spaced(pattern)}: ${readable(cell.relative)} times dense${each}, perplexity ${readable(cell.perplexity)}${above}.`,
      },
      cell.relative > RANGE[1]
        ? tag("path", { d: `M${x(pattern) - 5} ${TOP - 1}h10l-5 -8Z`, class: `mark ${method}` })
        : cell.times.map((times) => marker(shape, x(pattern), y(times), `mark ${method}`)),
    );
  });
  return [line.length ? path(line.map(([pattern, cell]) => [x(pattern), y(cell.relative)]), `curve ${method}`) : "", points];
}

function tables(state, data, patterns) {
  const value = (cell) => (state.measure === "perplexity" ? cell.perplexity : cell.relative);
  const rows = state.methods.map((method) => [
    METHODS[method][1],
    ...patterns.map((pattern) => {
      const cell = cellOf(data.runs, method, pattern, state.text);
      return cell ? { text: readable(value(cell)), kind: cell.relative <= state.budget ? "fits" : "" } : "";
    }),
  ]);
  const what = state.measure === "perplexity" ? "Perplexity" : "Times the dense perplexity";
  const names = state.methods.map((method) => METHODS[method][1].toLowerCase());
  const texts = data.texts.filter(({ label }) => ["dense", "random half"].includes(label) || names.includes(label.split(" ")[0].toLowerCase()));
  return (
    table(`${what} on ${TEXTS[state.text]}, mean of the runs; in bold what fits the budget`, ["method", ...patterns.map(spaced)], rows) +
    table(`How models go on from \u201c${data.prompt}\u201d (50\u00a0% zeros or 2:4)`, ["model", { text: "text", kind: "prose" }], texts.map(({ label, text }) => [label, { text, kind: "prose" }]))
  );
}

function drawQuality(state, data) {
  const patterns = patternsOf(data.runs);
  const scale = axes(state, data, patterns);
  const sentence = sentenceOf(state, data.runs);
  return {
    sentence,
    picture: picture(
      LEFT + WIDTH + 8,
      TOP + HEIGHT + 46,
      `Perplexity against sparsity for ${state.methods.length} methods; all numbers are in the table. ${sentence}`,
      legend(state.methods.map((method) => [METHODS[method][0], method, METHODS[method][1]]), 12, 18),
      scale.drawn,
      line(LEFT, scale.y(state.budget), LEFT + WIDTH, scale.y(state.budget), "edge"),
      state.methods.map((method, place) => series(state, data.runs, method, place, patterns, scale)),
    ),
    table: tables(state, data, patterns),
  };
}

export const quality = {
  start: { methods: Object.keys(METHODS), text: "wikipedia", measure: "times", budget: 2 },
  prepare: (state) => state,
  controls: [
    {
      kind: "choice", id: "methods", label: "Methods", several: true,
      options: Object.entries(METHODS).map(([method, [, label]]) => [method, label]),
    },
    { kind: "choice", id: "text", label: "Text", options: Object.entries(TEXTS) },
    { kind: "choice", id: "measure", label: "Shown as", options: [["times", "times dense"], ["perplexity", "perplexity"]] },
    {
      kind: "slider", id: "budget", label: "Budget", min: 0, max: 1.6, step: 0.02,
      read: (state) => Math.log10(state.budget),
      write: (state, value) => ({ ...state, budget: 10 ** value }),
      show: (value) => `${(10 ** value).toPrecision(3)} times dense`,
    },
  ],
  draw: drawQuality,
};
