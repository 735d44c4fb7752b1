// Logs in one strophe.js, one stanza and one @xmpp/client and lets each send a message to each
// other. Prints one JSON object a line:
//   {"step": "login" | "message" | "logout", "who": …, "to": …, "ok": …, "detail": …}
// Argument: {"url": …, "domain": …, "accounts": [{"name": …, "password": …} × 3]} as JSON.

import { createRequire } from "node:module";
import { client as xmppClient, xml } from "@xmpp/client";
import * as stanza from "stanza";
import { $msg, $pres, Strophe } from "strophe.js";

const PATIENCE = 10_000;
const { url, domain, accounts } = JSON.parse(process.argv[2]);
const versionOf = (name) => createRequire(import.meta.url)(`./node_modules/${name}/package.json`).version;

/** What the three have in common here: start() resolves to the full JID, send(to, body), stop(). */
class Party {
  constructor(name) {
    this.name = name;
    this.title = `${name} ${versionOf(name)}`;
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

class StropheParty extends Party {
  constructor() {
    super("strophe.js");
  }

  start({ name, password }) {
    this.connection = new Strophe.Connection(url);
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
          case Strophe.Status.CONNECTED:
            this.connection.send($pres().tree());
            resolve(this.connection.jid);
            break;
          case Strophe.Status.DISCONNECTED:
            this.gone?.();
            reject(new Error("disconnected"));
            break;
          case Strophe.Status.AUTHFAIL:
          case Strophe.Status.CONNFAIL:
          case Strophe.Status.ERROR:
            reject(new Error(`status ${status}: ${condition}`));
            break;
        }
      });
    });
  }

  send(to, body) {
    this.connection.send($msg({ to, type: "chat" }).c("body").t(body).tree());
  }

  stop() {
    return new Promise((resolve) => {
      this.gone = resolve;
      this.connection.disconnect("done");
    });
  }
}

class StanzaParty extends Party {
  constructor() {
    super("stanza");
  }

  start({ name, password }) {
    this.client = stanza.createClient({
      jid: `${name}@${domain}`,
      password,
      transports: { websocket: url, bosh: false },
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
  constructor() {
    super("@xmpp/client");
  }

  async start({ name, password }) {
    this.client = xmppClient({ service: url, domain, username: name, password });
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

const parties = [new StropheParty(), new StanzaParty(), new XmppJsParty()];
for (const [at, party] of parties.entries()) {
  party.jid = await step({ step: "login", who: party.title }, () => party.start(accounts[at]));
}
for (const from of parties) {
  for (const to of parties) {
    if (from === to) continue;
    const body = `from ${from.name} to ${to.name}: <merhaba> & "dünya" 'ñ' 😀\n${"uzun ".repeat(200)}`;
    await step({ step: "message", who: from.title, to: to.title }, async () => {
      if (!from.jid || !to.jid) throw new Error("not logged in");
      await from.send(to.jid, body);
      await to.expect(body);
    });
  }
}
for (const party of parties) {
  await step({ step: "logout", who: party.title }, async () => {
    if (!party.jid) throw new Error("not logged in");
    await party.stop();
  });
}
process.exit(0);
