// The figures of the gateway as a page has them: snapshots, what happened between two of them, and
// how numbers are written.
//
// A snapshot is `{ version, uptime, draining, families }`; `families` has the samples that /metrics
// shows, by the name of the family, without those that are zero.

const NOTHING = [];

/** The samples of a family whose labels are as in `match`. */
export function samples(snapshot, family, match = {}) {
  const all = snapshot?.families[family] ?? NOTHING;
  const wanted = Object.entries(match);
  return all.filter(({ labels }) => wanted.every(([name, value]) => labels[name] === value));
}

function total(snapshot, family, match) {
  return samples(snapshot, family, match).reduce((sum, { value }) => sum + value, 0);
}

/**
 * When snapshots were made, by this clock: several may come at once if the page was busy. None was
 * made later than it came.
 */
export class Times {
  #offset = Infinity;

  of({ uptime }) {
    this.#offset = Math.min(this.#offset, Date.now() - uptime * 1000);
    return uptime * 1000 + this.#offset;
  }
}

/** What happened from one snapshot to another, or since the start of the process. */
export class Span {
  constructor(now, then = null) {
    this.now = now;
    this.then = then;
    this.seconds = now.uptime - (then?.uptime ?? 0);
  }

  /** By how much counters have grown. */
  count(family, match) {
    return total(this.now, family, match) - total(this.then, family, match);
  }

  /** What gauges say now. */
  gauge(family, match) {
    return total(this.now, family, match);
  }

  /** What histograms have gained, all that match added up; null if that is nothing. */
  histogram(family, match) {
    const added = add(samples(this.now, family, match));
    if (added === null) return null;
    const before = add(samples(this.then, family, match));
    const gained = before === null ? added : {
      bounds: added.bounds,
      count: added.count - before.count,
      sum: added.sum - before.sum,
      cumulative: added.cumulative.map((count, at) => count - before.cumulative[at]),
    };
    return gained.count > 0 ? gained : null;
  }
}

function add(histograms) {
  if (histograms.length === 0) return null;
  const [{ bounds }] = histograms;
  return {
    bounds,
    count: histograms.reduce((sum, one) => sum + one.count, 0),
    sum: histograms.reduce((sum, one) => sum + one.sum, 0),
    cumulative: bounds.map((_, at) => histograms.reduce((sum, one) => sum + one.cumulative[at], 0)),
  };
}

/**
 * The quantile as Prometheus estimates it (`histogram_quantile`): within a bucket all are spread
 * evenly; above the last bound, the last bound is all that is known (`beyond`). Null without data.
 */
export function quantile(q, histogram) {
  if (histogram === null || !(histogram.count > 0)) return null;
  const { bounds, cumulative, count } = histogram;
  const rank = q * count;
  const at = cumulative.findIndex((sum) => sum >= rank);
  if (at < 0) return { value: bounds.at(-1), beyond: true };
  const start = at === 0 ? 0 : bounds[at - 1];
  const below = at === 0 ? 0 : cumulative[at - 1];
  const inside = cumulative[at] - below;
  const share = inside > 0 ? (rank - below) / inside : 1;
  return { value: start + (bounds[at] - start) * share, beyond: false };
}

/** One divided by the other, or null where that says nothing. */
export function per(amount, of) {
  return of > 0 ? amount / of : null;
}

// --- how numbers are written

/** Three digits that count. */
function digits(value) {
  const most = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return value.toLocaleString("en", { maximumFractionDigits: most });
}

export function whole(value) {
  return Math.round(value).toLocaleString("en");
}

export function plain(value) {
  return value !== 0 && Math.abs(value) < 0.01 ? value.toLocaleString("en", { maximumSignificantDigits: 2 }) : digits(value);
}

export function bytes(value) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (Math.abs(value) >= size) return `${digits(value / size)} ${unit}`;
  }
  return `${digits(value)} B`;
}

export function percent(value) {
  return `${digits(value * 100)} %`;
}

export function seconds(value) {
  if (value >= 1 || value === 0) return `${digits(value)} s`;
  return value >= 1e-3 ? `${digits(value * 1e3)} ms` : `${digits(value * 1e6)} µs`;
}

/** 3 days 4 h, 5 min 6 s. */
export function duration(value) {
  const parts = [["d", 86_400], ["h", 3_600], ["min", 60], ["s", 1]];
  let left = Math.floor(value);
  const said = [];
  for (const [unit, size] of parts) {
    const count = Math.floor(left / size);
    left -= count * size;
    if (count > 0 || said.length > 0 || size === 1) said.push(`${count} ${unit}`);
  }
  return said.slice(0, 2).join(" ");
}

// --- how pages are made

/** An element with a class and a text. */
export function make(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

/** Sets a text only if it is another: what is being read is left alone. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
