// The lab: the same done with a WebSocket session and a BOSH session, and what it took, by the
// browser's own measurements and by the figures of the gateway.

import { BoshTransport } from "./bosh.js";
import { Span, Times, bytes, make, per, plain, quantile, seconds, setText, whole } from "./figures.js";
import { Frames } from "./frames.js";
import { Line } from "./line.js";
import { Plot } from "./plot.js";
import { Row, group, percentile } from "./results.js";
import { WebSocketTransport } from "./websocket.js";

/** Results that are kept, the newest first. */
const KEPT = 8;
/** Milliseconds between the messages of a burst. */
const GAP = 5;
/** Messages that are under way when the line is cut, and that are sent while it is. */
const CAUGHT = 5;
/** Bytes of a large stanza. */
const LARGE = 60_000;
/** Milliseconds without figures that are told. */
const SILENT = 5_000;

const byId = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });
const milliseconds = (value) => seconds(value / 1000);

/** What the gateway counted, by transport. */
const GATEWAY = {
  elements: (span, transport) => span.count("bosphorus_stanzas_total", { transport }),
  payload: (span, transport) => span.count("bosphorus_payload_bytes_total", { transport }),
  wire: (span, transport) => span.count("bosphorus_wire_bytes_total", { transport }),
  requests: (span, transport) => span.count("bosphorus_http_requests_total", { transport }),
  connections: (span, transport) => span.count("bosphorus_client_connections_total", { transport }),
  delivery: (q) => (span, transport) =>
    quantile(q, span.histogram("bosphorus_delivery_seconds", { transport, direction: "to_client" }))?.value ?? null,
  wait: (q) => (span, transport) =>
    transport === "bosh" ? quantile(q, span.histogram("bosphorus_bosh_wait_seconds"))?.value ?? null : undefined,
};

/** The figures of the gateway, as they come. */
class Feed {
  #waiting = [];
  #last = 0;
  snapshot = null;

