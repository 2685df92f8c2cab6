// What to do with a budget: every way of book/results/atlas.json, bytes against what it costs, and the best that fits.

import { legend, line, marker, path, picture, signed, table, tag, words } from "./svg.js";

const KINDS = {
  dense: ["square", "dense", "dense"],
  rounded: ["circle", "wanda", "rounded"],
  zeros: ["diamond", "sparsegpt", "zeros"],
  smaller: ["down", "magnitude", "smaller"],
  both: ["hexagon", "best", "two of these"],
  thin: ["cross", "admm", "low rank"],
};
const MEASURES = { loss: ["loss", "error"], kl: ["kl", "kl_error"] };
const NAMES = { loss: "loss", kl: "divergence" };
const [LEFT, TOP, WIDTH, HEIGHT] = [40, 80, 392, 290]; // of the frame
const [LEAST, MOST, HIGHEST] = [80, 275, 2.5]; // MB, MB, nats: what costs more is drawn at the upper edge

const METHODS = { sparsegpt: "SparseGPT", admm: "ADMM", best: "best recipe", gptq: "GPTQ", rtn: "RTN" };
const spaced = (text) => text.replace("%", "\u00a0%");
const megabytes = (cell) => cell.bytes / 1e6;

export function kindOf({ steps }) {
  if (!steps.length) return "dense";
  if (steps.length > 1 || steps[0].split(" ").length > 3) return "both"; // the last: zeros and rounding in one sweep
  return { quantize: "rounded", prune: "zeros", shrink: "smaller", "low-rank": "thin" }[steps[0].split(" ")[0]];
}

function stepInWords(step) {
  const [verb, what, amount, zeros] = step.split(" ");
  if (verb === "prune") return `${METHODS[what]} ${spaced(amount)}`;
  if (verb === "quantize") return `${METHODS[what]} ${amount} bits${zeros ? ` with ${spaced(zeros)} zeros, joint` : ""}`;
  if (verb === "low-rank") return `low rank, ${spaced(what)} of the numbers`;
  const [part, share] = what.split(":");
  const one = { neurons: "neurons", blocks: share === "1" ? "block" : "blocks", hidden: "channels" }[part];
  return `${spaced(share)} of the ${part === "blocks" ? "30 " : ""}${one} removed`.replace("1 of the 30 block ", "1 of the 30 blocks ");
}

export const nameOf = ({ steps }) => steps.map(stepInWords).join(", then ") || "dense, 16 bits";

// Those that no other way beats in bytes and in cost at once, the fewest bytes first.
export function frontier(cells, measure) {
  const cost = (cell) => cell[MEASURES[measure][0]];
  const sorted = [...cells].sort((a, b) => a.bytes - b.bytes || cost(a) - cost(b));
  const found = [];
  for (const cell of sorted) if (!found.length || cost(cell) < cost(found[found.length - 1])) found.push(cell);
  return found;
}

// What costs least of what takes at most so many megabytes; null if nothing does.
export function bestWithin(cells, budget, measure) {
  const [best] = frontier(cells.filter((cell) => megabytes(cell) <= budget), measure).reverse();
  return best ?? null;
}

const shownOf = (state, cells) => cells.filter((cell) => state.kinds.includes(kindOf(cell)));
const nats = (cell, measure) => {
  const [cost, error] = MEASURES[measure].map((name) => cell[name]);
  return `${signed(Math.abs(cost) < 5e-4 ? 0 : cost, 3)}\u00a0±\u00a0${error.toFixed(3)}`;
};

function sentenceOf(state, cells) {
  const found = bestWithin(cells, state.budget, state.measure);
  const budget = `Within ${state.budget}\u00a0MB`;
  if (!found) return `${budget}: none of these ways.`;
  const times = state.measure === "loss" ? `, ${Math.exp(found.loss).toFixed(2)} times the dense perplexity` : "";
  return `${budget}: ${nameOf(found)}, ${megabytes(found).toFixed(0)}\u00a0MB, ${NAMES[state.measure]} ${nats(found, state.measure)} nats${times}.`;
}

const x = (value) => LEFT + (WIDTH * (value - LEAST)) / (MOST - LEAST);
const y = (value) => TOP + HEIGHT * (1 - Math.max(0, Math.min(value, HIGHEST)) / HIGHEST);

