// The life of a user's session, over whatever connections it takes: logged in, lost, back again;
// and the stanzas that pass meanwhile.
//
// It tells its owner:
//   on.state({ name, words, seconds, wrongPassword })
//        name: "offline", "connecting", "online", "waiting" (for `seconds`), "leaving"
//   on.frame(direction, text)
//   on.presence(jid)               who that is shown to be has changed; see `presenceOf`
//   on.roster()                    the list has changed; see `roster`
//   on.message({ from, to, type, body, id, error, delayed, mine })
//   on.confirmed(id)               a message of ours has reached the server

import {
  NS, bare, child, element, is, isStanza, local, randomId, resource,
} from "./xml.js";
import { Stream, login } from "./login.js";
import { Ended, stanzaError } from "./words.js";

/** Seconds before the next attempt; the last one is repeated. */
const DELAYS = [2, 2, 4, 8, 15, 30];
/** Milliseconds without a byte after which the server is asked whether it is there, and for how long. */
const QUIET = 60_000;
const SILENT = 20_000;
/** Ids of messages that are remembered so that none is shown twice. */
const SEEN = 500;

export class Session {
  #settings;
  #on;
  #wanted = false;
  #attempt = 0;
  #countdown = null;
  #stream = null;
  /** The state that was last told. */
  #said = "offline";
  /** The stream that has come through its login. */
  #begun = null;
  #online = false;

  /** Our full address, "" before the first login. */
  jid = "";
  /** bare JID → name of the roster. */
  roster = new Map();
  /** bare JID → Map(resource → { show, status }). */
  #presence = new Map();
  /** Rooms to be in: bare JID → { nick, joined }. */
  #rooms = new Map();
  #show = "";

  /** XEP-0198: { id, received, acked } while the server counts, else null. */
  #managed = null;
  /** Stanzas of which we do not know that they arrived, the oldest first. */
  #unconfirmed = [];
  /** Messages written while there was no connection. */
  #outbox = [];
  #seen = new Set();
  /** When the last frame passed, who looks at that, and when the server was asked for a sign. */
  #heard = 0;
  #watch = null;
  #asked = null;

  /** `settings`: { user, password, domain, makeTransport(on), title }. */
  constructor(settings, on) {
    this.#settings = settings;
    this.#on = on;
  }

  get online() {
    return this.#online;
  }

