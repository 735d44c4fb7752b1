// From a new connection to a session: SASL, then resumption (XEP-0198 §5) or resource binding.

import { NS, child, element, is, randomId } from "./xml.js";
import { base64, choose } from "./scram.js";
import { Ended, saslFailure, stanzaError, streamError } from "./words.js";

/** How long the server may take for any one step, in milliseconds. */
const PATIENCE = 20_000;

/**
 * One transport and what came over it. During the login the elements are taken one by one with
 * `next`; `handOver` gives the rest, and all that follow, to the session.
 */
export class Stream {
  #transport;
  #inbox = [];
  #waiting = null;
  #ended = null;
  #error = null;
  #handlers = null;

  /** `makeTransport(on)` makes the transport; `tell` hears of frames, stalls and confirmations. */
  constructor(makeTransport, tell) {
    this.#transport = makeTransport({
      element: (node) => this.#element(node),
      closed: (ended) => this.#closed(ended),
      frame: (direction, text) => tell.frame(direction, text),
      confirmed: (elements) => tell.confirmed(elements),
      stalled: (words, seconds) => tell.stalled(words, seconds),
      mended: () => tell.mended(),
    });
  }

  get transport() {
    return this.#transport;
  }

  open() {
    this.#transport.open();
  }

  send(node) {
    this.#transport.send(node);
  }

  /** The next element; throws `Ended` if there will be none. */
  next() {
    if (this.#inbox.length > 0) return Promise.resolve(this.#inbox.shift());
    if (this.#ended) return Promise.reject(this.#ended);
    return new Promise((resolve, reject) => {
      const late = () => reject(new Ended("The server does not answer."));
      const timer = setTimeout(late, PATIENCE);
      this.#waiting = (settle) => {
        this.#waiting = null;
        clearTimeout(timer);
        settle(resolve, reject);
      };
    });
  }

  /** The features of a stream. */
  async features() {
    return this.until((node) => is(node, "features", NS.streams));
  }

  /** The next element that fits; those before it are for the session. */
  async until(fits) {
    const others = [];
    for (;;) {
      const node = await this.next();
      if (fits(node)) {
        this.#inbox.unshift(...others);
        return node;
      }
      others.push(node);
    }
  }

  /** Sends an iq and gives its result. */
  async ask(type, payload) {
    const id = randomId();
    this.send(element(NS.client, "iq", { id, type }, payload));
    const answer = await this.until((node) => is(node, "iq", NS.client) && node.getAttribute("id") === id);
    if (answer.getAttribute("type") === "error") {
      throw new Ended(`The server refused: ${stanzaError(answer)}.`, { final: true });
    }
    return answer;
  }

  handOver(handlers) {
    this.#handlers = handlers;
    for (const node of this.#inbox.splice(0)) handlers.element(node);
    if (this.#ended) handlers.closed(this.#ended);
  }

  /** Says goodbye, and takes no further notice of it. */
  abandon() {
    this.#handlers = { element() {}, closed() {} };
    this.#transport.end();
  }

  #element(node) {
    if (is(node, "error", NS.streams)) {
      // The end of the connection follows; this is its reason.
      this.#error = streamError(node);
    } else if (this.#handlers) {
      this.#handlers.element(node);
    } else if (this.#waiting) {
      this.#waiting((resolve) => resolve(node));
    } else {
      this.#inbox.push(node);
    }
  }

  #closed(ended) {
    this.#ended = this.#error ?? ended;
    if (this.#handlers) this.#handlers.closed(this.#ended);
    else this.#waiting?.((_, reject) => reject(this.#ended));
  }
}

/**
 * Logs in on an open stream. `say` hears what goes on; `previous` is `{ id, received }` of a
 * session that might be resumed, or null. Gives `{ jid }` and, if a session was resumed,
 * `{ resumed: h }`, or, if the server counts stanzas, `{ managed: { id } }`.
 */
export async function login(stream, { user, password, previous, say }) {
  const features = await stream.features();
  await authenticate(stream, features, user, password, say);
  stream.transport.restart();
  const offered = await stream.features();
  // Over BOSH the gateway's own memory does what stream management is for.
  const canManage = !stream.transport.confirms && child(offered, "sm", NS.sm) !== null;
  if (previous && canManage) {
    say("Resuming the session …");
    const h = await resume(stream, previous);
    if (h !== null) return { resumed: h };
  }
  say("Getting ready …");
  const bound = await stream.ask("set", element(NS.bind, "bind"));
  const jid = child(bound, "bind", NS.bind)?.textContent.trim();
  if (!jid) throw new Ended("The server gave no address.", { final: true });
  const session = child(offered, "session", NS.session);
  if (session && child(session, "optional", NS.session) === null) {
    await stream.ask("set", element(NS.session, "session"));
  }
  return { jid, managed: canManage ? await enable(stream) : null };
}

async function authenticate(stream, features, user, password, say) {
  const list = child(features, "mechanisms", NS.sasl);
  const offered = [...(list?.children ?? [])].map((one) => one.textContent.trim());
  const mechanism = choose(offered, user, password);
  say(`Logging in (${mechanism.name}) …`);
  // RFC 6120 §6.4.2: "=" is an initial response of no length.
  const first = base64.encodeText(await mechanism.first()) || "=";
  stream.send(element(NS.sasl, "auth", { mechanism: mechanism.name }, first));
  for (;;) {
    const node = await stream.until((one) => one.namespaceURI === NS.sasl);
    const text = () => base64.decodeText(node.textContent.trim());
    if (node.localName === "challenge") {
      const answer = await mechanism.answer(text());
      stream.send(element(NS.sasl, "response", {}, base64.encodeText(answer)));
    } else if (node.localName === "success") {
      return mechanism.check(text());
    } else {
      throw saslFailure(node);
    }
  }
}

/** The server's count of our stanzas, or null if it does not remember the session. */
async function resume(stream, { id, received }) {
  stream.send(element(NS.sm, "resume", { previd: id, h: received }));
  const answer = await stream.until((node) => node.namespaceURI === NS.sm);
  return answer.localName === "resumed" ? Number(answer.getAttribute("h")) : null;
}

async function enable(stream) {
  stream.send(element(NS.sm, "enable", { resume: "true" }));
  const answer = await stream.until((node) => node.namespaceURI === NS.sm);
  if (answer.localName !== "enabled") return null;
  const resumable = ["true", "1"].includes(answer.getAttribute("resume"));
  return { id: resumable ? answer.getAttribute("id") : null };
}
