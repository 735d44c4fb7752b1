// The status page: the comparison of the transports, live. Figures come over a WebSocket, or are
// asked for where there is none.

import {
  Span, Times, bytes, duration, make, per, percent, plain, quantile, samples, seconds, setText, whole,
} from "./figures.js";
import { Plot } from "./plot.js";

/** Seconds of snapshots that are kept. */
const KEPT = 310;
/** Milliseconds between two questions where there is no feed, and before the feed is tried again. */
const POLL = 2_000;
const RETRY = 15_000;
/** Rows of the table of those who use BOSH. */
const CENSUS = 10;
/** Milliseconds without figures that are told. */
const SILENT = 5_000;

const TRANSPORTS = [
  { key: "websocket", name: "WebSocket" },
  { key: "websocket_legacy", name: "WebSocket, older framing" },
  { key: "bosh", name: "BOSH" },
];

const elements = (span, transport) => span.count("bosphorus_stanzas_total", { transport });
const payload = (span, transport) => span.count("bosphorus_payload_bytes_total", { transport });
const wire = (span, transport) => span.count("bosphorus_wire_bytes_total", { transport });
const opened = (span, transport) => span.count("bosphorus_sessions_opened_total", { transport });
const requests = (span, transport) => span.count("bosphorus_http_requests_total", { transport });
const connections = (span, transport) => span.count("bosphorus_client_connections_total", { transport });
const cpu = (span, transport) => span.count("bosphorus_cpu_seconds_total", { transport });
const delivery = (span, transport, direction) => span.histogram("bosphorus_delivery_seconds", { transport, direction });

/** A percentile, as a number or null. */
const percentile = (q, histogram) => quantile(q, histogram)?.value ?? null;

function latencies(direction) {
  return [0.5, 0.95, 0.99].map((q) => ({
    id: `${direction}-p${q * 100}`,
    title: `p${q * 100}`,
    value: (span, transport) => percentile(q, delivery(span, transport, direction)),
    format: seconds,
  }));
}

/** What is compared: by groups, `value(span, transport)` is null where nothing was measured. */
const GROUPS = [
  {
    title: "Sessions",
    rows: [
      { id: "sessions", title: "Open now", value: (span, transport) => span.gauge("bosphorus_sessions", { transport }), format: whole },
      { id: "opened", title: "Opened", value: opened, format: whole },
    ],
  },
  {
    title: "What they carried, both ways",
    rows: [
      { id: "elements", title: "Elements", hint: "stanzas, and what else is a top-level element", value: elements, format: whole },
      { id: "rate", title: "Elements per second", value: (span, transport) => per(elements(span, transport), span.seconds), format: plain },
      { id: "payload", title: "Payload", hint: "bytes of the elements", value: payload, format: bytes },
    ],
  },
  {
    title: "What that took",
    rows: [
      { id: "wire", title: "Wire bytes", value: wire, format: bytes },
      { id: "wire-per-element", title: "Wire bytes per element", value: (span, transport) => per(wire(span, transport), elements(span, transport)), format: bytes },
      { id: "wire-per-session", title: "Wire bytes per session opened", value: (span, transport) => per(wire(span, transport), opened(span, transport)), format: bytes },
      { id: "overhead", title: "Overhead over payload", hint: "wire bytes beyond the payload, per byte of payload", value: (span, transport) => {
        const times = per(wire(span, transport), payload(span, transport));
        return times === null ? null : times - 1;
      }, format: percent },
      { id: "requests-per-element", title: "HTTP requests per element", hint: "upgrades, and the POSTs of BOSH", value: (span, transport) => per(requests(span, transport), elements(span, transport)), format: plain },
      { id: "connections-per-element", title: "Connections per element", value: (span, transport) => per(connections(span, transport), elements(span, transport)), format: plain },
      { id: "connections-per-session", title: "Connections per session opened", value: (span, transport) => per(connections(span, transport), opened(span, transport)), format: plain },
      // Nothing, while none of the polls was one that is timed.
      { id: "cpu-per-element", title: "Processor time per element", hint: "estimated from one of 64 polls", value: (span, transport) => per(cpu(span, transport), elements(span, transport)) || null, format: seconds },
    ],
  },
  { title: "Time through the gateway, to the server", rows: latencies("to_server") },
  { title: "Time through the gateway, to the client", rows: latencies("to_client") },
  {
    title: "Wait for a BOSH request to answer",
    rows: [0.5, 0.95, 0.99].map((q) => ({
      id: `wait-p${q * 100}`,
      title: `p${q * 100}`,
      value: (span, transport) => transport === "bosh" ? percentile(q, span.histogram("bosphorus_bosh_wait_seconds")) : undefined,
      format: seconds,
    })),
  },
];

