// A plot of a few series over time: lines or dots in SVG, the latest values beside their names, and
// the same as a table for those who cannot see it or want the numbers.

import { make, setText } from "./figures.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDE = 600;
const TALL = 150;
/** What is left free above and below, so that no line is cut in half. */
const EDGE = 4;
/** The shortest time that is shown, in seconds, until there is more. */
const SHORTEST = 60;
/** Points of one plot, the newest. */
const KEPT = 1_000;
/** Rows of the table, the newest first. */
const ROWS = 60;

const clock = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 1, hour12: false,
});

export class Plot {
  #title;
  #series;
  #format;
  #seconds;
  #dots;
  #points = [];
  #drawn = false;

  /**
   * `root` is empty; `series`: `[{ name, key }]`, where `key` is a class that has a colour;
   * `format` writes a value; `seconds` is how far back it shows; `dots` are for what comes one by
   * one.
   */
  constructor(root, { title, series, format, seconds = 300, dots = false, note = "" }) {
    this.#title = title;
    this.#series = series;
    this.#format = format;
    this.#seconds = seconds;
    this.#dots = dots;
    root.classList.add("plot");
    const caption = make("figcaption", "plot-head");
    this.legend = make("p", "plot-legend");
    this.latest = series.map(({ name, key }) => {
      const one = make("span", `plot-key ${key}`);
      const value = make("b", "plot-value", "–");
      const swatch = make("span", "plot-swatch");
      swatch.setAttribute("aria-hidden", "true");
      one.append(swatch, `${name} `, value);
      this.legend.append(one);
      return value;
    });
    caption.append(make("h3", "plot-title", title), this.legend);
    if (note) caption.append(make("p", "plot-note", note));
    const frame = make("div", "plot-frame");
    this.svg = svg("svg", { viewBox: `0 0 ${WIDE} ${TALL}`, preserveAspectRatio: "none", role: "img" });
    this.svg.setAttribute("aria-label", `${title}: no data yet`);
    for (const y of [EDGE, TALL / 2, TALL - EDGE]) this.svg.append(svg("path", { class: "plot-line", d: `M0 ${y}H${WIDE}` }));
    this.paths = series.map(({ key }) => svg("path", { class: `plot-series ${key}${dots ? " plot-dots" : ""}` }));
    this.svg.append(...this.paths);
    this.top = make("span", "plot-top");
    this.empty = make("span", "plot-empty", "no data yet");
    frame.append(this.svg, this.top, this.empty);
    const axis = make("p", "plot-axis");
    axis.setAttribute("aria-hidden", "true");
    this.oldest = make("span", "", ago(Math.min(SHORTEST, seconds)));
    axis.append(this.oldest, make("span", "", "now"));
    root.append(caption, frame, axis, this.#table());
  }

  #table() {
    const details = make("details", "plot-details");
    const table = make("table", "plot-table");
    const caption = make("caption", "unseen", `${this.#title}, the newest first`);
    const head = make("tr");
    for (const name of ["Time", ...this.#series.map(({ name }) => name)]) {
      const cell = make("th", "", name);
      cell.scope = "col";
      head.append(cell);
    }
    const top = make("thead");
    top.append(head);
    this.body = make("tbody");
    table.append(caption, top, this.body);
    const box = make("div", "plot-scroll");
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", `${this.#title} as a table`);
    box.append(table);
    details.append(make("summary", "", "As a table"), box);
    details.addEventListener("toggle", () => this.#fill());
    this.details = details;
    return details;
  }

  /** Values of a moment, one for each series; null where there is none. */
  add(values, at = Date.now()) {
    this.#points.push({ at, values });
    const oldest = Date.now() - this.#seconds * 1000;
    while (this.#points.length > KEPT || (this.#points.length > 0 && this.#points[0].at < oldest)) this.#points.shift();
    values.forEach((value, at) => {
      if (value !== null || !this.#dots) setText(this.latest[at], value === null ? "–" : this.#format(value));
    });
    this.draw();
  }

  clear() {
    this.#points = [];
    for (const one of this.latest) setText(one, "–");
    this.draw();
  }

  /** Draws once in a frame at most, and not while nobody looks. */
  draw() {
    if (this.#drawn) return;
    this.#drawn = true;
    requestAnimationFrame(() => {
      this.#drawn = false;
      this.#draw();
      this.#fill();
    });
  }

  #draw() {
    const now = Date.now();
    const known = this.#points.flatMap(({ values }) => values.filter((value) => value !== null));
    this.empty.hidden = known.length > 0;
    const top = ceiling(Math.max(0, ...known));
    setText(this.top, known.length > 0 ? this.#format(top) : "");
    // Doubled as time goes by.
    let shown = SHORTEST;
    while ((now - (this.#points[0]?.at ?? now)) / 1000 > shown) shown *= 2;
    shown = Math.min(shown, this.#seconds);
    setText(this.oldest, ago(shown));
    const x = (at) => WIDE * (1 - (now - at) / 1000 / shown);
    const y = (value) => EDGE + (TALL - 2 * EDGE) * (1 - value / top);
    this.paths.forEach((path, index) => {
      let d = "";
      let within = false;
      for (const { at, values } of this.#points) {
        const value = values[index];
        if (value === null) {
          if (!this.#dots) within = false;
          continue;
        }
        const place = `${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
        if (this.#dots) d += `M${place}h.01`;
        else d += `${within ? "L" : "M"}${place}`;
        within = true;
      }
      path.setAttribute("d", d);
    });
    const said = this.#series.map(({ name }, at) => `${name} ${this.latest[at].textContent}`);
    this.svg.setAttribute("aria-label", `${this.#title}: ${known.length > 0 ? said.join(", ") : "no data yet"}`);
  }

  #fill() {
    if (!this.details.open) return;
    const rows = this.#points.slice(-ROWS).reverse().map(({ at, values }) => {
      const row = make("tr");
      const time = make("th", "", clock.format(at));
      time.scope = "row";
      row.append(time);
      for (const value of values) {
        const cell = make("td", "", value === null ? "–" : this.#format(value));
        if (value !== null) cell.dataset.value = value;
        row.append(cell);
      }
      return row;
    });
    this.body.replaceChildren(...rows);
  }
}

function svg(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** The next number of one digit and zeros, or 1.5 or 2.5 of them. */
function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].find((step) => value <= step * power * (1 + 1e-9)) * power;
}

function ago(seconds) {
  return seconds % 60 === 0 ? `${seconds / 60} min ago` : `${seconds} s ago`;
}
