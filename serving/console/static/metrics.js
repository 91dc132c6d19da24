/** Prometheus's text format: reading, sums and quantiles of histograms. */

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** Read an exposition into a map from names to [{labels, value}]. */
export function parsed(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = line[0] === "#" ? null : LINE.exec(line);
    if (!match) continue;
    const labels = Object.fromEntries(Array.from((match[2] ?? "").matchAll(LABEL), ([, name, value]) => [name, value]));
    if (!found.has(match[1])) found.set(match[1], []);
    found.get(match[1]).push({ labels, value: Number(match[3]) });
  }
  return found;
}

/** Sum a metric over the series that a condition on their labels takes; null if there is none. */
export function sum(metrics, name, takes = () => true) {
  const taken = (metrics.get(name) ?? []).filter(({ labels }) => takes(labels));
  return taken.length ? taken.reduce((total, { value }) => total + value, 0) : null;
}

/** Estimate a quantile of a histogram, of what came after `earlier` if there is something; null without observations. */
export function quantile(metrics, name, share, earlier = new Map()) {
  const before = cumulated(earlier, name);
  const now = cumulated(metrics, name);
  const counts = now.map(([bound, value], index) => [bound, value - (before[index]?.[1] ?? 0)]);
  const total = counts.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  const wanted = share * total;
  const at = counts.findIndex(([, value]) => value >= wanted);
  const [low, below] = at > 0 ? counts[at - 1] : [0, 0];
  const [high, upTo] = counts[at];
  return high === Infinity ? low : low + ((wanted - below) / Math.max(upTo - below, 1e-9)) * (high - low);
}

function cumulated(metrics, name) {
  const byBound = new Map();
  for (const { labels, value } of metrics.get(`${name}_bucket`) ?? []) {
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    byBound.set(bound, (byBound.get(bound) ?? 0) + value);
  }
  return [...byBound].sort(([one], [other]) => one - other);
}