class Comparison {
  #table;
  #rows = [];

  constructor(table) {
    this.#table = table;
    const head = make("tr");
    head.append(heading("", "col", make("span", "unseen", "Measure")));
    for (const { key, name } of TRANSPORTS) {
      const cell = heading(`own ${key}`, "col", name);
      cell.dataset.transport = key;
      head.append(cell);
    }
    head.append(heading("", "col", "BOSH ÷ WebSocket"));
    table.tHead.append(head);
    for (const { title, rows } of GROUPS) {
      const body = make("tbody");
      const group = make("tr", "group");
      const cell = heading("", "rowgroup", title);
      group.append(cell);
      body.append(group);
      for (const row of rows) body.append(this.#row(row));
      table.append(body);
    }
  }

  #row(row) {
    const line = make("tr");
    line.dataset.id = row.id;
    const title = heading("", "row", row.title);
    if (row.hint) title.append(make("span", "hint", row.hint));
    line.append(title);
    const cells = TRANSPORTS.map(({ key }) => {
      const cell = make("td", key);
      cell.dataset.transport = key;
      const [value, bar] = [make("span", "value"), make("span", "bar")];
      bar.setAttribute("aria-hidden", "true");
      cell.append(value, bar);
      line.append(cell);
      return { cell, value, bar };
    });
    const times = make("td", "times");
    line.append(times);
    this.#rows.push({ row, cells, times });
    return line;
  }