  constructor(take) {
    const source = new EventSource("/lab/events");
    source.onmessage = ({ data }) => {
      const snapshot = JSON.parse(data);
      const previous = this.snapshot;
      this.snapshot = snapshot;
      this.#last = Date.now();
      this.#tell("good", "Figures of the gateway: live");
      take(snapshot, previous);
      for (const one of this.#waiting.splice(0)) one(snapshot);
    };
    setInterval(() => {
      if (Date.now() - this.#last < SILENT) return;
      this.#tell("bad", "No figures of the gateway: too many watch them, or it has gone");
      for (const one of this.#waiting.splice(0)) one(null);
    }, 1_000);
    this.#last = Date.now();
  }

  /** The snapshot that comes next; null if none does. */
  next() {
    return new Promise((resolve) => { this.#waiting.push(resolve); });
  }

  /** One that has all that happened until now. */
  async after() {
    await this.next();
    return this.next();
  }

  #tell(state, words) {
    byId("feed-dot").className = `dot dot-${state}`;
    setText(byId("feed"), words);
  }
}

/** The two sessions' states, and their frames. */
class Pane {
  #held = [];

  constructor({ key, title }) {
    this.root = byId("pane").content.firstElementChild.cloneNode(true);
    this.root.dataset.transport = key;
    this.root.classList.add(key);
    this.root.querySelector(".pane-name").textContent = title;
    const part = (selector) => this.root.querySelector(selector);
    this.frames = byId("frames").content.firstElementChild.cloneNode(true);
    this.frames.classList.add(key);
    this.frames.dataset.transport = key;
    this.frames.querySelector("h3").textContent = title;
    const box = this.frames.querySelector(".frames-box");
    box.setAttribute("aria-label", `${title}: what passed`);
    const log = new Frames(box, this.frames.querySelector(".frames-note"));
    this.log = log;
    const button = (what) => {
      const found = this.frames.querySelector(`[data-do=${what}]`);
      found.setAttribute("aria-label", `${found.textContent} ${title}`);
      return found;
    };
    const stop = button("pause");
    stop.addEventListener("click", () => {
      log.pause(!log.paused);
      stop.setAttribute("aria-pressed", String(log.paused));
    });
    button("clear").addEventListener("click", () => log.clear());
    this.dot = part(".dot");
    this.words = part(".pane-words");
    this.tell("offline", "Not connected.");
  }

  tell(name, words) {
    this.root.dataset.state = name;
    this.dot.className = `dot dot-${{ online: "good", offline: "none" }[name] ?? "warn"}`;
    setText(this.words, words);
  }

  /** Frames are drawn a little later: what is measured does not wait for that. */
  frame(direction, text) {
    if (this.#held.length === 0) setTimeout(() => this.#draw(), 200);
    this.#held.push([direction, text, new Date()]);
    // The log would not keep more.
    if (this.#held.length > 150) this.#held.shift();
  }

  #draw() {
    for (const frame of this.#held.splice(0)) this.log.add(...frame);
  }
}

/** What the browser knows of the requests to an address: they are in no feed but its own. */
class Requests {
  constructor(url) {
    this.forget();
    const observer = new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) {
        if (!entry.name.endsWith(url)) continue;
        this.finished += 1;
        if (entry.connectEnd > entry.connectStart) this.connections += 1;
        if (entry.nextHopProtocol) this.protocol = entry.nextHopProtocol;
      }
    });
    observer.observe({ type: "resource" });
  }

  forget() {
    this.finished = 0;
    this.connections = 0;
    this.protocol = "";
  }
}

class Lab {
  #config;
  #lines;
  #panes = new Map();
  #requests;
  #feed;
  #base = null;
  #times = new Times();
  #busy = false;
  #turn = 0;
  #plots;
  #totals;

  constructor(config) {
    this.#config = config;
    this.#requests = config.bosh ? new Requests(config.bosh) : null;
    const socket = new URL(config.websocket, location.href);
    socket.protocol = socket.protocol.replace("http", "ws");
    const transports = [
      { key: "websocket", title: "WebSocket", make: (domain, on) => new WebSocketTransport(socket.href, domain, on) },
      { key: "bosh", title: "BOSH", make: (domain, on) => new BoshTransport(config.bosh, domain, on) },
    ].filter(({ key }) => config[key]);
    this.#plots = this.#makePlots();
    this.#lines = transports.map((transport) => {
      const pane = new Pane(transport);
      this.#panes.set(transport.key, pane);
      byId("panes").append(pane.root);
      byId("logs").append(pane.frames);
      return new Line(transport, {
        state: (name, words) => this.#state(pane, name, words),
        frame: (direction, text) => pane.frame(direction, text),
        latency: (value) => this.#plots.latency.add(["websocket", "bosh"].map((key) => (key === transport.key ? value : null))),
      });
    });
    if (!config.bosh) byId("panes").append(make("p", "soft", "BOSH is not offered here: bosh.paths is empty."));
    this.#totals = this.#makeTotals();
    this.#feed = new Feed((snapshot, previous) => this.#take(snapshot, previous));
    this.#listen();
    this.#ready();
  }

  // --- connections

  async connect(account) {
    await Promise.allSettled(this.#lines.filter(({ state }) => state === "offline").map((line) => line.connect(account)));
  }

  #listen() {
    const { account } = this.#config;
    const form = byId("login");
    form.hidden = account !== null;
    byId("known").hidden = account === null;
    if (account !== null) byId("known-jid").textContent = account.jid;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#login(form.elements.jid.value.trim(), form.elements.password.value);
    });
    byId("connect").addEventListener("click", () => this.#login(account.jid, account.password));
    byId("disconnect").addEventListener("click", () => this.#lines.forEach((line) => line.disconnect()));
    byId("afresh").addEventListener("click", () => this.#afresh());
    byId("clear-results").addEventListener("click", () => this.#clearResults());
    for (const button of document.querySelectorAll("[data-act]")) {
      button.addEventListener("click", () => this.#act(button.dataset.act));
    }
    addEventListener("pagehide", () => this.#lines.forEach((line) => line.leave()));
    // A page that comes back from the browser's memory was told that it goes.
    addEventListener("pageshow", ({ persisted }) => persisted && location.reload());
    if (account !== null) this.#login(account.jid, account.password);
  }

  #login(jid, password) {
    const [, user, domain] = /^([^@/]+)@([^@/]+)(?:\/.*)?$/.exec(jid) ?? [];
    const input = byId("login").elements.jid;
    input.setAttribute("aria-invalid", String(user === undefined));
    if (user === undefined) {
      setText(byId("doing"), "An address such as juliet@example.org is needed.");
      return input.focus();
    }
    setText(byId("doing"), "");
    this.connect({ user, domain, password });
  }

  #state(pane, name, words) {
    pane.tell(name, words);
    this.#ready();
  }

  /** What can be pressed. */
  #ready() {
    const lines = this.#lines ?? [];
    const all = lines.length > 0 && lines.every(({ online }) => online);
    for (const one of document.querySelectorAll("[data-act]")) one.disabled = !all || this.#busy;
    const open = lines.some(({ state }) => state !== "offline");
    byId("disconnect").disabled = !open || this.#busy;
    const connected = lines.every(({ state }) => state !== "offline");
    byId("connect").hidden = connected;
    for (const one of [byId("connect"), byId("login-button")]) one.disabled = this.#busy || connected;
  }

  // --- actions

  #number(id, least, most) {
    const input = byId(id);
    const value = Math.min(most, Math.max(least, Math.round(Number(input.value)) || least));
    input.value = value;
    return value;
  }

  async #act(name) {
    const count = this.#number("burst", 2, 500);
    const idle = this.#number("idle", 1, 300);
    const actions = {
      message: {
        title: "One message",
        run: async (line) => ({ backs: [await line.send("Is the ferry there?")] }),
      },
      burst: {
        title: `${count} messages, one every ${GAP} ms`,
        run: async (line) => {
          const backs = [];
          for (let at = 1; at <= count; at += 1) {
            backs.push(line.send(`Line ${at} of ${count} across the strait.`));
            if (at < count) await pause(GAP);
          }
          return { backs: await Promise.all(backs) };
        },
      },
      large: {
        title: `One stanza of ${bytes(LARGE)}`,
        run: async (line) => ({ backs: [await line.send(large())] }),
      },
      idle: {
        title: `${idle} s of nothing`,
        together: true,
        run: async () => {
          await pause(idle * 1000);
          return { backs: [] };
        },
      },
      cut: {
        title: `The line cut, with ${CAUGHT} messages under way and ${CAUGHT} more meanwhile`,
        run: (line) => cut(line),
      },
    };
    const { title, run, together } = actions[name];
    this.#busy = true;
    this.#ready();
    try {
      // Neither is always the first.
      const order = this.#turn++ % 2 === 0 ? this.#lines : [...this.#lines].reverse();
      const measured = new Map();
      if (together) {
        setText(byId("doing"), `${title} …`);
        const all = await Promise.all(order.map(async (line) => [line.key, await this.#measure(line, run)]));
        for (const [key, result] of all) measured.set(key, result);
      } else {
        for (const line of order) {
          setText(byId("doing"), `${title}: ${line.title} …`);
          measured.set(line.key, await this.#measure(line, run));
        }
      }
      this.#show(name, title, ["websocket", "bosh"].map((key) => measured.get(key)));
      setText(byId("doing"), `${title}: done.`);
    } catch (error) {
      setText(byId("doing"), `${title}: broken off. ${error.words ?? error.message}`);
    } finally {
      this.#busy = false;
      this.#ready();
    }
  }

  async #measure(line, run) {
    const before = await this.#feed.next();
    const { frames, out, in: received, twice } = line.counts;
    const began = performance.now();
    const { backs, how } = await run(line);
    const took = performance.now() - began;
    const after = before === null ? null : await this.#feed.after();
    const known = backs.filter((back) => back !== null);
    const span = before && after ? new Span(after, before) : null;
    const counted = Object.fromEntries(["elements", "wire", "requests", "connections"].map((what) => [what, span && GATEWAY[what](span, line.key)]));
    return {
      took,
      how,
      sent: backs.length,
      median: percentile(0.5, known),
      p95: percentile(0.95, known),
      lost: backs.length - known.length,
      twice: line.counts.twice - twice,
      frames: line.counts.frames - frames,
      bytes: line.counts.out - out + line.counts.in - received,
      perMessage: backs.length > 0 && counted.wire !== null ? counted.wire / backs.length : null,
      ...counted,
    };
  }

  #show(name, title, measured) {
    const pick = (what) => measured.map((one) => (one === undefined ? undefined : one[what] ?? null));
    const row = (id, title, format, hint) => new Row({ id, title, format, hint }).set(pick(id));
    const rows = [];
    if (name === "cut") {
      rows.push(row("how", "Came back", String), row("took", "Until all was there again", milliseconds));
      rows.push(row("lost", `Lost, of ${2 * CAUGHT}`, whole), row("twice", "Came twice", whole));
    } else if (name !== "idle") {
      if (name === "burst") rows.push(row("took", "Until all were back", milliseconds));
      rows.push(row("median", name === "burst" ? "Round trip, median" : "Round trip", milliseconds));
      if (name === "burst") rows.push(row("p95", "Round trip, p95", milliseconds));
      rows.push(row("lost", "Lost", whole));
    }
    rows.push(row("frames", "Frames or requests sent", whole), row("bytes", "In frames and bodies", bytes));
    rows.push(row("wire", "On the wire", bytes, "by the gateway, as the next ones, for all of its sessions"));
    if (name === "burst") rows.push(row("perMessage", "On the wire per message", bytes));
    rows.push(row("requests", "HTTP requests", whole), row("connections", "Connections opened", whole));
    const body = group(title, rows);
    body.dataset.act = name;
    const table = byId("results");
    table.hidden = false;
    byId("no-results").hidden = true;
    table.tHead.after(body);
    while (table.tBodies.length > KEPT) table.tBodies[table.tBodies.length - 1].remove();
  }

  #clearResults() {
    const table = byId("results");
    for (const body of [...table.tBodies]) body.remove();
    table.hidden = true;
    byId("no-results").hidden = false;
  }

  // --- figures

  #take(snapshot, previous) {
    if (previous && snapshot.uptime < previous.uptime) {
      // Another process.
      this.#base = null;
      this.#times = new Times();
    }
    const at = this.#times.of(snapshot);
    if (previous && snapshot.uptime > previous.uptime) {
      const span = new Span(snapshot, previous);
      for (const what of ["wire", "requests"]) {
        this.#plots[what].add(["websocket", "bosh"].map((key) => per(GATEWAY[what](span, key), span.seconds)), at);
      }
      const held = new Map(this.#lines.map((line) => [line.key, line.held]));
      this.#plots.held.add(["websocket", "bosh"].map((key) => held.get(key) ?? null), at);
    }
    this.#base ??= snapshot;
    this.#tellTotals();
  }

  #makePlots() {
    const series = [{ key: "websocket", name: "WebSocket" }, { key: "bosh", name: "BOSH" }];
    const plot = (id, settings) => {
      const root = make("figure");
      root.dataset.id = id;
      byId("plots").append(root);
      return new Plot(root, { series, seconds: 240, ...settings });
    };
    return {
      latency: plot("latency", { title: "Round trip of a message", format: milliseconds, dots: true, note: "as this page measures it" }),
      wire: plot("wire", { title: "Wire bytes per second", format: bytes, note: "as the gateway counts them, for all of its sessions" }),
      requests: plot("requests", { title: "HTTP requests per second", format: plain, note: "as the gateway counts them, for all of its sessions" }),
      held: plot("held", { title: "Open now", format: whole, note: "sockets, and requests that wait for an answer, as this page counts them" }),
    };
  }