  /** Whether there is a session to send in: a transport that stalls keeps what it is given. */
  get #carries() {
    return this.#stream !== null && this.#stream === this.#begun;
  }

  connect() {
    this.#wanted = true;
    this.#attempt = 0;
    this.#open();
  }

  /** Leaves for good. */
  disconnect() {
    this.#wanted = false;
    this.#stopWaiting();
    if (!this.#online) {
      this.#drop();
      return this.#say("offline", "Not connected.");
    }
    this.#say("leaving", "Disconnecting …");
    this.#stream.send(element(NS.client, "presence", { type: "unavailable" }));
    this.#stream.transport.end();
  }

  /** Loses the connection without a goodbye. What follows is what follows any loss. */
  cut() {
    this.#stream?.transport.cut();
  }

  /** Does not wait any longer. */
  hurry() {
    if (this.#countdown === null) return;
    const transport = this.#stream?.transport;
    this.#stopWaiting();
    if (transport?.hurry) transport.hurry();
    else this.#open();
  }

  /** The page goes: says goodbye as far as that is still possible. */
  leave() {
    this.#wanted = false;
    this.#stopWaiting();
    const transport = this.#stream?.transport;
    if (!this.#online || !transport) return this.#drop();
    this.#stream.send(element(NS.client, "presence", { type: "unavailable" }));
    if (transport.leave) transport.leave();
    else transport.end();
  }

  /** Sends a message, now or once there is a connection; gives its id. `type`: chat, groupchat. */
  message(to, type, body) {
    const id = randomId();
    const stanza = element(NS.client, "message", { to, type, id }, element(NS.client, "body", {}, body));
    if (this.#carries) this.#transmit(stanza);
    else this.#outbox.push(stanza);
    return id;
  }

  /** Enters a room (XEP-0045), and again after each new login. */
  join(room) {
    if (this.#rooms.has(room)) return;
    this.#rooms.set(room, { nick: this.#settings.user, joined: false });
    if (this.#carries) this.#enter(room);
  }

  /** What others see: "" (available), "away", "dnd". */
  show(value) {
    this.#show = value;
    if (!this.#carries) return;
    this.#transmit(this.#ownPresence());
    for (const [room, { nick }] of this.#rooms) this.#transmit(this.#ownPresence(`${room}/${nick}`));
  }

  /**
   * How a contact is: `{ state: "online" | "away" | "offline", words }`; of a room, `{ state, words,
   * others }` with the number of people in it.
   */
  presenceOf(jid) {
    if (!this.#online) return { state: "offline", words: "" };
    const resources = this.#presence.get(jid) ?? new Map();
    if (this.#rooms.has(jid)) {
      const inside = this.#rooms.get(jid).joined;
      const people = resources.size === 1 ? "1 person" : `${resources.size} people`;
      return inside ? { state: "online", words: people } : { state: "offline", words: "not entered" };
    }
    const shows = [...resources.values()];
    if (shows.length === 0) return { state: "offline", words: "offline" };
    if (shows.some((show) => show === "" || show === "chat")) return { state: "online", words: "online" };
    return shows.includes("dnd")
      ? { state: "away", words: "do not disturb" }
      : { state: "away", words: "away" };
  }

  // --- connections

  async #open() {
    const { user, password, makeTransport, title } = this.#settings;
    const stream = new Stream(makeTransport, {
      frame: (direction, text) => {
        this.#heard = Date.now();
        this.#on.frame(direction, text);
      },
      confirmed: (elements) => this.#confirm((one) => elements.includes(one)),
      stalled: (words, seconds) => stream === this.#stream && this.#stalled(words, seconds),
      mended: () => stream === this.#stream && this.#mended(),
    });
    this.#stream = stream;
    this.#say("connecting", `Connecting over ${title} …`);
    const say = (words) => stream === this.#stream && this.#say("connecting", words);
    const previous = this.#managed?.id ? this.#managed : null;
    try {
      stream.open();
      const outcome = await login(stream, { user, password, previous, say });
      if (stream === this.#stream) this.#begin(stream, outcome);
    } catch (error) {
      if (stream !== this.#stream) return;
      stream.abandon();
      this.#lost(error instanceof Ended ? error : new Ended(`The login failed: ${error.message}`, { final: true }));
    }
  }

  #begin(stream, { jid, managed, resumed }) {
    const fresh = resumed === undefined;
    this.#begun = stream;
    this.#online = true;
    this.#attempt = 0;
    if (fresh) {
      this.jid = jid;
      this.#managed = managed ? { id: managed.id, received: 0, acked: 0 } : null;
      this.#presence.clear();
      for (const room of this.#rooms.values()) room.joined = false;
      // The old session is gone, and with it what it had not confirmed.
      const lost = this.#unconfirmed.splice(0).filter((one) => one.localName === "message");
      this.#outbox.unshift(...lost);
    } else {
      this.#acknowledged(resumed);
      for (const stanza of this.#unconfirmed) stream.send(stanza);
      stream.send(element(NS.sm, "r"));
    }
    stream.handOver({
      element: (node) => stream === this.#stream && this.#element(node),
      closed: (ended) => stream === this.#stream && this.#lost(ended),
    });
    if (stream !== this.#stream) return;
    this.#startWatch();
    if (fresh) {
      this.#transmit(element(NS.client, "iq", { id: "roster", type: "get" }, element(NS.roster, "query")));
      this.#transmit(this.#ownPresence());
      for (const room of this.#rooms.keys()) this.#enter(room);
    }
    for (const stanza of this.#outbox.splice(0)) this.#transmit(stanza);
    const how = fresh ? `Connected over ${this.#settings.title}.` : "Connected again: the session was resumed.";
    this.#say("online", how);
  }

  #lost(ended) {
    this.#online = false;
    this.#stopWatch();
    this.#stopWaiting();
    this.#stream = null;
    const again = this.#wanted && !ended.final;
    if (!again) {
      this.#wanted = false;
      this.#managed = null;
      const left = this.#unconfirmed.splice(0).concat(this.#outbox.splice(0));
      for (const stanza of left) this.#unsent(stanza);
      this.#say("offline", ended.words, { wrongPassword: ended.wrongPassword });
      return;
    }
    const seconds = DELAYS[Math.min(this.#attempt, DELAYS.length - 1)];
    this.#attempt += 1;
    this.#wait(ended.words, seconds, () => this.#open());
  }

  /** The transport lost its network and tries again by itself; the session lives on. */
  #stalled(words, seconds) {
    this.#online = false;
    this.#wait(words, seconds, () => {});
  }

  #mended() {
    this.#stopWaiting();
    // In the middle of a login there is nothing to go on with.
    if (this.#begun !== this.#stream) return;
    this.#online = true;
    for (const stanza of this.#outbox.splice(0)) this.#transmit(stanza);
    this.#say("online", "Connected again: what was under way was sent again.");
  }

  #wait(words, seconds, then) {
    this.#stopWaiting();
    // Not so many ticks: in a page that is not seen they may come once a minute.
    const due = Date.now() + seconds * 1000;
    this.#say("waiting", words, { seconds });
    this.#countdown = setInterval(() => {
      const left = Math.round((due - Date.now()) / 1000);
      if (left > 0) return this.#say("waiting", words, { seconds: left });
      this.#stopWaiting();
      then();
    }, 1000);
  }

  #stopWaiting() {
    clearInterval(this.#countdown);
    this.#countdown = null;
  }

  #drop() {
    const stream = this.#stream;
    this.#stream = null;
    this.#online = false;
    this.#managed = null;
    this.#stopWatch();
    stream?.abandon();
  }

  #say(name, words, more = {}) {
    this.#on.state({ name, words, ...more });
    // Whom we know to be there depends on whether we are.
    if (name !== this.#said) this.#on.presence(null);
    this.#said = name;
  }

  /** A connection may die without a word. Over BOSH the transport sees that itself. */
  #startWatch() {
    this.#stopWatch();
    if (this.#stream.transport.confirms) return;
    this.#heard = Date.now();
    this.#watch = setInterval(() => {
      const now = Date.now();
      // However late this comes: nobody has fallen silent who was not asked.
      if (this.#asked !== null) {
        if (now - this.#asked > SILENT) this.#lostSilently();
      } else if (now - this.#heard > QUIET) {
        this.#asked = now;
        this.#askForLife();
      }
    }, 5_000);
  }

  #askForLife() {
    // Our own question is no sign of life.
    const heard = this.#heard;
    if (this.#managed) this.#stream.send(element(NS.sm, "r"));
    else this.#transmit(element(NS.client, "iq", { id: randomId(), type: "get" }, element(NS.ping, "ping")));
    this.#heard = heard;
  }

  #lostSilently() {
    const stream = this.#stream;
    this.#stream = null;
    stream.abandon();
    this.#lost(new Ended("The server has fallen silent."));
  }

  #stopWatch() {
    clearInterval(this.#watch);
    this.#asked = null;
  }

  // --- stanzas out

  #transmit(stanza) {
    const { transport } = this.#stream;
    const message = stanza.localName === "message";
    if (transport.confirms || this.#managed) this.#unconfirmed.push(stanza);
    this.#stream.send(stanza);
    if (this.#managed && (message || this.#unconfirmed.length % 8 === 0)) {
      this.#stream.send(element(NS.sm, "r"));
    }
    if (!transport.confirms && !this.#managed && message) this.#on.confirmed(stanza.getAttribute("id"));
  }

  /** XEP-0198 §4: the server has that many stanzas of ours, counted modulo 2^32. */
  #acknowledged(h) {
    const count = (h - this.#managed.acked) >>> 0;
    if (count > this.#unconfirmed.length) return;
    this.#managed.acked = h;
    const arrived = new Set(this.#unconfirmed.slice(0, count));
    this.#confirm((one) => arrived.has(one));
  }

  #confirm(arrived) {
    const before = this.#unconfirmed;
    this.#unconfirmed = before.filter((one) => !arrived(one));
    for (const one of before) {
      if (arrived(one) && one.localName === "message") this.#on.confirmed(one.getAttribute("id"));
    }
  }

  /** What cannot be sent any more is told, not forgotten. */
  #unsent(stanza) {
    if (stanza.localName !== "message") return;
    this.#on.message({
      from: stanza.getAttribute("to"),
      type: "error",
      body: "",
      id: stanza.getAttribute("id"),
      error: "the connection ended before it was confirmed",
    });
  }

  #ownPresence(to = null) {
    const show = this.#show ? element(NS.client, "show", {}, this.#show) : null;
    return element(NS.client, "presence", { to }, show);
  }

  #enter(room) {
    const { nick } = this.#rooms.get(room);
    const stanza = this.#ownPresence(`${room}/${nick}`);
    stanza.append(element(NS.muc, "x", {}, element(NS.muc, "history", { maxstanzas: 20 })));
    this.#transmit(stanza);
  }

  // --- stanzas in

  #element(node) {
    this.#asked = null;
    if (node.namespaceURI === NS.sm) return this.#management(node);
    if (!isStanza(node)) return;
    if (this.#managed) this.#managed.received = (this.#managed.received + 1) >>> 0;
    if (node.localName === "message") this.#message(node);
    else if (node.localName === "presence") this.#presenceCame(node);
    else this.#iq(node);
  }

  #management(node) {
    if (!this.#managed) return;
    if (node.localName === "r") {
      this.#stream.send(element(NS.sm, "a", { h: this.#managed.received }));
    } else if (node.localName === "a") {
      this.#acknowledged(Number(node.getAttribute("h")));
    }
  }

  #message(node) {
    const from = node.getAttribute("from") ?? bare(this.jid);
    const type = node.getAttribute("type") ?? "normal";
    const id = node.getAttribute("id") ?? "";
    if (type === "error") {
      return this.#on.message({ from: bare(from), type, body: "", id, error: stanzaError(node) });
    }
    const body = child(node, "body", NS.client)?.textContent;
    if (!body) return;
    // Sent again after a lost session, or repeated by a room's history: once is enough.
    const key = `${bare(from)} ${id}`;
    if (id && this.#seen.has(key)) return;
    this.#seen.add(key);
    if (this.#seen.size > SEEN) this.#seen.delete(this.#seen.values().next().value);
    const room = type === "groupchat";
    const mine = room && resource(from) === this.#rooms.get(bare(from))?.nick;
    const delayed = child(node, "delay", NS.delay)?.getAttribute("stamp") ?? null;
    this.#on.message({ from: room ? from : bare(from), type, body, id, mine, delayed });
  }

  #presenceCame(node) {
    const from = node.getAttribute("from") ?? this.jid;
    const type = node.getAttribute("type") ?? "";
    const jid = bare(from);
    if (type === "subscribe") {
      // Everybody here may see everybody.
      return this.#transmit(element(NS.client, "presence", { to: jid, type: "subscribed" }));
    }
    if (type === "error" && this.#rooms.has(jid)) return this.#refused(jid, node);
    if (type !== "" && type !== "unavailable") return;
    const resources = this.#presence.get(jid) ?? new Map();
    this.#presence.set(jid, resources);
    if (type === "") resources.set(resource(from), child(node, "show", NS.client)?.textContent.trim() ?? "");
    else if (resource(from) === "") resources.clear();
    else resources.delete(resource(from));
    const room = this.#rooms.get(jid);
    if (room && resource(from) === room.nick) room.joined = type === "";
    this.#on.presence(jid);
  }

  /** The room did not let us in. */
  #refused(jid, node) {
    const room = this.#rooms.get(jid);
    const error = child(node, "error", NS.client);
    if (error && child(error, "conflict", NS.stanzaErrors) && room.nick.length < 40) {
      room.nick += "_";
      return this.#enter(jid);
    }
    this.#rooms.delete(jid);
    this.#on.message({ from: jid, type: "error", body: "", id: "", error: stanzaError(node) });
  }

  #iq(node) {
    const type = node.getAttribute("type");
    const query = child(node, "query", NS.roster);
    const fromServer = [null, "", bare(this.jid), this.#settings.domain].includes(node.getAttribute("from"));
    if (type === "result" && node.getAttribute("id") === "roster" && query && fromServer) {
      this.roster.clear();
      this.#readRoster(query);
    } else if (type === "set" && query && fromServer) {
      this.#readRoster(query);
      this.#answer(node);
    } else if (type === "get" && child(node, "ping", NS.ping)) {
      this.#answer(node);
    } else if (type === "get" && child(node, "query", NS.disco)) {
      const features = [NS.disco, NS.ping].map((name) => element(NS.disco, "feature", { var: name }));
      const identity = element(NS.disco, "identity", { category: "client", type: "web", name: "Bosphorus demo" });
      this.#answer(node, element(NS.disco, "query", {}, identity, ...features));
    } else if (type === "get" || type === "set") {
      const condition = element(NS.stanzaErrors, "service-unavailable");
      this.#answer(node, element(NS.client, "error", { type: "cancel" }, condition), "error");
    }
  }

  #answer(node, payload = null, type = "result") {
    const to = node.getAttribute("from");
    this.#transmit(element(NS.client, "iq", { id: node.getAttribute("id"), to, type }, payload));
  }

  #readRoster(query) {
    for (const item of query.children) {
      if (!is(item, "item", NS.roster)) continue;
      const jid = item.getAttribute("jid");
      if (item.getAttribute("subscription") === "remove") this.roster.delete(jid);
      else this.roster.set(jid, item.getAttribute("name") || local(jid));
    }
    this.#on.roster();
  }
}
