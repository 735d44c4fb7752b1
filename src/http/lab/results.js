// Tables that have the two transports side by side, with how many times one the other is.

import { make, plain, setText } from "./figures.js";

const KEYS = ["websocket", "bosh"];

/** A row of a measure: `set([websocket, bosh])`; null: not measured, undefined: does not apply. */
export class Row {
  constructor({ id, title, hint = "", format }) {
    this.format = format;
    this.root = make("tr");
    this.root.dataset.id = id;
    const head = make("th", "", title);
    head.scope = "row";
    if (hint) head.append(make("span", "hint", hint));
    this.root.append(head);
    this.cells = KEYS.map((key) => {
      const cell = make("td", key);
      const [value, bar] = [make("span", "value"), make("span", "bar")];
      bar.setAttribute("aria-hidden", "true");
      cell.append(value, bar);
      this.root.append(cell);
      return { cell, value, bar };
    });
    this.times = make("td", "times", "–");
    this.root.append(this.times);
  }

  set(values) {
    const numbers = values.map((value) => (typeof value === "number" ? value : null));
    const most = Math.max(...numbers.map((value) => value ?? 0));
    this.cells.forEach(({ cell, value, bar }, at) => {
      const own = values[at];
      const words = own === undefined ? "does not apply" : own === null ? "no data yet" : typeof own === "string" ? own : this.format(own);
      setText(value, words);
      cell.classList.toggle("none", numbers[at] === null);
      if (numbers[at] === null) delete cell.dataset.value;
      else cell.dataset.value = own;
      bar.style.width = numbers[at] !== null && most > 0 ? `${100 * own / most}%` : "0";
    });
    const [websocket, bosh] = numbers;
    setText(this.times, websocket > 0 && bosh > 0 ? `${plain(bosh / websocket)} ×` : "–");
    return this;
  }
}

/** A group of rows under a title. */
export function group(title, rows) {
  const body = make("tbody");
  const line = make("tr", "group");
  const head = make("th", "", title);
  head.scope = "rowgroup";
  head.colSpan = KEYS.length + 2;
  line.append(head);
  body.append(line, ...rows.map(({ root }) => root));
  return body;
}

/** The exact quantile of numbers, or null. */
export function percentile(q, numbers) {
  if (numbers.length === 0) return null;
  const sorted = [...numbers].sort((one, other) => one - other);
  return sorted[Math.max(0, Math.ceil(q * sorted.length) - 1)];
}