  show(span) {
    // The older framing is for few, and a column of nothing for everybody else.
    const legacy = samples(span.now, "bosphorus_sessions_opened_total", { transport: "websocket_legacy" }).length > 0;
    for (const cell of this.#table.querySelectorAll("[data-transport=websocket_legacy]")) cell.hidden = !legacy;
    for (const cell of this.#table.querySelectorAll(".group th")) cell.colSpan = TRANSPORTS.length + (legacy ? 2 : 1);
    for (const { row, cells, times } of this.#rows) {
      const values = TRANSPORTS.map(({ key }) => span.seconds > 0 ? row.value(span, key) : null);
      const most = Math.max(...values.map((value) => value ?? 0));
      cells.forEach(({ cell, value, bar }, at) => {
        const known = typeof values[at] === "number";
        setText(value, known ? row.format(values[at]) : values[at] === undefined ? "does not apply" : "no data yet");
        cell.classList.toggle("none", !known);
        if (known) cell.dataset.value = values[at];
        else delete cell.dataset.value;
        bar.style.width = known && most > 0 ? `${100 * values[at] / most}%` : "0";
      });
      const [websocket, , bosh] = values;
      const both = typeof websocket === "number" && typeof bosh === "number" && websocket > 0 && bosh > 0;
      setText(times, both ? `${plain(bosh / websocket)} ×` : "–");
    }
  }
}

function heading(className, scope, content) {
  const cell = make("th", className);
  cell.scope = scope;
  cell.append(content);
  return cell;
}

/** A table of which the rows come and go. `columns`: titles; `rows`: lists of texts. */
function fill(table, columns, rows, none) {
  if (table.tHead.rows.length === 0) {
    const head = make("tr");
    head.append(...columns.map((title) => heading("", "col", title)));
    table.tHead.append(head);
  }
  const body = table.tBodies[0];
  const text = JSON.stringify([rows, none]);
  if (body.dataset.text === text) return;
  body.dataset.text = text;
  table.tHead.hidden = rows.length === 0;
  const lines = rows.map((cells) => {
    const line = make("tr");
    cells.forEach((content, at) => line.append(at === 0 ? heading("", "row", content) : make("td", /^(up|down)$/.test(content) ? content : "", content)));
    return line;
  });
  if (lines.length === 0) {
    const line = make("tr");
    const cell = make("td", "none", none);
    cell.colSpan = columns.length;
    line.append(cell);
    lines.push(line);
  }
  body.replaceChildren(...lines);
}

const spaced = (label) => label.replaceAll("_", " ");

function showTables(span) {
  const byReason = new Map();
  for (const { labels } of samples(span.now, "bosphorus_sessions_ended_total")) {
    byReason.set(`${labels.reason} ${labels.blame}`, labels);
  }
  const ended = [...byReason.values()].map(({ reason, blame }) => ({
    reason, blame,
    counts: TRANSPORTS.map(({ key }) => span.count("bosphorus_sessions_ended_total", { transport: key, reason, blame })),
  })).map((one) => ({ ...one, all: one.counts.reduce((sum, count) => sum + count, 0) })).filter(({ all }) => all > 0);
  ended.sort((one, other) => other.all - one.all || one.reason.localeCompare(other.reason));
  fill(table("endings"), ["Reason", "Blame", "WebSocket", "BOSH"],
    ended.map(({ reason, blame, counts: [websocket, legacy, bosh] }) => [spaced(reason), blame, whole(websocket + legacy), whole(bosh)]),
    "No session has ended in this time.");

  const grown = (family, label) => samples(span.now, family)
    .map(({ labels }) => [labels[label], span.count(family, { [label]: labels[label] })])
    .filter(([, count]) => count > 0)
    .sort(([, one], [, other]) => other - one);
  const refused = [
    ...grown("bosphorus_upgrades_total", "outcome").filter(([outcome]) => outcome !== "accepted").map(([what, count]) => ["WebSocket upgrade", spaced(what), whole(count)]),
    ...grown("bosphorus_bosh_refused_total", "why").map(([what, count]) => ["BOSH request", spaced(what), whole(count)]),
    ...grown("bosphorus_limit_hits_total", "limit").map(([what, count]) => ["limit", what, whole(count)]),
  ];
  fill(table("refused"), ["What", "Why", "Times"], refused, "Nobody was refused, and no limit reached, in this time.");

  const census = samples(span.now, "bosphorus_census_sessions_total", { transport: "bosh" })
    .map(({ labels }) => [labels, span.count("bosphorus_census_sessions_total", labels)])
    .filter(([, count]) => count > 0)
    .sort(([, one], [, other]) => other - one)
    .slice(0, CENSUS);
  fill(table("census"), ["Client", "Page", "Domain", "Logins"],
    census.map(([{ client, origin, domain }, count]) => [spaced(client), origin, domain, whole(count)]),
    "Nobody has logged in over BOSH in this time.");

  const servers = samples(span.now, "bosphorus_upstream_server_up")
    .map(({ labels, value }) => [labels.server, value > 0 ? "up" : "down"]);
  fill(table("servers"), ["Server", "State"], servers, "No server is configured by name: DNS says where they are.");

  const connects = grown("bosphorus_upstream_connects_total", "outcome").map(([outcome, count]) => [spaced(outcome), whole(count)]);
  const took = span.histogram("bosphorus_upstream_connect_seconds");
  for (const q of connects.length > 0 ? [0.5, 0.95] : []) {
    const { value, beyond } = quantile(q, took) ?? {};
    if (value !== undefined) connects.push([`time to a stream, p${q * 100}`, `${beyond ? "over " : ""}${seconds(value)}`]);
  }
  fill(table("connects"), ["Outcome", "Times"], connects, "No stream was opened in this time.");
}

const table = (id) => document.getElementById(id);

const PLOTS = [
  { id: "sessions", title: "Open sessions", format: whole, value: (span, transport) => span.gauge("bosphorus_sessions", { transport }) },
  { id: "elements", title: "Elements per second", format: plain, value: (span, transport) => per(elements(span, transport), span.seconds) },
  { id: "wire", title: "Wire bytes per second", format: bytes, value: (span, transport) => per(wire(span, transport), span.seconds) },
  { id: "latency", title: "Time to the client, p95", format: seconds, value: (span, transport) => percentile(0.95, delivery(span, transport, "to_client")) },
];

class Page {
  #history = [];
  #seconds = 0;
  #last = 0;
  #times = new Times();
  #comparison = new Comparison(table("comparison"));
  #plots = PLOTS.map((plot) => {
    const root = make("figure");
    root.dataset.id = plot.id;
    document.getElementById("plots").append(root);
    const series = TRANSPORTS.filter(({ key }) => key !== "websocket_legacy");
    return { ...plot, series, drawn: new Plot(root, { title: plot.title, series, format: plot.format }) };
  });

