// Draws every chart; vendor/ holds Observable Plot and d3, which put themselves into globalThis.

import "../vendor/d3.min.js";
import "../vendor/plot.umd.min.js";
import { make, milliseconds, percent } from "./dom.js";

const { Plot } = globalThis;

export const COLOURS = Array.from({ length: 8 }, (_, index) => `var(--m${index})`);
export const FAILED = "var(--failed)";
export const colour = (index) => COLOURS[index % COLOURS.length];

const redraw = new Map();
const watcher = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    const entry = redraw.get(target);
    if (entry && Math.abs(entry.width - contentRect.width) > 1) paint(target, contentRect.width);
  }
});

/** Keep a chart in a place, and draw it anew when its width changes.
 *
 * `options(width)` returns Plot's options; `words` say what the chart shows to those who do not see it.
 */
export function draw(place, words, options, after = []) {
  const figure = make("figure");
  place.replaceChildren(figure, ...after);
  redraw.set(figure, { words, options, width: 0 });
  for (const known of redraw.keys()) if (known !== figure && !known.isConnected) forget(known);
  paint(figure, place.clientWidth);
  watcher.observe(figure);
}

/** Draw the chart of a place again with other data. */
export function change(place, options) {
  const figure = place.querySelector("figure");
  redraw.get(figure).options = options;
  paint(figure, figure.clientWidth);
}

function forget(figure) {
  watcher.unobserve(figure);
  redraw.delete(figure);
}

function paint(figure, width) {
  const entry = redraw.get(figure);
  entry.width = width;
  if (width < 50) return;
  const { x, ...options } = entry.options(width);
  // Plot's own offset cuts off what hangs below the line, as in g.
  const axis = { labelOffset: 35, ...x };
  const svg = Plot.plot({ width: Math.floor(width), marginBottom: 40, style: { fontSize: "12px" }, x: axis, ...options });
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", entry.words);
  // Plot names groups that have no role, where no name may be.
  for (const group of svg.querySelectorAll("g[aria-label]")) group.removeAttribute("aria-label");
  figure.replaceChildren(svg);
}

/** Keep a text legible where a line runs through it; with a stroke, Plot fills nothing by itself. */
const HALO = { fill: "currentColor", stroke: "var(--pico-card-background-color)", strokeWidth: 4 };

const shorten = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

/** Bars of the ensemble's probabilities, and a tick for each member's own.
 *
 * rows: {id, label, probability, inSet}; ticks: {id, probability, index}.
 */
export function classBars(rows, ticks) {
  const labels = new Map(rows.map(({ id, label }) => [id, label]));
  return (width) => {
    const room = Math.floor(Math.min(width * 0.35, 170) / 7);
    const longest = Math.max(...rows.map(({ label }) => Math.min(label.length, room)));
    return {
      height: rows.length * 30 + 46,
      marginLeft: longest * 7 + 14,
      marginRight: 48,
      marginTop: 4,
      x: { domain: [0, 1], tickFormat: (share) => `${100 * share}`, ticks: width < 400 ? 3 : 6, label: "probability, %" },
      y: { domain: rows.map(({ id }) => id), tickFormat: (id) => shorten(labels.get(id), room), label: null, tickSize: 0 },
      marks: [
        Plot.barX(rows, {
          x: "probability",
          y: "id",
          fill: "currentColor",
          fillOpacity: (row) => (row.inSet ? 0.38 : 0.16),
          insetTop: 3,
          insetBottom: 3,
        }),
        Plot.tickX(ticks, { x: "probability", y: "id", stroke: (tick) => colour(tick.index), strokeWidth: 3 }),
        Plot.text(rows, {
          x: (row) => Math.max(row.probability, ...ticks.filter(({ id }) => id === row.id).map((one) => one.probability)),
          y: "id",
          text: (row) => percent(row.probability),
          textAnchor: "start",
          dx: 6,
        }),
      ],
    };
  };
}

/** Members as bars on one clock.
 *
 * lanes: {title, bars: [{name, start, end, index, error}]}; line: the time to beat, or null.
 * Until `now` milliseconds have passed, only that much is shown.
 */
