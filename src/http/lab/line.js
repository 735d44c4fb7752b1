// One session over one transport, that talks to itself: messages go to its own full address, and the
// time until each is back is measured.
//
// It tells its owner:
//   on.state(name, words)          "offline", "connecting", "online", "cut"
//   on.frame(direction, text)      bytes passed, "out" or "in"
//   on.latency(milliseconds)       a message came back

import { Stream, login } from "./login.js";
import { Ended } from "./words.js";
import { NS, child, element, isStanza, randomId } from "./xml.js";

/** Milliseconds after which a message that has not come back counts as lost. */
const LOST = 10_000;
/** Latencies and ids that are remembered. */
const KEPT = 5_000;
const HINTS = "urn:xmpp:hints";

const utf8 = new TextEncoder();

export class Line {
  #on;
  #make;
  #account = null;
  #stream = null;
  /** XEP-0198: { id, received, acked } while the server counts. */
  #managed = null;
  /** Stanzas that the server has not counted yet, the oldest first. */
  #unconfirmed = [];
  /** What was to be sent while there was no connection. */
  #outbox = [];
  /** id → message that has not come back. */
  #pending = new Map();
  #returned = new Set();
  #mended = null;
  #cutting = false;

  state = "offline";
  jid = "";
  counts = null;

  /** `make(domain, on)` makes the transport. */
  constructor({ key, title, make }, on) {
    this.key = key;
    this.title = title;
    this.#make = make;
    this.#on = on;
    this.forget();
  }

  /** Counts from zero. */
  forget() {
    this.counts = { sent: 0, returned: 0, twice: 0, lost: 0, frames: 0, out: 0, in: 0, latencies: [] };
  }

  get online() {
    return this.state === "online";
  }

  /** Requests that wait for an answer, or sockets that are open. */
  get held() {
    return this.#stream === null ? 0 : this.#stream.transport.requests ?? 1;
  }

  /** Logs in: `{ user, domain, password }`. Throws `Ended`. */
  async connect(account) {
    this.#account = account;
    this.#managed = null;
    this.#unconfirmed = [];
    await this.#open();
  }

  /** Leaves for good. */
  disconnect() {
    const stream = this.#stream;
    this.#stream = null;
    this.#managed = null;
    stream?.abandon();
    this.#say("offline", "Not connected.");
  }

  /** The page goes. */
  leave() {
    const transport = this.#stream?.transport;
    this.#stream = null;
    if (transport?.leave) transport.leave();
    else transport?.end();
  }