  constructor() {
    const buttons = [...document.querySelectorAll("#ranges button")];
    for (const button of buttons) {
      button.addEventListener("click", () => {
        this.#seconds = Number(button.dataset.seconds);
        for (const one of buttons) one.setAttribute("aria-pressed", String(one === button));
        this.#show();
      });
    }
    setInterval(() => this.#tellAge(), 1_000);
  }

  /** Figures that came, by the way that is told. */
  take(snapshot, way) {
    const before = this.#history.at(-1);
    if (before && snapshot.uptime < before.uptime) {
      // Another process: nothing goes on from what was.
      this.#history = [];
      this.#times = new Times();
      for (const { drawn } of this.#plots) drawn.clear();
    }
    const previous = this.#history.at(-1);
    if (previous?.uptime === snapshot.uptime) return;
    this.#history.push(snapshot);
    const at = this.#times.of(snapshot);
    while (this.#history[0].uptime < snapshot.uptime - KEPT) this.#history.shift();
    this.#last = Date.now();
    this.way = way;
    this.#tell(snapshot.draining ? "warn" : "good", snapshot.draining ? "Draining" : way);
    if (previous) {
      const span = new Span(snapshot, previous);
      for (const { series, value, drawn } of this.#plots) drawn.add(series.map(({ key }) => value(span, key)), at);
    }
    this.#show();
  }

  #show() {
    const now = this.#history.at(-1);
    if (!now) return;
    setText(document.getElementById("process"), `${now.version}, up ${duration(now.uptime)}`);
    const from = now.uptime - this.#seconds;
    // The newest that is old enough, or the oldest that there is.
    const then = this.#seconds === 0 || from <= 0 ? null
      : this.#history.findLast(({ uptime }) => uptime <= from) ?? this.#history[0];
    const span = new Span(now, then);
    setText(document.getElementById("range-words"), then
      ? `Figures of the last ${duration(span.seconds)}${span.seconds < this.#seconds - 2 ? ": this page has been watching no longer" : ""}.`
      : `Figures since the process began, ${duration(now.uptime)} ago.`);
    this.#comparison.show(span);
    showTables(span);
  }

  #tellAge() {
    const silent = Date.now() - this.#last;
    if (silent < SILENT) return;
    this.#tell("bad", this.#last === 0 ? "No figures yet: the gateway does not answer." : "The gateway does not answer: the figures are old.");
  }

  #tell(state, words) {
    document.getElementById("feed-dot").className = `dot dot-${state}`;
    setText(document.getElementById("feed"), words);
  }
}

/** Keeps the page fed. */
class Feed {
  #page;
  #poll = null;

  constructor(page) {
    this.#page = page;
    this.#connect();
  }

  #connect() {
    const url = new URL("status/feed", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    socket.onmessage = ({ data }) => {
      this.#stopPolling();
      this.#page.take(JSON.parse(data), "Live");
    };
    socket.onclose = () => {
      this.#startPolling();
      setTimeout(() => this.#connect(), RETRY);
    };
  }

  #startPolling() {
    if (this.#poll !== null) return;
    const ask = async () => {
      const answer = await fetch("status.json", { cache: "no-store" }).catch(() => null);
      if (answer?.ok && this.#poll !== null) this.#page.take(await answer.json(), "Asking every two seconds");
    };
    this.#poll = setInterval(ask, POLL);
    ask();
  }

  #stopPolling() {
    clearInterval(this.#poll);
    this.#poll = null;
  }
}

new Feed(new Page());
