// XML with the browser's own parser and serializer: the few functions that the rest of the page
// builds and reads stanzas with.

export const NS = {
  bind: "urn:ietf:params:xml:ns:xmpp-bind",
  client: "jabber:client",
  delay: "urn:xmpp:delay",
  disco: "http://jabber.org/protocol/disco#info",
  framing: "urn:ietf:params:xml:ns:xmpp-framing",
  httpbind: "http://jabber.org/protocol/httpbind",
  muc: "http://jabber.org/protocol/muc",
  mucUser: "http://jabber.org/protocol/muc#user",
  ping: "urn:xmpp:ping",
  roster: "jabber:iq:roster",
  sasl: "urn:ietf:params:xml:ns:xmpp-sasl",
  session: "urn:ietf:params:xml:ns:xmpp-session",
  sm: "urn:xmpp:sm:3",
  stanzaErrors: "urn:ietf:params:xml:ns:xmpp-stanzas",
  streamErrors: "urn:ietf:params:xml:ns:xmpp-streams",
  streams: "http://etherx.jabber.org/streams",
  xbosh: "urn:xmpp:xbosh",
  xml: "http://www.w3.org/XML/1998/namespace",
};

/** Attributes that are not in the empty namespace, by the name they are written with. */
const PREFIXED = { "xml:lang": NS.xml, "xmpp:restart": NS.xbosh, "xmpp:version": NS.xbosh };

const factory = document.implementation.createDocument(null, null);

/**
 * An element. Attributes that are null or undefined are left out, as are such children; strings
 * become text.
 */
export function element(namespace, name, attributes = {}, ...children) {
  const made = factory.createElementNS(namespace, name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) {
      made.setAttributeNS(PREFIXED[key] ?? null, key, allowed(String(value)));
    }
  }
  for (const child of children) {
    if (child === null || child === undefined) continue;
    made.append(typeof child === "string" ? factory.createTextNode(allowed(child)) : child);
  }
  return made;
}

/** The text without what XML 1.0 §2.2 forbids: a serializer would write it all the same. */
function allowed(text) {
  return text.replace(/[^\t\n\r\u0020-\uD7FF\uE000-\uFFFD\u{10000}-\u{10FFFF}]/gu, "\uFFFD");
}

/** The root element of a text, or null if the text is not well-formed. */
export function parse(text) {
  const read = (what) => new DOMParser().parseFromString(what, "application/xml");
  const failed = (parsed) => parsed.getElementsByTagName(ERROR).length > 0;
  const parsed = read(text);
  if (!failed(parsed)) return parsed.documentElement;
  // A failure is an element in the document; but a peer may send one of that name.
  const renamed = text.replaceAll(ERROR, "x".repeat(ERROR.length));
  return renamed === text || failed(read(renamed)) ? null : parsed.documentElement;
}

/** What browsers put into a document that they could not parse. */
const ERROR = "parsererror";

/** An element as text, with every namespace it needs. */
export function write(node) {
  return new XMLSerializer().serializeToString(node);
}

/** Whether it is that element. */
export function is(node, name, namespace) {
  return node.localName === name && node.namespaceURI === namespace;
}

/** The first child element of that name, or null. */
export function child(node, name, namespace) {
  return [...node.children].find((one) => is(one, name, namespace)) ?? null;
}

/** Whether it is a message, a presence or an iq: what XEP-0198 counts. */
export function isStanza(node) {
  return node.namespaceURI === NS.client && ["message", "presence", "iq"].includes(node.localName);
}

/** `name@domain` of `name@domain/resource`. */
export function bare(jid) {
  return jid.split("/", 1)[0];
}

/** The part before the `@`, or all of it. */
export function local(jid) {
  return bare(jid).split("@", 1)[0];
}

/** The part behind the first `/`, or "". */
export function resource(jid) {
  const slash = jid.indexOf("/");
  return slash < 0 ? "" : jid.slice(slash + 1);
}

/** A text that nobody guesses: ids of stanzas. */
export function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
