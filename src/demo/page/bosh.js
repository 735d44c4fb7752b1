// XMPP over BOSH (XEP-0124 and XEP-0206): every request carries what waits here, and the gateway
// holds one of them until it has something to say. See websocket.js for what a transport tells its
// owner.
//
// Requests are numbered by `rid`. What the network loses is asked for again, the same body with the
// same rid, and the gateway answers from memory: so nothing is lost and nothing comes twice.

import { NS, element, parse, write } from "./xml.js";
import { Ended, boshCondition } from "./words.js";

/** Seconds a request may be held. Under the minute after which most proxies give up. */
const WAIT = 55;
/** Requests held by the gateway; one more may be under way. */
const HOLD = 1;
/** Milliseconds beyond `wait` after which an answer counts as lost. */
const PATIENCE = 10_000;
/** Milliseconds that requests sent again must last for the network to count as mended. */
const STEADY = 1_000;
/** Seconds before a lost request is sent again: the first time, the second, … then it is over. */
const RETRIES = [2, 2, 4, 8, 15, 30];

export class BoshTransport {
  /** An answer to a request proves that the request was read. */
  confirms = true;
  title = "BOSH";

  #url;
  #domain;
  #on;
  /** Random, and far from 2^53, so that a session never gets there (XEP-0124 §14.1). */
  #rid = crypto.getRandomValues(new Uint32Array(1))[0] + 1;
  #sid = null;
  #requests = HOLD + 1;
  #wait = WAIT;
  /** What waits to be sent. A restart is an entry of its own: it travels alone. */
  #queue = [];
  /** rid → request that has no answer yet. */
  #open = new Map();
  /** rid → answer that came before the one it follows. */
  #early = new Map();
  /** The rid whose answer is read next. */
  #next = this.#rid;
  #failures = 0;
  #retry = null;
  /** Whether the owner was told that it stalls and not yet that it is mended; the timer of that. */
  #stalled = false;
  #steady = null;
  /** Seconds between requests that carry nothing, and the timer that minds them. */
  #polling = 5;
  #nudge = null;
  #leaving = false;
  /** Whether the goodbye was sent. */
  #said = false;

  constructor(url, domain, on) {
    this.#url = url;
    this.#domain = domain;
    this.#on = on;
  }

  /** Requests that have no answer yet. */
  get requests() {
    return this.#open.size;
  }

