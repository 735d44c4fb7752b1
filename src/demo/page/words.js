// Why a connection is not there, in plain words.

import { NS, is } from "./xml.js";

/**
 * The end of a connection, or of an attempt. `words` are for the person; `final` means that trying
 * again would end the same way.
 */
export class Ended extends Error {
  constructor(words, { final = false, wrongPassword = false } = {}) {
    super(words);
    this.words = words;
    this.final = final;
    this.wrongPassword = wrongPassword;
  }
}

/** RFC 6120 §6.5. */
const SASL = {
  "account-disabled": "This account is switched off.",
  "aborted": "The login was broken off.",
  "credentials-expired": "The password has expired.",
  "encryption-required": "The server wants encryption before it accepts a password.",
  "invalid-mechanism": "The server does not accept this way to log in.",
  "mechanism-too-weak": "The server wants a safer way to log in.",
  "not-authorized": "Wrong password: the server does not let this user in with it. Here, the password is the user name.",
  "temporary-auth-failure": "The server cannot check passwords right now.",
};

/** RFC 6120 §4.9.3: the condition, its words, and whether trying again is pointless. */
const STREAM = {
  "conflict": ["Someone else connected as this user in this place.", true],
  "connection-timeout": ["The server heard nothing from here for too long."],
  "host-gone": ["The server no longer serves this domain.", true],
  "host-unknown": ["The server does not serve this domain.", true],
  "internal-server-error": ["The server made a mistake."],
  "not-authorized": ["The server wants a login first.", true],
  "not-well-formed": ["The server could not read what was sent.", true],
  "policy-violation": ["The server's rules forbid what was sent.", true],
  "remote-connection-failed": ["The XMPP server behind the gateway cannot be reached."],
  "reset": ["The server asked for a new login."],
  "resource-constraint": ["The server is too busy."],
  "system-shutdown": ["The server is shutting down."],
};

/** XEP-0124 §17.2: conditions of a terminating body. */
const BOSH = {
  "bad-request": ["The server could not read a request.", true],
  "host-gone": STREAM["host-gone"],
  "host-unknown": STREAM["host-unknown"],
  "improper-addressing": ["The request did not say which domain it wants.", true],
  "internal-server-error": STREAM["internal-server-error"],
  "item-not-found": ["The server no longer knows this session."],
  "policy-violation": STREAM["policy-violation"],
  "remote-connection-failed": STREAM["remote-connection-failed"],
  "remote-stream-error": ["The XMPP server ended the stream."],
  "system-shutdown": STREAM["system-shutdown"],
};

/** RFC 6120 §8.3.3: why a stanza came back. */
const STANZA = {
  "forbidden": "that is not allowed",
  "conflict": "the name is taken",
  "gone": "it is no longer there",
  "item-not-found": "there is nobody of that name",
  "not-acceptable": "it was not acceptable",
  "policy-violation": "the server's rules forbid it",
  "recipient-unavailable": "nobody is there to take it",
  "registration-required": "only members may",
  "remote-server-not-found": "that server cannot be found",
  "remote-server-timeout": "that server does not answer",
  "service-unavailable": "nobody is there to take it",
};

/** The words for a SASL `<failure/>`. */
export function saslFailure(failure) {
  const condition = conditionOf(failure, NS.sasl);
  return new Ended(SASL[condition] ?? withText("The login failed", failure, condition), {
    final: condition !== "temporary-auth-failure",
    wrongPassword: condition === "not-authorized",
  });
}

/** The words for a `<stream:error/>`. */
export function streamError(error) {
  const condition = conditionOf(error, NS.streamErrors);
  const [words, final] = STREAM[condition] ?? [withText("The stream failed", error, condition)];
  return new Ended(words, { final });
}

/** The words for the condition of a terminating `<body/>`. */
export function boshCondition(condition) {
  if (!condition) return new Ended("The server ended the session.");
  const [words, final] = BOSH[condition] ?? [`The session ended (${condition}).`];
  return new Ended(words, { final });
}

/** The words for the `<error/>` of a stanza: the end of a sentence. */
export function stanzaError(stanza) {
  const error = [...stanza.children].find((one) => is(one, "error", NS.client));
  const condition = error ? conditionOf(error, NS.stanzaErrors) : "undefined-condition";
  return STANZA[condition] ?? condition;
}

function conditionOf(node, namespace) {
  const found = [...node.children].find(
    (one) => one.namespaceURI === namespace && one.localName !== "text",
  );
  return found ? found.localName : "undefined-condition";
}

function withText(words, node, condition) {
  const text = [...node.children].find((one) => one.localName === "text")?.textContent.trim();
  return text ? `${words}: ${text}` : `${words} (${condition}).`;
}
