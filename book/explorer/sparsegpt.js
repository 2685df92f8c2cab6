// SparseGPT, one column at a time, with every state on the way: minprune/methods/sparsegpt.py without its speed.

import { damped, energy, inverseFactor } from "./matrix.js";
import { DAMPING } from "./methods.js";
import { keepLargest, keepMask, roundHalfEven } from "./patterns.js";

const copy = (A) => A.map((row) => row.slice());

// The mask of the columns from `start` on, as far as it is chosen there, from the weights as they are now.
function choose(w, U, pattern, start, keep) {
  const price = (row, j) => (row[j] / U[j][j]) ** 2;
  if (pattern.group === "nm" && start % pattern.m === 0) {
    w.forEach((row, i) => {
      const group = Array.from({ length: pattern.m }, (_, k) => price(row, start + k));
      keepLargest(group, pattern.m - pattern.n).forEach((kept, k) => (keep[i][start + k] = kept));
    });
  }
  if (pattern.group === "block" && start % pattern.width === 0) {
    const width = Math.min(pattern.width, U.length - start);
    const columns = Array.from({ length: width }, (_, k) => w.map((row) => price(row, start + k)));
    const kept = keepLargest(columns.flat(), roundHalfEven(pattern.sparsity * width * w.length)); // column by column
    kept.forEach((stays, at) => (keep[at % w.length][start + Math.floor(at / w.length)] = stays));
  }
}

// States 0 to d, before the first column and after each. weights, keep (outputs, inputs): columns that are not visited
// yet count as kept, unless their block has been chosen. cost: what column j added to the bill, |E_:j|^2; billed: the sum
// so far; measured: tr(D H D^T) of the weights as they are, computed afresh. H is the damped Gram matrix.
export function sparsegptStates(W, G, pattern, damp = DAMPING) {
  const H = damped(G, damp);
  const U = inverseFactor(H);
  const w = copy(W);
  const atOnce = pattern.group === "row" || pattern.group === "layer";
  const scores = W.map((row) => row.map((x, j) => (x / U[j][j]) ** 2));
  const keep = atOnce ? keepMask(scores, pattern) : W.map((row) => row.map(() => true));
  const states = [];
  let billed = 0;
  const note = (cost, gone) => {
    billed += cost;
    const lost = W.map((row, i) => row.map((x, j) => x - w[i][j]));
    states.push({ weights: copy(w), keep: copy(keep), cost, gone, billed, measured: energy(lost, H) });
  };
  choose(w, U, pattern, 0, keep);
  note(0, 0);
  for (let q = 0; q < U.length; q++) {
    if (q) choose(w, U, pattern, q, keep);
    let [cost, gone] = [0, 0];
    w.forEach((row, i) => {
      if (keep[i][q]) return;
      const error = row[q] / U[q][q];
      for (let j = q; j < row.length; j++) row[j] -= error * U[q][j];
      row[q] = 0;
      cost += error * error;
      gone += 1;
    });
    note(cost, gone);
  }
  return states;
}
