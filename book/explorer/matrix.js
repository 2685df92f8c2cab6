// Small dense matrices, as arrays of rows. Enough for a dozen inputs; no attempt to be fast.

export const zerosLike = (A) => A.map((row) => row.map(() => 0));

export const transpose = (A) => A[0].map((_, j) => A.map((row) => row[j]));

export const reversed = (A) => A.map((row) => row.slice().reverse()).reverse();

export function multiply(A, B) {
  const columns = transpose(B);
  return A.map((row) => columns.map((column) => row.reduce((sum, a, k) => sum + a * column[k], 0)));
}

// tr(D G D^T): what an error D of the weights does to the outputs, for inputs with the Gram matrix G.
export function energy(D, G) {
  const sent = multiply(D, G);
  return D.reduce((total, row, i) => total + row.reduce((sum, d, j) => sum + d * sent[i][j], 0), 0);
}

// The lower triangular L with H = L L^T, for a positive definite H.
export function cholesky(H) {
  const L = zerosLike(H);
  for (let i = 0; i < H.length; i++) {
    for (let j = 0; j <= i; j++) {
      let rest = H[i][j];
      for (let k = 0; k < j; k++) rest -= L[i][k] * L[j][k];
      L[i][j] = i === j ? Math.sqrt(rest) : rest / L[j][j];
    }
  }
  return L;
}

export function invertLower(L) {
  const R = zerosLike(L);
  for (let j = 0; j < L.length; j++) {
    R[j][j] = 1 / L[j][j];
    for (let i = j + 1; i < L.length; i++) {
      let sum = 0;
      for (let k = j; k < i; k++) sum += L[i][k] * R[k][j];
      R[i][j] = -sum / L[i][i];
    }
  }
  return R;
}

// H = G + damp * mean(diag G) * I.
export function damped(G, damp) {
  const mean = G.reduce((sum, row, j) => sum + row[j], 0) / G.length;
  return G.map((row, j) => row.map((g, l) => (j === l ? g + damp * mean : g)));
}

// The upper triangular U with H^-1 = U^T U, by one factorisation of the reversed H (chapter 04).
export const inverseFactor = (H) => reversed(invertLower(cholesky(reversed(H))));

// Numbers that look normally distributed, the same for the same seed: (rows, columns).
export function normalMatrix(rows, columns, seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0; // mulberry32
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return Array.from({ length: rows }, () => Array.from({ length: columns }, normal));
}

// The Gram matrix of inputs with these norms, any two of which have the same correlation.
export const gramOf = (norms, correlation) =>
  norms.map((a, j) => norms.map((b, l) => a * b * (j === l ? 1 : correlation)));
