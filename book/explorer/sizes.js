// Bits per weight of every format, as minprune/formats/sizes.py has them, and the time that a product would take.
//
// s: the share of zeros; b: bits of a value; i: bits of an index; length: weights in a line of the matrix.

export const POINTER = 32;

export const csrBits = (s, b, i, length) => (1 - s) * (b + i) + POINTER / length;
export const bitmaskBits = (s, b) => (1 - s) * b + 1;
export const nmBits = (n, m, b) => (n / m) * (b + Math.ceil(Math.log2(m)));
export const csrBreakEven = (b, i, length) => (i + POINTER / length) / (b + i);
export const bitmaskBreakEven = (b) => 1 / b;

// No format can store zeros in random places in fewer bits, on average (Shannon 1948).
export function entropyBits(s, b) {
  const shares = [s, 1 - s].filter((share) => share > 0);
  return (1 - s) * b - shares.reduce((sum, share) => sum + share * Math.log2(share), 0);
}

// Seconds a weight takes in a product with `tokens` inputs at once, on a machine that reads `bandwidth` bytes and does
// `rate` operations a second, both at the same time: the slower of the two decides.
//
// Of each weight a format reads bits / 8 bytes and multiplies `stored` of it, two operations a token; `finding` more
// operations say where the values belong.
export function secondsPerWeight({ bits, stored, finding }, { bandwidth, rate, tokens }) {
  const reading = bits / 8 / bandwidth;
  const working = (2 * tokens * stored + finding) / rate;
  return { seconds: Math.max(reading, working), bound: reading >= working ? "reading" : "arithmetic" };
}

// What each format stores at sparsity s. `work`: operations to find the place of a value from its index or its code; the
// bitmask takes them for every weight, stored or not, since it must look at every bit.
export function formatsAt(s, { b, i, length, work }) {
  return {
    dense: { bits: b, stored: 1, finding: 0 },
    bitmask: { bits: bitmaskBits(s, b), stored: 1 - s, finding: work },
    csr: { bits: csrBits(s, b, i, length), stored: 1 - s, finding: (1 - s) * work },
    nm24: { bits: nmBits(2, 4, b), stored: 0.5, finding: 0.5 * work },
    nm14: { bits: nmBits(1, 4, b), stored: 0.25, finding: 0.25 * work },
  };
}

// The time of each format relative to the dense matrix on the same machine.
export function timesDense(s, setting, machine) {
  const formats = formatsAt(s, setting);
  const dense = secondsPerWeight(formats.dense, machine).seconds;
  return Object.fromEntries(
    Object.entries(formats).map(([name, format]) => {
      const { seconds, bound } = secondsPerWeight(format, machine);
      return [name, { ratio: seconds / dense, bound }];
    }),
  );
}

// The smallest sparsity, to a tenth of a per cent, at which a format is faster than dense; null if there is none.
export function fasterFrom(name, setting, machine) {
  for (let step = 0; step < 1000; step++) {
    if (timesDense(step / 1000, setting, machine)[name].ratio < 1) return step / 1000;
  }
  return null;
}
