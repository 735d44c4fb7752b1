// XMPP over WebSocket (RFC 7395): one stanza is one text message.
//
// A transport carries elements and knows nothing of what they mean. It tells its owner:
//   on.element(element)            one came
//   on.frame(direction, text)      bytes passed, "out" or "in"
//   on.confirmed(elements)         these reached the gateway (only if `confirms`)
//   on.stalled(words, seconds)     the network fails; it tries again by itself (BOSH)
//   on.mended()                    and it works again (BOSH)
//   on.closed(ended)               it is over, for good

import { NS, element, is, parse, write } from "./xml.js";
import { Ended } from "./words.js";

/** How long the other side may take to say goodbye, in milliseconds. */
const GOODBYE = 3_000;

export class WebSocketTransport {
  /** TCP confirms nothing to a page: XEP-0198 is for that. */
  confirms = false;
  title = "WebSocket";

  #url;
  #domain;
  #on;
  #socket = null;
  #opened = false;
  #leaving = false;

  constructor(url, domain, on) {
    this.#url = url;
    this.#domain = domain;
    this.#on = on;
  }

  open() {
    const socket = new WebSocket(this.#url, "xmpp");
    this.#socket = socket;
    socket.onopen = () => {
      this.#opened = true;
      this.restart();
    };
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code }) => this.#close(this.#why(code));
  }

  /** A new stream on the same connection: the first one, and the one after SASL. */
  restart() {
    this.send(element(NS.framing, "open", { to: this.#domain, version: "1.0", "xml:lang": "en" }));
  }

  send(node) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    const text = write(node);
    this.#on?.frame("out", text);
    this.#socket.send(text);
  }

  /** Says goodbye and leaves. */
  end() {
    if (this.#leaving) return;
    if (!this.#opened) return this.#close(new Ended("Disconnected."));
    this.#leaving = true;
    this.send(element(NS.framing, "close"));
    setTimeout(() => this.#socket?.close(1000), GOODBYE);
  }

  /** Drops the connection without a goodbye, as a tunnel or a closed lid does. */
  cut() {
    // A page cannot break TCP; but without <close/> the gateway takes this for a loss (RFC 7395 §3.6).
    this.#close(new Ended("The connection was cut."));
  }

  #receive(text) {
    this.#on?.frame("in", text);
    const node = typeof text === "string" ? parse(text) : null;
    if (node === null) {
      return this.#close(new Ended("The server sent something that is not XML.", { final: true }));
    }
    if (is(node, "open", NS.framing)) return;
    if (!is(node, "close", NS.framing)) return this.#on?.element(node);
    if (!this.#leaving) this.send(element(NS.framing, "close"));
    this.#close(new Ended(this.#leaving ? "Disconnected." : "The server ended the session."));
  }

  #why(code) {
    if (this.#leaving) return new Ended("Disconnected.");
    if (!this.#opened) return new Ended("The server cannot be reached.");
    return new Ended(code === 1001 ? "The server is going away." : "The server went away.");
  }

  #close(ended) {
    const on = this.#on;
    if (!on) return;
    this.#on = null;
    const socket = this.#socket;
    if (socket) {
      socket.onmessage = socket.onclose = null;
      // Browsers complain of a socket that is closed before it is open.
      socket.onopen = () => socket.close(1000);
      if (socket.readyState !== WebSocket.CONNECTING) socket.close();
    }
    on.closed(ended);
  }
}
