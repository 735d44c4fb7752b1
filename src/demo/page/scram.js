// SASL: SCRAM (RFC 5802, RFC 7677) with the browser's own cryptography, and PLAIN (RFC 4616) where
// there is nothing better. Channel binding is beyond a page's reach, so "n" it is.

import { Ended } from "./words.js";

/** The best first. */
const HASHES = { "SCRAM-SHA-256": "SHA-256", "SCRAM-SHA-1": "SHA-1" };
/** A server may ask for work; for minutes of it, it may not. */
const MAX_ITERATIONS = 1_000_000;

const utf8 = new TextEncoder();
const fromUtf8 = new TextDecoder();

/**
 * The mechanism to use of those offered. It has `name`, `first()` (the initial response),
 * `answer(challenge)` and `check(success)`, all in bare text and asynchronous; the caller does the
 * base64. Throws `Ended` if there is none.
 */
export function choose(offered, user, password) {
  // Pages from elsewhere than localhost or https get no crypto.subtle.
  const canHash = Boolean(globalThis.crypto?.subtle);
  const scram = Object.keys(HASHES).find((name) => offered.includes(name));
  if (scram && canHash) return new Scram(scram, user, password);
  if (offered.includes("PLAIN")) return new Plain(user, password);
  if (scram) {
    throw new Ended("To hash a password the browser wants this page from localhost or over https.", { final: true });
  }
  throw new Ended("The server offers no way to log in that this page knows.", { final: true });
}

export const base64 = {
  encode: (bytes) => btoa(String.fromCharCode(...bytes)),
  decode: (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0)),
  encodeText: (text) => base64.encode(utf8.encode(text)),
  decodeText: (text) => fromUtf8.decode(base64.decode(text)),
};

class Plain {
  constructor(user, password) {
    this.name = "PLAIN";
    this.message = `\0${user}\0${password}`;
  }

  async first() {
    return this.message;
  }

  async answer() {
    throw new Ended("The server asked a question that PLAIN does not have.", { final: true });
  }

  async check() {}
}

class Scram {
  constructor(name, user, password) {
    this.name = name;
    this.hash = HASHES[name];
    // SASLprep in the main: what looks the same is the same.
    this.password = utf8.encode(password.normalize("NFKC"));
    this.nonce = base64.encode(crypto.getRandomValues(new Uint8Array(18)));
    const escaped = user.normalize("NFKC").replaceAll("=", "=3D").replaceAll(",", "=2C");
    this.bareFirst = `n=${escaped},r=${this.nonce}`;
  }

  async first() {
    return `n,,${this.bareFirst}`;
  }

  async answer(challenge) {
    const { r: nonce, s: salt, i: count } = fields(challenge);
    const iterations = Number(count);
    if (!nonce?.startsWith(this.nonce) || !salt || !(iterations > 0 && iterations <= MAX_ITERATIONS)) {
      throw new Ended("The server's challenge makes no sense.", { final: true });
    }
    const salted = await this.derive(base64.decode(salt), iterations);
    const clientKey = await this.hmac(salted, "Client Key");
    const storedKey = new Uint8Array(await crypto.subtle.digest(this.hash, clientKey));
    const serverKey = await this.hmac(salted, "Server Key");
    // "biws" is the base64 of "n,,".
    const withoutProof = `c=biws,r=${nonce}`;
    const exchange = `${this.bareFirst},${challenge},${withoutProof}`;
    const signature = await this.hmac(storedKey, exchange);
    const proof = clientKey.map((byte, at) => byte ^ signature[at]);
    this.expected = base64.encode(await this.hmac(serverKey, exchange));
    return `${withoutProof},p=${base64.encode(proof)}`;
  }

  /** The server knows the password too, or it is not that server. */
  async check(success) {
    if (!this.expected || fields(success).v !== this.expected) {
      throw new Ended("The server could not prove that it knows the password.", { final: true });
    }
  }

  async derive(salt, iterations) {
    const key = await crypto.subtle.importKey("raw", this.password, "PBKDF2", false, ["deriveBits"]);
    const bits = this.hash === "SHA-256" ? 256 : 160;
    const how = { name: "PBKDF2", hash: this.hash, salt, iterations };
    return new Uint8Array(await crypto.subtle.deriveBits(how, key, bits));
  }

  async hmac(key, text) {
    const how = { name: "HMAC", hash: this.hash };
    const imported = await crypto.subtle.importKey("raw", key, how, false, ["sign"]);
    return new Uint8Array(await crypto.subtle.sign("HMAC", imported, utf8.encode(text)));
  }
}

/** `a=1,b=2` as an object. */
function fields(text) {
  return Object.fromEntries(text.split(",").map((one) => [one.slice(0, 1), one.slice(2)]));
}
