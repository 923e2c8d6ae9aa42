// Short words for building elements.

export const $ = (id) => document.getElementById(id);

/** Make an element; `properties` are set on it, and strings among the children become text. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  const { attributes = {}, ...rest } = properties;
  Object.assign(element, rest);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Make a table; each row is an array of cells, or `{cells, failed}`. */
export function table(caption, heads, rows) {
  const body = rows.map((row) => {
    const { cells, failed } = Array.isArray(row) ? { cells: row, failed: false } : row;
    const [first, ...others] = cells.map(String);
    return make(
      "tr",
      { className: failed ? "failed" : "" },
      make("th", { scope: "row" }, first),
      ...others.map((cell) => make("td", {}, cell)),
    );
  });
  const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
  return make(
    "div",
    { className: "wide", tabIndex: 0, attributes: { role: "region", "aria-label": caption } },
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)),
  );
}

export function folded(summary, ...children) {
  return make("details", {}, make("summary", {}, summary), ...children);
}

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;

export function milliseconds(ms) {
  if (ms === null || ms === undefined || Number.isNaN(ms)) return "–";
  return `${ms < 10 ? ms.toFixed(2) : ms < 100 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

export const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

/** Join words as a sentence does: "cat, dog or deer". */
export function listed(words, last = "and") {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} ${last} ${words.at(-1)}`;
}

export function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor((sorted.length - 1) / 2)];
}