  #makeTotals() {
    const rows = (list) => list.map(([id, title, format, value, hint]) => ({ row: new Row({ id, title, format, hint }), value }));
    const own = (value) => (_, line) => value(line);
    const page = rows([
      ["sent", "Messages sent", whole, own(({ counts }) => counts.sent)],
      ["returned", "Came back", whole, own(({ counts }) => counts.returned)],
      ["lost", "Lost", whole, own(({ counts }) => counts.lost)],
      ["p50", "Round trip, median", milliseconds, own(({ counts }) => percentile(0.5, counts.latencies))],
      ["p95", "Round trip, p95", milliseconds, own(({ counts }) => percentile(0.95, counts.latencies))],
      ["frames", "Frames or requests sent", whole, own(({ counts }) => counts.frames)],
      ["bytes", "In frames and bodies", bytes, own(({ counts }) => counts.out + counts.in)],
      ["finished", "HTTP requests finished", whole, own(({ key }) => (key === "bosh" ? this.#requests.finished : undefined)), "the browser's performance API, as the next one"],
      ["fresh", "Connections they made", whole, own(({ key }) => (key === "bosh" ? this.#requests.connections : undefined))],
    ]);
    const gateway = rows([
      ["elements", "Elements", whole, (span, { key }) => GATEWAY.elements(span, key)],
      ["payload", "Payload", bytes, (span, { key }) => GATEWAY.payload(span, key)],
      ["wire", "On the wire", bytes, (span, { key }) => GATEWAY.wire(span, key)],
      ["per-element", "On the wire per element", bytes, (span, { key }) => per(GATEWAY.wire(span, key), GATEWAY.elements(span, key))],
      ["requests", "HTTP requests", whole, (span, { key }) => GATEWAY.requests(span, key)],
      ["connections", "Connections opened", whole, (span, { key }) => GATEWAY.connections(span, key)],
      ["delivery-p50", "Through the gateway to the client, p50", seconds, (span, { key }) => GATEWAY.delivery(0.5)(span, key)],
      ["delivery-p95", "Through the gateway to the client, p95", seconds, (span, { key }) => GATEWAY.delivery(0.95)(span, key)],
      ["wait-p50", "Wait for a request, p50", seconds, (span, { key }) => GATEWAY.wait(0.5)(span, key)],
    ]);
    const table = byId("totals");
    table.append(group("As this page counts", page.map(({ row }) => row)));
    table.append(group("As the gateway counts, for all of its sessions", gateway.map(({ row }) => row)));
    return { own: page, gateway };
  }

  #tellTotals() {
    if (!this.#base || !this.#feed?.snapshot) return;
    const span = new Span(this.#feed.snapshot, this.#base);
    for (const { row, value } of [...this.#totals.own, ...this.#totals.gateway]) {
      row.set(["websocket", "bosh"].map((key) => {
        const line = this.#lines.find((one) => one.key === key);
        return line === undefined ? undefined : value(span, line);
      }));
    }
    const multiplexed = this.#requests?.protocol === "h2";
    byId("multiplexed").hidden = !multiplexed;
  }

  #afresh() {
    for (const line of this.#lines) line.forget();
    for (const plot of Object.values(this.#plots)) plot.clear();
    this.#requests?.forget();
    this.#base = this.#feed.snapshot;
    this.#tellTotals();
  }
}

/** Messages under way, the line cut, and more messages: all of them are to come back. */
async function cut(line) {
  const backs = [];
  for (let at = 1; at <= CAUGHT; at += 1) backs.push(line.send(`Under way ${at}`));
  // Long enough to leave, and too short for most to be back.
  await pause(1);
  const back = line.cut();
  for (let at = 1; at <= CAUGHT; at += 1) backs.push(line.send(`Meanwhile ${at}`));
  const how = await back;
  return { how, backs: await Promise.all(backs) };
}

/** A text in which a missing or doubled piece would be seen. */
function large() {
  let text = "";
  for (let line = 1; text.length < LARGE; line += 1) {
    text += `${String(line).padStart(4, "0")} The ferry carries one more line across the strait.\n`;
  }
  return text.slice(0, LARGE);
}

async function start() {
  const answer = await fetch("/lab/config.json", { cache: "no-store" });
  new Lab(await answer.json());
}

start().catch(() => {
  setText(byId("doing"), "The page could not be set up: the gateway did not answer. Reload it once it is back.");
});
