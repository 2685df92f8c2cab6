// Magnitude, Wanda and the optimal brain surgeon for small matrices: minprune/methods/ in a few lines each.
//
// W (outputs, inputs), G the Gram matrix of the inputs. A method gives { weights, keep }; keep is true where kept.

import { damped, energy, inverseFactor, multiply, transpose } from "./matrix.js";
import { keepLargest, keepMask, roundHalfEven } from "./patterns.js";

export const DAMPING = 0.01;

export const masked = (W, keep) => W.map((row, i) => row.map((w, j) => (keep[i][j] ? w : 0)));

// tr(D G D^T) / tr(W G W^T) with D = W - V: the share of the output's energy that is lost.
export const layerError = (W, V, G) => energy(W.map((row, i) => row.map((w, j) => w - V[i][j])), G) / energy(W, G);

export function magnitude(W, G, pattern) {
  const keep = keepMask(W.map((row) => row.map(Math.abs)), pattern);
  return { weights: masked(W, keep), keep };
}

export function wanda(W, G, pattern) {
  const keep = keepMask(W.map((row) => row.map((w, j) => Math.abs(w) * Math.sqrt(G[j][j]))), pattern);
  return { weights: masked(W, keep), keep };
}

// Remove the cheapest weight of a row, let the others make up for it, and again, `steps` times.
//
// inverse: of H, for the weights still there. At most `zeros` of every `width` neighbours may go. Returns the weights,
// the mask, and for each step the column that went and by how much that raised the loss.
function operate(row, inverse, mayGo, width, zeros, steps) {
  let P = inverse;
  let w = row.slice();
  const open = mayGo.slice();
  const gone = [];
  const costs = [];
  for (let t = 0; t < steps; t++) {
    const price = w.map((x, j) => (open[j] ? (x * x) / P[j][j] : Infinity));
    const q = price.indexOf(Math.min(...price));
    if (price[q] === Infinity) break;
    const [old, pivot] = [P[q], P[q][q]];
    const share = w[q] / pivot;
    costs.push(price[q]);
    gone.push(q);
    w = w.map((x, j) => (gone.includes(j) ? 0 : x - share * old[j]));
    P = P.map((line, j) => line.map((p, l) => p - (old[j] * old[l]) / pivot));
    open[q] = false;
    const group = Math.floor(q / width);
    if (gone.filter((j) => Math.floor(j / width) === group).length === zeros) {
      for (let j = group * width; j < (group + 1) * width; j++) open[j] = false;
    }
  }
  return { weights: w, keep: w.map((_, j) => !gone.includes(j)), gone, costs };
}

const together = (rows) => ({ weights: rows.map((r) => r.weights), keep: rows.map((r) => r.keep) });

function inverseOf(G, damp) {
  const U = inverseFactor(damped(G, damp));
  return multiply(transpose(U), U);
}

// The best weights on a given mask: the weights that stay make up for those that go.
export function repaired(W, G, keep, damp = DAMPING) {
  const P = inverseOf(G, damp);
  const d = G.length;
  return together(W.map((row, i) => operate(row, P, keep[i].map((kept) => !kept), d, d, d)));
}

// Optimal brain surgeon (chapter 03): the cheapest weight first, the others making up for each.
export function obs(W, G, pattern, damp = DAMPING) {
  const P = inverseOf(G, damp);
  const d = G.length;
  const all = Array(d).fill(true);
  if (pattern.group === "block" || pattern.group === "tiles") {
    return repaired(W, G, keepMask(W.map((row) => row.map((w, j) => (w * w) / P[j][j])), pattern), damp);
  }
  if (pattern.group === "nm") {
    const { n, m } = pattern;
    return together(W.map((row) => operate(row, P, all, m, m - n, (d / m) * (m - n))));
  }
  if (pattern.group === "row") {
    const zeros = roundHalfEven(pattern.sparsity * d);
    return together(W.map((row) => operate(row, P, all, d, zeros, zeros)));
  }
  // layer: follow every row down to nothing, then take the cheapest removals of all rows. A cheap one behind a costly
  // one counts at the costly one's price, so that a row always loses its first so many.
  const rows = W.map((row) => operate(row, P, all, d, d, d));
  const prices = rows.map(({ costs }) => costs.map((_, t) => Math.max(...costs.slice(0, t + 1))));
  const later = keepLargest(prices.flat(), roundHalfEven(pattern.sparsity * W.length * d));
  const keep = rows.map(({ gone }, i) => all.map((_, j) => later[i * d + gone.indexOf(j)]));
  return repaired(W, G, keep, damp);
}
