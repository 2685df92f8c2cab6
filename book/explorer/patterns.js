// Which weights are kept: minprune/patterns.py for small matrices. A mask is true where a weight is kept.
//
// A pattern is { group: "row" | "layer", sparsity }, { group: "block", sparsity, width } (neighbouring columns, all
// rows), { group: "nm", n, m } (n kept of m neighbours) or { group: "tiles", sparsity, size }.

// As in Python: a half goes to the even neighbour.
export function roundHalfEven(x) {
  const down = Math.floor(x);
  if (x - down !== 0.5) return Math.round(x);
  return down % 2 === 0 ? down : down + 1;
}

// Prune exactly `zeros` of a list: the lowest scores, and of equal ones the lowest index.
export function keepLargest(scores, zeros) {
  const order = scores.map((_, i) => i);
  order.sort((a, b) => (scores[a] > scores[b]) - (scores[a] < scores[b]) || a - b);
  const keep = scores.map(() => true);
  for (const i of order.slice(0, zeros)) keep[i] = false;
  return keep;
}

const keepShare = (scores, sparsity) => keepLargest(scores, roundHalfEven(sparsity * scores.length));

function fold(flat, width) {
  const rows = [];
  for (let start = 0; start < flat.length; start += width) rows.push(flat.slice(start, start + width));
  return rows;
}

function keepByGroupsOfColumns(scores, width, keepGroup) {
  const parts = [];
  for (let start = 0; start < scores[0].length; start += width) {
    parts.push(keepGroup(scores.map((row) => row.slice(start, start + width))));
  }
  return scores.map((_, i) => parts.flatMap((part) => part[i]));
}

function keepTiles(scores, size, sparsity) {
  const worth = fold(scores, size).map((band) =>
    fold(band[0].map((_, j) => band.reduce((sum, row) => sum + row[j], 0)), size).map((tile) =>
      tile.reduce((sum, column) => sum + column, 0),
    ),
  );
  const kept = fold(keepShare(worth.flat(), sparsity), worth[0].length);
  return scores.map((row, i) => row.map((_, j) => kept[Math.floor(i / size)][Math.floor(j / size)]));
}

// scores (rows, columns) -> mask (rows, columns).
export function keepMask(scores, pattern) {
  const width = scores[0].length;
  const layer = (part) => fold(keepShare(part.flat(), pattern.sparsity), part[0].length);
  switch (pattern.group) {
    case "row":
      return scores.map((row) => keepShare(row, pattern.sparsity));
    case "layer":
      return layer(scores);
    case "block":
      return keepByGroupsOfColumns(scores, Math.min(pattern.width, width), layer);
    case "nm":
      return keepByGroupsOfColumns(scores, pattern.m, (part) =>
        part.map((group) => keepLargest(group, pattern.m - pattern.n)),
      );
    case "tiles":
      return keepTiles(scores, pattern.size, pattern.sparsity);
    default:
      throw new Error(`unknown pattern ${pattern.group}`);
  }
}
