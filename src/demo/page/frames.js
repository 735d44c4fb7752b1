// The frames as they pass, for a person to read: bounded, pausable, and without secrets.

import { NS, parse } from "./xml.js";

/** Frames kept, the newest. */
const KEPT = 150;
/** Characters of one frame, and of one text in it, that are shown. */
const SHOWN = 4_000;
const SHOWN_TEXT = 300;
/** Whose holder owns the session, and where it may stand. */
const SECRETS = ["sid", "previd", "id"];

const utf8 = new TextEncoder();
const clock = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, hour12: false,
});

export class Frames {
  #list;
  #box;
  #note;
  #empty;
  #paused = false;
  #held = [];

  /** `box` scrolls, with an `<ol>` or an invitation in it; `note` says what a pause holds back. */
  constructor(box, note) {
    const list = box.querySelector("ol");
    this.#empty = box.querySelector(".empty");
    this.#box = box;
    this.#list = list;
    this.#note = note;
  }

  get paused() {
    return this.#paused;
  }

  add(direction, text, at = new Date()) {
    const frame = { direction, text, at };
    if (!this.#paused) return this.#append([frame]);
    this.#held.push(frame);
    if (this.#held.length > KEPT) this.#held.shift();
    this.#tellHeld();
  }

  pause(paused) {
    this.#paused = paused;
    if (!paused) this.#append(this.#held.splice(0));
    this.#tellHeld();
  }

  clear() {
    this.#held = [];
    this.#list.replaceChildren();
    this.#empty.hidden = false;
    this.#tellHeld();
  }

  #tellHeld() {
    const count = this.#held.length === 1 ? "1 frame" : `${this.#held.length} frames`;
    this.#note.textContent = this.#paused ? `Paused, ${count} held back` : "";
  }

  #append(frames) {
    const box = this.#box;
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    this.#list.append(...frames.map(row));
    this.#empty.hidden = this.#list.children.length > 0;
    while (this.#list.children.length > KEPT) this.#list.firstElementChild.remove();
    if (atEnd) box.scrollTop = box.scrollHeight;
  }
}

function row({ direction, text, at }) {
  const line = make("li", `frame frame-${direction}`);
  const head = make("p", "frame-head");
  const arrow = make("span", "frame-arrow", direction === "out" ? "→" : "←");
  arrow.setAttribute("aria-hidden", "true");
  head.append(
    arrow,
    make("span", "frame-way", direction === "out" ? "to server" : "from server"),
    make("time", "frame-time", clock.format(at)),
    make("span", "frame-size", size(utf8.encode(text).length)),
  );
  const code = make("code", "frame-code");
  code.append(...pretty(text));
  const block = make("pre", "frame-text");
  block.append(code);
  line.append(head, block);
  return line;
}

function size(bytes) {
  return bytes < 1_000 ? `${bytes} B` : `${(bytes / 1_000).toFixed(1)} kB`;
}

function make(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

/** The frame indented and coloured, as spans. */
function pretty(text) {
  const root = parse(text);
  if (root === null) return [make("span", "x-text", shorten(text, SHOWN))];
  const spans = [];
  let length = 0;
  const put = (kind, piece) => {
    if (length < SHOWN) spans.push(make("span", kind, piece));
    length += piece.length;
  };
  visit(root, 0, put);
  if (length >= SHOWN) spans.push(make("span", "x-mask", "\n…"));
  return spans;
}

function visit(node, depth, put) {
  const indent = depth === 0 ? "" : `\n${"  ".repeat(depth)}`;
  put("x-mark", `${indent}<`);
  put("x-name", node.tagName);
  for (const { name, value } of node.attributes) {
    put("x-attr", ` ${name}`);
    put("x-mark", "=");
    put("x-value", `"${hidden(node, name) ? "•••" : shorten(value, SHOWN_TEXT)}"`);
  }
  const text = [...node.childNodes].filter((one) => one.nodeType === Node.TEXT_NODE);
  const words = text.map((one) => one.data).join("").trim();
  if (node.children.length === 0 && words === "") return put("x-mark", "/>");
  put("x-mark", ">");
  if (words !== "" && secret(node)) put("x-mask", masked(words));
  else if (words !== "") put("x-text", shorten(words, SHOWN_TEXT));
  for (const one of node.children) visit(one, depth + 1, put);
  put("x-mark", node.children.length > 0 ? `\n${"  ".repeat(depth)}</` : "</");
  put("x-name", node.tagName);
  put("x-mark", ">");
}

/** What passes during a login is nobody's business, on a screen either. */
function secret(node) {
  return node.namespaceURI === NS.sasl && node.localName !== "mechanism" && node.localName !== "text";
}

function hidden(node, name) {
  if (!SECRETS.includes(name)) return false;
  return node.namespaceURI === NS.sm || (name === "sid" && node.namespaceURI === NS.httpbind);
}

function masked(text) {
  return `••• ${text.length} characters hidden •••`;
}

function shorten(text, most) {
  if (text.length <= most) return text;
  return `${text.slice(0, most)}… (${text.length.toLocaleString("en")} characters)`;
}