  /** Sends a message to this very session; gives the milliseconds until it is back, or null if it is lost. */
  send(body) {
    const message = { id: randomId(), body, at: performance.now(), settle: null };
    this.counts.sent += 1;
    this.#pending.set(message.id, message);
    const back = new Promise((resolve) => {
      const timer = setTimeout(() => message.settle(null), LOST);
      message.settle = (milliseconds) => {
        clearTimeout(timer);
        if (!this.#pending.delete(message.id)) return;
        if (milliseconds === null) this.counts.lost += 1;
        resolve(milliseconds);
      };
    });
    if (this.#stream !== null && this.state !== "connecting") this.#transmit(message);
    else this.#outbox.push(message);
    return back;
  }

  /**
   * Drops the connection without a goodbye and comes back at once; gives the words for how it came
   * back. Throws `Ended` if it does not.
   */
  async cut() {
    const stream = this.#stream;
    const mended = new Promise((resolve) => { this.#mended = resolve; });
    this.#cutting = true;
    stream.transport.cut();
    this.#cutting = false;
    if (this.#stream === stream) {
      // BOSH: the session lives on, and what is without an answer is asked again.
      stream.transport.hurry();
      await mended;
    }
    if (this.#stream === stream) return "the session went on (rid)";
    return await this.#open() ? "resumed (XEP-0198)" : "in a new session";
  }

  /** Gives whether an old session was resumed. */
  async #open() {
    const { user, domain, password } = this.#account;
    const stream = new Stream((on) => this.#make(domain, on), {
      frame: (direction, text) => this.#frame(direction, text),
      confirmed() {},
      stalled: (words) => stream === this.#stream && this.#say("cut", words),
      mended: () => stream === this.#stream && this.#isBack(),
    });
    this.#stream = stream;
    this.#say("connecting", `Connecting over ${this.title} …`);
    const say = (words) => stream === this.#stream && this.#say("connecting", words);
    const previous = this.#managed?.id ? this.#managed : null;
    try {
      stream.open();
      const outcome = await login(stream, { user, password, previous, say });
      if (stream !== this.#stream) throw new Ended("Disconnected.");
      return this.#begin(stream, outcome);
    } catch (error) {
      if (stream === this.#stream) {
        stream.abandon();
        this.#stream = null;
        const words = error.wrongPassword ? "The server does not accept this password." : error.words ?? error.message;
        this.#say("offline", words);
      }
      throw error;
    }
  }

  #begin(stream, { jid, managed, resumed }) {
    const fresh = resumed === undefined;
    this.state = "online";
    if (fresh) {
      this.jid = jid;
      this.#managed = managed ? { id: managed.id, received: 0, acked: 0 } : null;
      // The old session is gone, and what was under way in it with it.
      this.#unconfirmed = [];
    } else {
      this.#acknowledged(resumed);
      for (const stanza of this.#unconfirmed) stream.send(stanza);
    }
    stream.handOver({
      element: (node) => stream === this.#stream && this.#element(node),
      closed: (ended) => stream === this.#stream && this.#closed(ended),
    });
    if (stream !== this.#stream) throw new Ended("The connection was lost again.");
    // Some may have been given up by now.
    for (const message of this.#outbox.splice(0)) if (this.#pending.has(message.id)) this.#transmit(message);
    this.#say("online", `Connected as ${this.jid}`);
    return !fresh;
  }

  #isBack() {
    this.#say("online", `Connected as ${this.jid}`);
    this.#mended?.();
  }

  #closed(ended) {
    this.#stream = null;
    this.#say(this.#cutting ? "cut" : "offline", ended.words);
    this.#mended?.();
  }

  #transmit({ id, body }) {
    const stanza = element(NS.client, "message", { to: this.jid, type: "chat", id },
      element(NS.client, "body", {}, body), element(HINTS, "no-store"));
    if (this.#managed) {
      this.#unconfirmed.push(stanza);
      // What the server has is not kept for longer than that.
      if (this.#unconfirmed.length % 50 === 0) queueMicrotask(() => this.#stream?.send(element(NS.sm, "r")));
    }
    this.#stream.send(stanza);
  }

  /** XEP-0198 §4: the server has that many stanzas of ours. */
  #acknowledged(h) {
    const count = (h - this.#managed.acked) >>> 0;
    if (count > this.#unconfirmed.length) return;
    this.#managed.acked = h;
    this.#unconfirmed.splice(0, count);
  }

  #element(node) {
    if (node.namespaceURI === NS.sm && this.#managed) {
      if (node.localName === "r") this.#stream.send(element(NS.sm, "a", { h: this.#managed.received }));
      else if (node.localName === "a") this.#acknowledged(Number(node.getAttribute("h")));
    }
    if (!isStanza(node)) return;
    if (this.#managed) this.#managed.received = (this.#managed.received + 1) >>> 0;
    if (node.localName === "message") this.#message(node);
    else if (node.localName === "iq") this.#iq(node);
  }

  #message(node) {
    const id = node.getAttribute("id");
    const message = this.#pending.get(id);
    if (message === undefined) {
      if (this.#returned.has(id)) this.counts.twice += 1;
      return;
    }
    if (node.getAttribute("type") === "error") return message.settle(null);
    const milliseconds = performance.now() - message.at;
    this.#returned.add(id);
    if (this.#returned.size > KEPT) this.#returned.delete(this.#returned.values().next().value);
    this.counts.returned += 1;
    this.counts.latencies.push(milliseconds);
    if (this.counts.latencies.length > KEPT) this.counts.latencies.shift();
    this.#on.latency(milliseconds);
    message.settle(milliseconds);
  }

  /** Servers ask whether one is there (XEP-0199); what else they ask is not for us (RFC 6120 §8.4). */
  #iq(node) {
    const type = node.getAttribute("type");
    if (type !== "get" && type !== "set") return;
    const [id, to] = [node.getAttribute("id"), node.getAttribute("from")];
    const known = child(node, "ping", NS.ping) !== null;
    const error = known ? null : element(NS.client, "error", { type: "cancel" }, element(NS.stanzaErrors, "service-unavailable"));
    const stanza = element(NS.client, "iq", { id, to, type: known ? "result" : "error" }, error);
    if (this.#managed) this.#unconfirmed.push(stanza);
    this.#stream.send(stanza);
  }

  #frame(direction, text) {
    if (direction === "out") this.counts.frames += 1;
    this.counts[direction] += utf8.encode(text).length;
    this.#on.frame(direction, text);
  }

  #say(name, words) {
    this.state = name;
    this.#on.state(name, words);
  }
}
