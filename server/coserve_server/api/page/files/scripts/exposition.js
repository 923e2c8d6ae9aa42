// Reads Prometheus' text format: https://prometheus.io/docs/instrumenting/exposition_formats/

const SAMPLE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { n: "\n" };

/** Return a map from each metric's name to its samples, `{labels, value}`. */
export function parse(text) {
  const metrics = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : SAMPLE.exec(line);
    if (!match) continue;
    const [, name, inside = "", value] = match;
    const labels = {};
    for (const [, label, raw] of inside.matchAll(LABEL)) {
      labels[label] = raw.replace(/\\(.)/g, (_, letter) => ESCAPES[letter] ?? letter);
    }
    if (!metrics.has(name)) metrics.set(name, []);
    metrics.get(name).push({ labels, value: Number(value.replace("Inf", "Infinity")) });
  }
  return metrics;
}

const fits = (labels, wanted) => Object.entries(wanted).every(([name, value]) => labels[name] === value);

/** Return the sum of a metric's samples that have these labels; 0 if there are none. */
export function sum(metrics, name, wanted = {}) {
  return (metrics.get(name) ?? [])
    .filter(({ labels }) => fits(labels, wanted))
    .reduce((total, { value }) => total + value, 0);
}

/** Return how much a counter grew between two readings. */
export const growth = (before, after, name, wanted) => sum(after, name, wanted) - sum(before, name, wanted);

/** Return the mean of what a histogram observed between two readings; NaN if it observed nothing. */
export function mean(before, after, name, wanted) {
  return growth(before, after, `${name}_sum`, wanted) / growth(before, after, `${name}_count`, wanted);
}

/** Return a quantile of what a histogram observed between two readings, as Prometheus interpolates it. */
export function quantile(before, after, name, share, wanted = {}) {
  const bounds = new Map();
  for (const { labels } of after.get(`${name}_bucket`) ?? []) {
    if (fits(labels, wanted)) bounds.set(Number(labels.le.replace("Inf", "Infinity")), labels.le);
  }
  const buckets = [...bounds].toSorted(([a], [b]) => a - b).map(([bound, le]) => {
    return { bound, count: growth(before, after, `${name}_bucket`, { ...wanted, le }) };
  });
  const all = buckets.at(-1)?.count ?? 0;
  if (all <= 0) return NaN;
  const rank = share * all;
  const index = buckets.findIndex(({ count }) => count >= rank);
  const low = index ? buckets[index - 1] : { bound: 0, count: 0 };
  const { bound, count } = buckets[index];
  if (bound === Infinity) return low.bound;
  return low.bound + ((bound - low.bound) * (rank - low.count)) / (count - low.count);
}
