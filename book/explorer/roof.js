// The roofline of a product with a sparse matrix: what bytes and arithmetic allow, and from how many zeros on they pay.
//
// Every rate counts the operations of the dense product, two for each weight and token, whatever the zeros. So a product
// at twice the rate takes half the time. s: the share of zeros; b: bits of a value; tokens: at once.
// machine: `bandwidth` in bytes a second, `rate` in operations a second; `skips`: no zero is multiplied; `expanding`:
// seconds that a weight of a bitmask, stored or not, takes to be put in its place.

import { bitmaskBits, nmBits } from "./sizes.js";

export const bitsOf = (format, s, b) => ({ dense: b, bitmask: bitmaskBits(s, b), nm24: nmBits(2, 4, b) })[format];
export const zerosOf = (format, s) => ({ dense: 0, bitmask: s, nm24: 0.5 })[format];

// Operations for each byte that is read, the most operations a second by each limit, and the limit that decides.
export function limitsOf(format, s, { b, tokens }, { bandwidth, rate, skips, expanding }) {
  const perByte = (2 * tokens) / (bitsOf(format, s, b) / 8);
  const allowed = {
    reading: perByte * bandwidth,
    arithmetic: skips ? rate / (1 - zerosOf(format, s)) : rate,
    ...(format === "bitmask" && expanding ? { expanding: (2 * tokens) / expanding } : {}),
  };
  const [bound, most] = Object.entries(allowed).reduce((low, other) => (other[1] < low[1] ? other : low));
  return { perByte, allowed, bound, most };
}

export const speedUp = (format, s, product, machine) =>
  limitsOf(format, s, product, machine).most / limitsOf("dense", s, product, machine).most;

// The sparsity above which a bitmask is faster than dense; null if none is enough.
//
// Zeros shorten the reading, and the arithmetic if they are skipped. What they cannot shorten must take less time than
// the dense product does; then the bits that are left, (1 - s) b + 1, must be read within that time.
export function paysFrom({ b, tokens }, { bandwidth, rate, skips, expanding }) {
  const working = (2 * tokens) / rate;
  const dense = Math.max(b / 8 / bandwidth, working); // seconds a weight
  if (Math.max(skips ? 0 : working, expanding) >= dense) return null;
  return Math.max(0, 1 + 1 / b - (8 * bandwidth * dense) / b);
}