function axes(measure) {
  const title = measure === "loss" ? "nats a token more than dense" : "divergence from dense, nats a token";
  return [
    [0, 0.5, 1, 1.5, 2, 2.5].map((value) => [
      line(LEFT, y(value), LEFT + WIDTH, y(value), value ? "axis" : "axis strong"),
      words(LEFT - 6, y(value) + 5, String(value), { class: "small", "text-anchor": "end" }),
    ]),
    [100, 150, 200, 250].map((value) => words(x(value), TOP + HEIGHT + 18, String(value), { class: "small", "text-anchor": "middle" })),
    words(LEFT, TOP + HEIGHT + 38, "megabytes on disk", { class: "small" }),
    words(8, TOP - 12, title, { class: "small" }),
  ];
}

// The frontier as a staircase: with so many bytes one has the cost of the last way that fits.
function staircase(cells, measure) {
  const corners = frontier(cells, measure).flatMap((cell, i, all) => {
    const [across, cost] = [x(megabytes(cell)), y(cell[MEASURES[measure][0]])];
    return i ? [[across, y(all[i - 1][MEASURES[measure][0]])], [across, cost]] : [[across, cost]];
  });
  return corners.length ? path(corners, "curve dense") : "";
}

function point(cell, place, measure) {
  const [shape, kind] = KINDS[kindOf(cell)];
  const [cost, error] = MEASURES[measure].map((name) => cell[name]);
  const [across, beyond] = [x(megabytes(cell)), cost > HIGHEST];
  return tag(
    "g",
    {
      "data-at": `0,${place}`,
      "data-say": `${nameOf(cell)}: ${megabytes(cell).toFixed(1)} MB, ${NAMES[measure]} ${nats(cell, measure)} nats${beyond ? "; above the picture" : ""}.`,
    },
    beyond
      ? tag("path", { d: `M${across - 5} ${TOP - 1}h10l-5 -8Z`, class: `mark ${kind}` })
      : [line(across, y(cost - error), across, y(cost + error), `whisker ${kind}`), marker(shape, across, y(cost), `mark ${kind}`)],
  );
}

function drawBudget(state, data) {
  const cells = shownOf(state, data).sort((a, b) => a.bytes - b.bytes || a.loss - b.loss);
  const found = bestWithin(cells, state.budget, state.measure);
  const best = frontier(cells, state.measure);
  const sentence = sentenceOf(state, cells);
  const share = (score) => (score ? `${(100 * score.value).toFixed(0)}\u00a0±\u00a0${(100 * score.error).toFixed(0)}\u00a0%` : "");
  const fits = (cell) => (megabytes(cell) <= state.budget ? "fits" : "");
  const kinds = Object.values(KINDS);
  return {
    sentence,
    picture: picture(
      LEFT + WIDTH + 10,
      TOP + HEIGHT + 46,
      `What ${cells.length} ways to make SmolLM2 smaller cost, against their megabytes; all numbers are in the table. ${sentence}`,
      legend(kinds.slice(0, 4), 12, 18),
      legend(kinds.slice(4), 12, 40),
      axes(state.measure),
      line(x(state.budget), TOP, x(state.budget), TOP + HEIGHT, "edge"),
      staircase(cells, state.measure),
      cells.map((cell, place) => point(cell, place, state.measure)),
    ),
    table: table(
      "Every way, the smallest first; in bold what fits the budget, * what nothing smaller beats",
      ["way", "MB", "loss, nats", "divergence, nats", "last word", "pairs", "tokens a second"],
      cells.map((cell) => [
        `${nameOf(cell)}${best.includes(cell) ? " *" : ""}`,
        { text: megabytes(cell).toFixed(1), kind: fits(cell) },
        { text: nats(cell, "loss"), kind: fits(cell) },
        nats(cell, "kl"), share(cell.last_word), share(cell.pairs), cell.tokens_per_second?.toFixed(1) ?? "",
      ]),
      found ? cells.indexOf(found) : -1,
    ),
  };
}

export const budget = {
  start: { budget: 120, kinds: Object.keys(KINDS), measure: "loss" },
  prepare: (state) => state,
  controls: [
    { kind: "slider", id: "budget", label: "Budget", min: LEAST, max: MOST - 5, step: 1, show: (value) => `${value}\u00a0MB` },
    {
      kind: "choice", id: "kinds", label: "Ways", several: true,
      options: Object.entries(KINDS).map(([kind, [, , label]]) => [kind, label]),
    },
    { kind: "choice", id: "measure", label: "What it costs", options: [["loss", "loss"], ["kl", "divergence"]] },
  ],
  draw: drawBudget,
};