  open() {
    this.#post([], {
      "content": "text/xml; charset=utf-8",
      "hold": HOLD,
      "to": this.#domain,
      "ver": "1.11",
      "wait": WAIT,
      "xml:lang": "en",
      "xmpp:version": "1.0",
    });
  }

  restart() {
    this.#queue.push(RESTART);
    this.#pump();
  }

  send(node) {
    this.#queue.push(node);
    // Whatever is said in one breath travels in one request.
    queueMicrotask(() => this.#pump());
  }

  end() {
    if (this.#leaving) return;
    if (!this.#sid) return this.#close(new Ended("Disconnected."));
    this.#leaving = true;
    this.hurry();
    this.#pump();
    setTimeout(() => this.#close(new Ended("Disconnected.")), 3_000);
  }

  /** Says goodbye on a page that is about to go: nobody will read the answer. */
  leave() {
    if (!this.#sid) return;
    const body = this.#body(this.#rid++, this.#takeElements(), { type: "terminate" });
    navigator.sendBeacon(this.#url, body);
    this.#close(new Ended("Disconnected."));
  }

  /** Drops all requests, as a lost network does. They are sent again in a moment. */
  cut() {
    this.#fail("The connection was cut.");
  }

  /** Sends what is due now, without waiting out a pause. */
  hurry() {
    if (this.#retry !== null) this.#resend();
  }

  /** Sends if there is something to send, or if the gateway has no request to answer. */
  #pump() {
    if (!this.#on || !this.#sid || this.#retry !== null) return;
    // A goodbye may be one request more than the gateway allows (XEP-0124 §11).
    const most = this.#requests + (this.#leaving ? 1 : 0);
    while (!this.#said && this.#open.size < most) {
      if (this.#queue[0] === RESTART) {
        this.#queue.shift();
        this.#post([], { "to": this.#domain, "xml:lang": "en", "xmpp:restart": "true" });
      } else if (this.#queue.length > 0 || this.#leaving) {
        this.#post(this.#takeElements(), this.#goodbye());
      } else if (this.#open.size === 0) {
        this.#post([]);
      } else {
        return this.#askSoon();
      }
    }
  }

  /**
   * A request that is held with what it carried says nothing of its arrival. One more request makes
   * the gateway answer it; but an empty one may not come too soon (XEP-0124 §11).
   */
  #askSoon() {
    clearTimeout(this.#nudge);
    const unsure = () => [...this.#open.values()].some(({ elements }) => elements.length > 0);
    if (!unsure()) return;
    this.#nudge = setTimeout(() => {
      if (this.#on && this.#retry === null && this.#open.size < this.#requests && unsure()) this.#post([]);
    }, this.#polling * 1000 + 250);
  }

  #goodbye() {
    this.#said = this.#leaving && this.#queue.length === 0;
    return this.#said ? { type: "terminate" } : {};
  }

  #takeElements() {
    const restart = this.#queue.indexOf(RESTART);
    return this.#queue.splice(0, restart < 0 ? this.#queue.length : restart);
  }

  #body(rid, elements, attributes) {
    return write(element(NS.httpbind, "body", { rid, sid: this.#sid, ...attributes }, ...elements));
  }

  #post(elements, attributes = {}) {
    const rid = this.#rid++;
    // A copy: appending moves a node, and the owner still compares the original.
    const copies = elements.map((one) => one.cloneNode(true));
    const request = { rid, elements: [...elements], text: this.#body(rid, copies, attributes) };
    this.#open.set(rid, request);
    this.#fetch(request);
  }

  async #fetch(request) {
    const abort = new AbortController();
    request.abort = abort;
    const timer = setTimeout(() => abort.abort(), this.#wait * 1000 + PATIENCE);
    this.#on?.frame("out", request.text);
    try {
      const response = await fetch(this.#url, {
        method: "POST",
        headers: { "Content-Type": "text/xml; charset=utf-8" },
        body: request.text,
        cache: "no-store",
        credentials: "omit",
        signal: abort.signal,
      });
      if (response.status >= 500) throw new Error(`status ${response.status}`);
      const text = response.ok ? await response.text() : null;
      if (request.abort !== abort || !this.#on) return;
      if (text === null) {
        const gone = response.status === 404 ? "item-not-found" : "policy-violation";
        return this.#close(boshCondition(gone));
      }
      this.#on.frame("in", text);
      this.#answered(request, text);
    } catch {
      if (request.abort === abort) {
        this.#fail(this.#sid ? "The server went away." : "The server cannot be reached.");
      }
    } finally {
      clearTimeout(timer);
    }
  }

  #answered(request, text) {
    const body = parse(text);
    if (body?.localName !== "body" || body.namespaceURI !== NS.httpbind) {
      return this.#close(new Ended("The server's answer is not BOSH.", { final: true }));
    }
    if (body.getAttribute("type") === "error") {
      // Recoverable (XEP-0124 §17.3): everything without an answer is asked again.
      return this.#fail("The gateway asked for a request again.");
    }
    this.#open.delete(request.rid);
    this.#early.set(request.rid, { body, request });
    this.#failures = 0;
    this.#mend();
    // Two connections may answer in any order; the stream is in the order of the rids.
    while (this.#on && this.#early.has(this.#next)) {
      const answer = this.#early.get(this.#next);
      this.#early.delete(this.#next);
      this.#next += 1;
      this.#read(answer.body, answer.request);
    }
    this.#pump();
  }

  #read(body, request) {
    if (!this.#sid) {
      this.#sid = body.getAttribute("sid");
      this.#requests = Number(body.getAttribute("requests")) || HOLD + 1;
      this.#wait = Number(body.getAttribute("wait")) || WAIT;
      this.#polling = Number(body.getAttribute("polling")) || this.#polling;
    }
    this.#confirm(request);
    // What a request carried has arrived long before a held request is answered: the gateway says
    // how far it has read (XEP-0124 §9.1).
    const read = Number(body.getAttribute("ack") ?? 0);
    for (const other of this.#open.values()) if (other.rid <= read) this.#confirm(other);
    for (const node of [...body.children]) this.#on?.element(node);
    if (body.getAttribute("type") === "terminate") {
      this.#close(this.#leaving ? new Ended("Disconnected.") : boshCondition(body.getAttribute("condition")));
    }
  }

  #confirm(request) {
    const arrived = request.elements.splice(0);
    if (arrived.length > 0) this.#on?.confirmed(arrived);
  }

  /** The network failed: everything without an answer is asked again, after a pause. */
  #fail(words) {
    if (!this.#on || this.#retry !== null) return;
    for (const request of this.#open.values()) {
      const abort = request.abort;
      request.abort = null;
      abort?.abort();
    }
    const seconds = RETRIES[this.#failures];
    // Without a session there is nothing to keep; the owner begins anew.
    if (!this.#sid || seconds === undefined) return this.#close(new Ended(words));
    this.#failures += 1;
    this.#stalled = true;
    clearTimeout(this.#steady);
    this.#on.stalled(words, seconds);
    this.#retry = setTimeout(() => this.#resend(), seconds * 1000);
  }

  #resend() {
    clearTimeout(this.#retry);
    this.#retry = null;
    for (const request of this.#open.values()) this.#fetch(request);
    this.#pump();
    // The gateway may hold all of them as long as it likes: what is not refused is there.
    clearTimeout(this.#steady);
    this.#steady = setTimeout(() => this.#mend(), STEADY);
  }

  /** Requests reach the gateway again. */
  #mend() {
    clearTimeout(this.#steady);
    if (!this.#stalled) return;
    this.#stalled = false;
    this.#on?.mended();
  }

  #close(ended) {
    const on = this.#on;
    if (!on) return;
    this.#on = null;
    clearTimeout(this.#retry);
    clearTimeout(this.#nudge);
    clearTimeout(this.#steady);
    for (const request of this.#open.values()) request.abort?.abort();
    on.closed(ended);
  }
}

const RESTART = Symbol("restart");
