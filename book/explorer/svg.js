// Pictures as text: the same code draws on the page and, when the book is built, the picture that needs no script.

export const escapeText = (text) =>
  String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

const written = (value) => (typeof value === "number" ? String(Number(value.toFixed(2))) : escapeText(value));

export function tag(name, attributes, ...children) {
  const listed = Object.entries(attributes).map(([key, value]) => ` ${key}="${written(value)}"`);
  return `<${name}${listed.join("")}>${children.flat(Infinity).join("")}</${name}>`;
}

export const words = (x, y, text, attributes = {}) => tag("text", { x, y, ...attributes }, escapeText(text));

export const line = (x1, y1, x2, y2, kind) => tag("line", { x1, y1, x2, y2, class: kind });

export const path = (points, kind) =>
  tag("path", { d: points.map(([x, y], i) => `${i ? "L" : "M"}${written(x)} ${written(y)}`).join(""), class: kind });

// A picture of this many units, as wide as its column; `about` is what a screen reader says.
export const picture = (width, height, about, ...children) =>
  tag("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": about }, ...children);

// rows of cells: a text, or { text, kind } with class names; `current` marks a row. A table that is too wide scrolls.
export function table(caption, head, rows, current = -1) {
  const cell = (name, attributes) => (content) => {
    const { text, kind } = typeof content === "object" ? content : { text: content, kind: "" };
    return tag(name, { ...attributes, ...(kind ? { class: kind } : {}) }, escapeText(text));
  };
  // what is long may take two lines
  const title = (text) => cell("th", { scope: "row" })({ text, kind: text.length > 24 ? "long" : "" });
  const line = ([first, ...others]) => [title(String(first)), others.map(cell("td", {}))];
  return (
    tag("p", { class: "explorer-caption" }, escapeText(caption)) +
    tag(
      "div",
      { class: "explorer-scroll", tabindex: "0", role: "region", "aria-label": caption },
      tag(
        "table",
        { class: "explorer-values", "aria-label": caption },
        tag("thead", {}, tag("tr", {}, head.map(cell("th", { scope: "col" })))),
        tag("tbody", {}, rows.map((row, i) => tag("tr", i === current ? { "aria-current": "true" } : {}, line(row)))),
      ),
    )
  );
}

// The markers of minprune/plots.py, so that colour is never all that tells two methods apart.
const SHAPES = {
  circle: "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0 -5 0Z",
  square: "M-4.5 -4.5H4.5V4.5H-4.5Z",
  diamond: "M0 -6.2L6.2 0L0 6.2L-6.2 0Z",
  down: "M-5.6 -4.6H5.6L0 5.4Z",
  cross: "M-5.5 -2.7L-2.7 -5.5L0 -2.8L2.7 -5.5L5.5 -2.7L2.8 0L5.5 2.7L2.7 5.5L0 2.8L-2.7 5.5L-5.5 2.7L-2.8 0Z",
  hexagon: "M0 -6L5.2 -3V3L0 6L-5.2 3V-3Z",
  star: "M0 -7L2 -2.2L7 -2L3 1.3L4.4 6.4L0 3.4L-4.4 6.4L-3 1.3L-7 -2L-2 -2.2Z",
};

export const marker = (shape, x, y, kind) =>
  tag("path", { d: SHAPES[shape], transform: `translate(${written(x)} ${written(y)})`, class: kind });

// A legend in one line, [shape, class names, text] each; a letter is about 7 units wide.
export function legend(entries, left, y) {
  let x = left;
  return entries.map(([shape, kind, text]) => {
    const here = x;
    x += 31 + 7 * text.length;
    return [marker(shape, here, y - 4, `mark ${kind}`), words(here + 10, y, text, { class: "small" })];
  });
}

// 0.1234 -> "12.3 %", with a space that does not break; below one per cent two digits that count.
export function percent(share) {
  const value = 100 * share;
  if (Math.abs(value) < 1e-9) return "0\u00a0%";
  return `${Math.abs(value) < 1 ? value.toPrecision(2) : value.toFixed(1)}\u00a0%`;
}

// The same for what was set and not measured: 0.5 -> "50 %".
export const trimmed = (share) => percent(share).replace(".0", "");

export const signed = (value, digits = 2) => value.toFixed(digits).replace("-", "\u2212");

// Weights as squares whose area is their size: full if positive, hollow if negative, a cross where one is gone.
//
// now, before (rows, columns): the weights and the ones to compare with; keep: mask. say(i, j): what a reader hears of
// a weight; kind(i, j): more class names of its cell.
export function squares({ now, before, keep, cell, left, top, say, kind = () => "" }) {
  const most = Math.max(...before.flat().map(Math.abs), ...now.flat().map(Math.abs));
  const square = (w, x, y, name) => {
    const side = 0.88 * cell * Math.sqrt(Math.abs(w) / most);
    const corner = (cell - side) / 2;
    return tag("rect", { x: x + corner, y: y + corner, width: side, height: side, class: name });
  };
  const cross = (x, y) => {
    const [a, b] = [0.36 * cell, 0.64 * cell];
    return tag("path", { d: `M${x + a} ${y + a}L${x + b} ${y + b}M${x + a} ${y + b}L${x + b} ${y + a}`, class: "gone" });
  };
  return now.map((row, i) =>
    row.map((w, j) => {
      const [x, y] = [left + j * cell, top + i * cell];
      return tag(
        "g",
        { class: `weight ${kind(i, j)}`, "data-at": `${i},${j}`, "data-say": say(i, j) },
        tag("rect", { x, y, width: cell, height: cell, class: "ground" }),
        keep[i][j] ? square(w, x, y, w < 0 ? "negative" : "positive") : cross(x, y),
        keep[i][j] && w === before[i][j] ? "" : square(before[i][j], x, y, "before"),
      );
    }),
  );
}
