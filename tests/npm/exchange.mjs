// Logs in several clients and lets each send a message to each other. Prints one JSON object a line:
//   {"step": "login" | "message" | "logout", "who": …, "to": …, "ok": …, "detail": …}
// Argument: {"domain": …, "parties": [{"client": "strophe.js" | "strophe-1" | "stanza" |
//   "@xmpp/client", "transport": "ws" | "bosh", "url": …, "name": …, "password": …}, …]} as JSON.
// Strophe over BOSH runs in a browser's surroundings (jsdom) on a page of another origin, so that
// the answers' CORS headers decide whether it can read them, as they do in a browser.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { JSDOM, VirtualConsole } from "jsdom";
import { client as xmppClient, xml } from "@xmpp/client";
import * as stanza from "stanza";
import { $msg, $pres, Strophe } from "strophe.js";

const PATIENCE = 10_000;
const { domain, parties: wanted } = JSON.parse(process.argv[2]);
const fileOf = (name) => new URL(`./node_modules/${name}`, import.meta.url);
const manifestOf = (name) => createRequire(import.meta.url)(`./node_modules/${name}/package.json`);

/** What all have in common here: start() resolves to the full JID, send(to, body), stop(). */
class Party {
  constructor({ client, transport, url, name, password }) {
    const { name: published, version } = manifestOf(client);
    this.name = `${published} ${version} (${transport})`;
    Object.assign(this, { client, transport, url, account: { name, password } });
    this.bodies = [];
    this.waiting = [];
  }

  received(body) {
    if (!body) return;
    this.bodies.push(body);
    this.waiting = this.waiting.filter((wait) => !wait(body));
  }

  /** Resolves when a message with that body has come, be it long ago. */
  expect(body) {
    if (this.bodies.includes(body)) return Promise.resolve();
    return new Promise((resolve) => {
      this.waiting.push((came) => came === body && (resolve(), true));
    });
  }
}

/** Strophe as a page of another origin has it. */
function stropheInBrowser(client) {
  const console = new VirtualConsole();
  console.on("jsdomError", (error) => process.stdout.write(`jsdom: ${error.message}\n`));
  const options = { url: "http://page.test/", runScripts: "outside-only", virtualConsole: console };
  const { window } = new JSDOM("<!doctype html>", options);
  // What browsers have and jsdom lacks.
  Object.defineProperty(window, "crypto", { value: globalThis.crypto });
  // Cryptography takes only buffers of its own realm.
  Object.assign(window, { TextEncoder, TextDecoder, ArrayBuffer, Uint8Array });
  const script = client === "strophe-1" ? "strophe-1/strophe.js" : "strophe.js/dist/strophe.umd.cjs";
  window.eval(readFileSync(fileOf(script), "utf8"));
  return window;
}

class StropheParty extends Party {
  start() {
    const { name, password } = this.account;
    const library =
      this.transport === "bosh" ? stropheInBrowser(this.client) : { Strophe, $msg, $pres };
    const { Strophe: { Connection, Status } } = library;
    this.library = library;
    this.connection = new Connection(this.url);
    this.connection.addHandler(
      (message) => {
        const body = message.getElementsByTagName("body")[0];
        this.received(body && body.textContent);
        return true;
      },
      null,
      "message",
    );
    return new Promise((resolve, reject) => {
      this.connection.connect(`${name}@${domain}`, password, (status, condition) => {
        switch (status) {
          case Status.CONNECTED:
            this.connection.send(library.$pres().tree());
            resolve(this.connection.jid);
            break;
          case Status.DISCONNECTED:
            this.gone?.();
            reject(new Error("disconnected"));
            break;
          case Status.AUTHFAIL:
          case Status.CONNFAIL:
          case Status.ERROR:
            reject(new Error(`status ${status}: ${condition}`));
            break;
        }
      });
    });
  }

  send(to, body) {
    this.connection.send(this.library.$msg({ to, type: "chat" }).c("body").t(body).tree());
  }

  stop() {
    return new Promise((resolve) => {
      this.gone = resolve;
      this.connection.disconnect("done");
    });
  }
}

class StanzaParty extends Party {
  start() {
    const { name, password } = this.account;
    const { transport, url } = this;
    this.client = stanza.createClient({
      jid: `${name}@${domain}`,
      password,
      transports: { websocket: transport === "ws" && url, bosh: transport === "bosh" && url },
      autoReconnect: false,
    });
    this.client.on("message", (message) => this.received(message.body));
    return new Promise((resolve, reject) => {
      this.client.on("session:started", () => {
        this.client.sendPresence();
        resolve(this.client.jid);
      });
      this.client.on("auth:failed", () => reject(new Error("auth:failed")));
      this.client.on("stream:error", (error) => reject(new Error(JSON.stringify(error))));
      this.client.on("disconnected", (error) => reject(error ?? new Error("disconnected")));
      this.client.connect();
    });
  }

  send(to, body) {
    this.client.sendMessage({ to, body, type: "chat" });
  }

  stop() {
    return new Promise((resolve) => {
      this.client.on("disconnected", resolve);
      this.client.disconnect();
    });
  }
}

class XmppJsParty extends Party {
  async start() {
    const { name, password } = this.account;
    this.client = xmppClient({ service: this.url, domain, username: name, password });
    this.client.reconnect.stop();
    this.client.on("stanza", (element) => {
      if (element.is("message")) this.received(element.getChildText("body"));
    });
    const failed = new Promise((_, reject) => this.client.on("error", reject));
    const jid = await Promise.race([this.client.start(), failed]);
    await this.client.send(xml("presence"));
    return jid.toString();
  }

  send(to, body) {
    return this.client.send(xml("message", { to, type: "chat" }, xml("body", {}, body)));
  }

  stop() {
    return this.client.stop();
  }
}

/** Runs one step, prints its line, and returns its result or undefined. */
async function step(line, action) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`nothing for ${PATIENCE} ms`)), PATIENCE);
  });
  try {
    const result = await Promise.race([action(), late]);
    console.log(JSON.stringify({ ...line, ok: true, detail: typeof result === "string" ? result : "" }));
    return result;
  } catch (error) {
    console.log(JSON.stringify({ ...line, ok: false, detail: String(error?.message ?? error) }));
    return undefined;
  } finally {
    clearTimeout(timer);
  }
}

const kinds = {
  "strophe.js": StropheParty,
  "strophe-1": StropheParty,
  stanza: StanzaParty,
  "@xmpp/client": XmppJsParty,
};
const parties = wanted.map((party) => new kinds[party.client](party));
for (const party of parties) {
  party.jid = await step({ step: "login", who: party.name }, () => party.start());
}
for (const from of parties) {
  for (const to of parties) {
    if (from === to) continue;
    const body = `from ${from.name} to ${to.name}: <merhaba> & "dünya" 'ñ' 😀\n${"uzun ".repeat(200)}`;
    await step({ step: "message", who: from.name, to: to.name }, async () => {
      if (!from.jid || !to.jid) throw new Error("not logged in");
      await from.send(to.jid, body);
      await to.expect(body);
    });
  }
}
for (const party of parties) {
  await step({ step: "logout", who: party.name }, async () => {
    if (!party.jid) throw new Error("not logged in");
    await party.stop();
  });
}
process.exit(0);