export function raceBars(lanes, line, now = Infinity) {
  const last = Math.max(line ?? 0, ...lanes.flatMap(({ bars }) => bars.map(({ end }) => end ?? 0)), 0.001);
  const rows = lanes.flatMap(({ title, bars }) => [
    { key: title, title },
    ...bars.map((bar) => ({ ...bar, key: `${title} ${bar.name}`, start: bar.start ?? 0, end: bar.end ?? last })),
  ]);
  const members = rows.filter((row) => row.name !== undefined);
  const begun = members.filter(({ start }) => start < now);
  const written = members.filter(({ end, error }) => end <= now && (error || end > 0));
  const rules = [];
  if (line !== null) {
    rules.push(Plot.ruleX([line], { stroke: "currentColor", strokeDasharray: "5,3" }));
  }
  if (now < last) rules.push(Plot.ruleX([now], { stroke: "currentColor", strokeOpacity: 0.5 }));
  return (width) => ({
    height: rows.length * 24 + 46,
    marginLeft: 8,
    marginRight: width < 500 ? 90 : 120,
    marginTop: 4,
    x: { domain: [0, last], label: "milliseconds since the first member’s start", ticks: width < 500 ? 3 : 10 },
    y: { domain: rows.map(({ key }) => key), axis: null },
    marks: [
      Plot.barX(begun, {
        x1: "start",
        x2: ({ end }) => Math.min(end, now),
        y: "key",
        fill: (bar) => (bar.error ? FAILED : colour(bar.index)),
        fillOpacity: (bar) => (bar.error ? 0.35 : 0.85),
        stroke: (bar) => (bar.error ? FAILED : "none"),
        strokeDasharray: "3,2",
        insetTop: 3,
        insetBottom: 3,
        rx: 2,
      }),
      ...rules,
      Plot.text(
        rows.filter((row) => row.name === undefined),
        {
          ...HALO,
          x: 0,
          y: "key",
          text: "title",
          textAnchor: "start",
          fontWeight: 600,
          lineAnchor: "bottom",
          dy: 10,
          // In ems, which bold letters exceed.
          lineWidth: (width - 16) / 14,
          textOverflow: "ellipsis-end",
        },
      ),
      Plot.text(written, {
        ...HALO,
        x: "end",
        y: "key",
        text: (bar) => (bar.error ? `✕ ${bar.late ? `late at ${milliseconds(bar.waited)}` : "failed"}` : milliseconds(bar.end)),
        fill: (bar) => (bar.error ? FAILED : "currentColor"),
        textAnchor: "start",
        dx: 5,
      }),
    ],
  });
}

/** One dot per ensemble and per subset of its members. dots: {top1, ms, whole, title, lane}. */
export function accuracyDots(dots) {
  const values = dots.map(percentOf);
  const [lowest, highest] = [Math.min(...values), Math.max(...values)];
  // At least a point, also if all are equal.
  const margin = Math.max(0, 1 - (highest - lowest)) / 2;
  const fill = (dot) => (dot.failed ? FAILED : colour(dot.lane));
  return (width) => ({
    height: Math.max(220, Math.min(320, width * 0.7)),
    marginLeft: 46,
    marginTop: 20,
    marginRight: 44,
    grid: true,
    x: { label: "latency, ms", nice: true, zero: true, ticks: width < 400 ? 4 : 8 },
    y: { label: "top-1 accuracy, %", domain: [lowest - margin, highest + margin], nice: true, ticks: 5 },
    marks: [
      Plot.dot(dots.filter(({ whole }) => !whole), { x: "ms", y: percentOf, stroke: fill, r: 3.5 }),
      Plot.dot(dots.filter(({ whole }) => whole), { x: "ms", y: percentOf, fill, r: 7 }),
      Plot.text(dots.filter(({ whole }) => whole), {
        x: "ms",
        y: percentOf,
        text: "short",
        textAnchor: "start",
        dx: 11,
        fontWeight: 600,
      }),
      Plot.tip(dots, Plot.pointer({ x: "ms", y: percentOf, title: "title", fill: "var(--pico-card-background-color)" })),
    ],
  });
}

const percentOf = (dot) => 100 * dot.top1;

/** Steps of one request, one after another. steps: {name, ms, start}. */
export function stepBars(steps, total) {
  return (width) => ({
    height: steps.length * 26 + 46,
    marginLeft: 92,
    marginRight: 62,
    marginTop: 4,
    x: { domain: [0, total], label: "milliseconds", ticks: width < 500 ? 3 : 8 },
    y: { domain: steps.map(({ name }) => name), label: null, tickSize: 0 },
    marks: [
      Plot.barX(steps, {
        x1: "start",
        x2: ({ start, ms }) => start + ms,
        y: "name",
        fill: ({ name }) => (name === "inference" ? colour(0) : "currentColor"),
        fillOpacity: ({ name }) => (name === "inference" ? 0.85 : 0.4),
        insetTop: 4,
        insetBottom: 4,
      }),
      Plot.text(steps, { x: ({ start, ms }) => start + ms, y: "name", text: ({ ms }) => milliseconds(ms), textAnchor: "start", dx: 5 }),
    ],
  });
}

/** Lines over time. series: [{name, index, points: [{ago, value}]}] with `ago` in seconds, 0 for now. */
export function timeLines(series, seconds, unit) {
  const points = series.flatMap(({ name, index, points: values }) => values.map((point) => ({ ...point, name, index })));
  const largest = Math.max(1, ...points.map(({ value }) => value));
  return (width) => ({
    height: 160,
    marginLeft: 46,
    marginTop: 20,
    marginRight: 12,
    x: { domain: [-seconds, 0], label: "seconds ago", tickFormat: (value) => String(-value), ticks: width < 400 ? 3 : 6 },
    y: { domain: [0, largest * 1.1], label: unit, grid: true, ticks: 4 },
    marks: [
      Plot.ruleY([0]),
      Plot.lineY(points, { x: "ago", y: "value", z: "name", stroke: ({ index }) => colour(index), strokeWidth: 2 }),
      Plot.dot(points, { x: "ago", y: "value", fill: ({ index }) => colour(index), r: 1.5 }),
    ],
  });
}
