// One person: the login, the contacts, the conversations, and the frames as they pass.

import { Frames } from "./frames.js";
import { Session } from "./xmpp.js";
import { bare, local, resource } from "./xml.js";

/** Messages kept of one conversation, and characters of one that are shown unasked. */
const KEPT = 200;
const SHOWN = 600;
const PREVIEW = 90;
/** What a reload brings back: so many messages of a conversation, none longer than that. */
const REMEMBERED = 30;
const REMEMBERED_LENGTH = 2_000;
const LARGE = 60_000;

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hour12: false });

export class Pane {
  #side;
  #config;
  #transports;
  #on;
  #parts;
  #frames;
  #session = null;
  #state = "offline";
  #peer = "";
  /** jid → { messages, unread }, in the order of the list. */
  #talks = new Map();
  /** Contacts typed in by hand. */
  #added = new Set();
  #current = "";

  constructor({ side, user, config, transports, on }) {
    this.#side = side;
    this.#config = config;
    this.#transports = transports;
    this.#on = on;
    const copy = document.getElementById("pane").content.cloneNode(true);
    this.root = copy.querySelector(".pane");
    this.root.dataset.side = side;
    const find = (selector) => this.root.querySelector(selector);
    this.#parts = {
      name: find(".pane-name"),
      words: find(".state-words"),
      seconds: find(".state-seconds"),
      login: find(".login"),
      session: find(".session"),
      show: find("select[name=show]"),
      people: find(".people"),
      contacts: find(".contacts"),
      add: find(".add"),
      head: find(".conversation-head"),
      log: find(".log"),
      composer: find(".composer"),
      draft: find("textarea"),
      cut: find("[data-do=cut]"),
      pause: find("[data-do=pause]"),
      box: find(".frames-box"),
    };
    this.#frames = new Frames(this.#parts.box, find(".frames-note"));
    this.#name();
    this.#fillLogin(user);
    this.#listen();
  }

  get user() {
    return local(this.#parts.login.elements.user.value.trim().toLowerCase());
  }

  /** Everything is in place; `peer` is the user of the other shore. */
  start(peer) {
    this.setPeer(peer);
    this.#tellUser();
    this.#setState({ name: "offline", words: "Not connected." });
    const { connected, current, talks } = this.#remembered();
    for (const [jid, messages] of talks ?? []) {
      for (const message of messages) message.at = new Date(message.at);
      this.#talks.set(jid, { messages, unread: 0 });
    }
    if (connected) this.#connect();
    this.#open(current || this.#current);
  }

  setPeer(user) {
    const before = this.#peer;
    this.#peer = `${user}@${this.#config.domain}`;
    if (this.#current === "" || (this.#current === before && !this.#talks.get(before)?.messages.length)) {
      this.#current = this.#peer;
    }
    this.#drawContacts();
    this.#drawLog();
  }

  /** The page goes away; it may come back, and then so does the connection. */
  leave() {
    const talks = [...this.#talks].map(([jid, { messages }]) => {
      const told = messages.filter(({ body }) => body && body.length <= REMEMBERED_LENGTH);
      return [jid, told.slice(-REMEMBERED).map(({ view: _, ...message }) => message)];
    });
    this.#remember({ current: this.#current, talks });
    this.#session?.leave();
  }

  hurry() {
    this.#session?.hurry();
  }

  /** It was hidden, and now it is seen. */
  shown() {
    this.#open(this.#current);
    this.#parts.box.scrollTop = this.#parts.box.scrollHeight;
  }

  // --- building

  /** Two panes are alike; names tell them apart for those who do not see where they are. */
  #name() {
    const side = this.#side;
    const parts = this.#parts;
    parts.name.id = `${side}-name`;
    parts.words.id = `${side}-state`;
    parts.head.id = `${side}-with`;
    this.root.setAttribute("aria-labelledby", parts.name.id);
    parts.login.elements.user.setAttribute("aria-describedby", parts.words.id);
    parts.login.elements.password.setAttribute("aria-describedby", parts.words.id);
    parts.log.setAttribute("aria-labelledby", parts.head.id);
    parts.add.elements.jid.setAttribute("aria-label", "Name or address of another contact");
    parts.add.elements.jid.placeholder = "Someone else";
    parts.draft.placeholder = "Write a message";
  }

  #fillLogin(user) {
    const { elements } = this.#parts.login;
    const { user: last, transport } = this.#remembered();
    elements.user.value = last ?? user;
    elements.password.value = elements.user.value;
    for (const { name, title, make } of this.#transports) {
      const option = new Option(make ? title : `${title} (not offered here)`, name);
      option.disabled = !make;
      option.selected = Boolean(make) && name === transport;
      elements.transport.append(option);
    }
  }

  #listen() {
    const { login, add, composer, draft, show, contacts, cut, pause } = this.#parts;
    const { user, password } = login.elements;
    // The password follows the name until someone writes one of their own.
    let follows = true;
    user.addEventListener("input", () => {
      if (follows) password.value = this.user;
      this.#tellUser();
    });
    password.addEventListener("input", () => {
      follows = password.value === this.user;
      password.removeAttribute("aria-invalid");
    });
    onSubmit(login, () => this.#connect());
    onSubmit(add, () => this.#add(add.elements.jid));
    onSubmit(composer, () => {
      if (draft.value.trim() === "") return;
      this.#send(draft.value);
      draft.value = "";
    });
    draft.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        composer.requestSubmit();
      } else if (event.key === "Escape") {
        contacts.querySelector("[aria-current]")?.focus();
      }
    });
    contacts.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
      const buttons = [...contacts.querySelectorAll("button")];
      const at = buttons.indexOf(document.activeElement);
      if (!step || at < 0) return;
      event.preventDefault();
      buttons[(at + step + buttons.length) % buttons.length].focus();
    });
    show.addEventListener("change", () => this.#session?.show(show.value));
    const actions = {
      cut: () => (this.#state === "waiting" ? this.#session?.hurry() : this.#session?.cut()),
      disconnect: () => this.#disconnect(),
      large: () => this.#send(largeMessage()),
      pause: () => {
        this.#frames.pause(!this.#frames.paused);
        pause.setAttribute("aria-pressed", String(this.#frames.paused));
      },
      clear: () => this.#frames.clear(),
    };
    this.root.addEventListener("click", ({ target }) => actions[target.dataset.do]?.());
    cut.title = "Drops the connection without a goodbye";
  }

  // --- the connection

  #connect() {
    if (this.#state !== "offline") return;
    const { user, password, transport } = this.#parts.login.elements;
    const missing = [user, password].find((input) => input.value.trim() === "");
    if (missing) {
      missing.focus();
      const what = missing === user ? "a user name" : "a password";
      return this.#setState({ name: "offline", words: `Please give ${what}.` });
    }
    if (/["&':<>\s]/.test(this.user) || this.user === "") {
      user.focus();
      const words = "A user name has no spaces and none of \" & ' / : < > @.";
      return this.#setState({ name: "offline", words });
    }
    user.value = this.user;
    // The name is sent in lower case; so is a password that is the name.
    if (password.value.trim().toLowerCase() === this.user) password.value = this.user;
    password.removeAttribute("aria-invalid");
    this.#tellUser();
    const { make, title } = this.#transports.find(({ name }) => name === transport.value);
    const settings = {
      user: this.user,
      password: password.value,
      domain: this.#config.domain,
      title,
      makeTransport: make,
    };
    this.#session = new Session(settings, {
      state: (state) => this.#setState(state),
      frame: (direction, text) => this.#frames.add(direction, text),
      presence: () => this.#drawContacts(),
      roster: () => this.#drawContacts(),
      message: (message) => this.#received(message),
      confirmed: (id) => this.#confirmed(id),
    });
    this.#parts.show.value = "";
    this.#remember({ user: this.user, transport: transport.value, connected: true });

    this.#session.connect();
  }

  #disconnect() {
    this.#remember({ connected: false });
    this.#session?.disconnect();
  }

  #setState({ name, words, seconds, wrongPassword = false }) {
    const before = this.#state;
    const { login, session, cut, draft } = this.#parts;
    const { password } = login.elements;
    const focused = this.root.contains(document.activeElement) ? document.activeElement : null;
    this.#state = name;
    this.root.dataset.state = name;
    // Said aloud once, counted down in silence.
    setText(this.#parts.words, seconds ? `${words} Reconnecting soon.` : words);
    setText(this.#parts.seconds, seconds ? `${words} Reconnecting in ${seconds} s.` : "");
    this.root.classList.toggle("counting", Boolean(seconds));

    login.hidden = name !== "offline";
    session.hidden = name === "offline";
    setText(cut, name === "waiting" ? "Reconnect now" : "Cut the connection");
    cut.disabled = name === "connecting" || name === "leaving";
    if (wrongPassword) {
      password.setAttribute("aria-invalid", "true");
      this.#remember({ connected: false });
    }
    // Focus never stays on what has just been hidden.
    if (focused && name === "offline" && before !== "offline") {
      (wrongPassword ? password : login.querySelector("button")).focus();
      if (wrongPassword) password.select();
    } else if (focused && login.contains(focused) && login.hidden) {
      draft.focus();
    }
    this.#tellStatus();
  }

  #tellUser() {
    this.#parts.name.textContent = this.user || "?";
    this.#parts.people.setAttribute("aria-label", `Contacts of ${this.user}`);
    this.#parts.box.setAttribute("aria-label", `Frames between ${this.user} and the server`);
    this.#parts.draft.setAttribute("aria-label", `Message from ${this.user}`);
    this.#on.user(this.user);
    this.#tellStatus();
  }

  #tellStatus() {
    const words = { online: "connected", waiting: "cut off", connecting: "connecting" }[this.#state] ?? "not connected";
    const unread = [...this.#talks.values()].reduce((sum, talk) => sum + talk.unread, 0);
    this.#on.status({ name: this.user, words, unread });
  }

  // --- contacts

  #list() {
    const { domain, echo, room } = this.#config;
    const jids = new Set([this.#peer]);
    const own = `${this.user}@${domain}`;
    for (const jid of this.#session?.roster.keys() ?? []) if (jid !== own) jids.add(jid);
    if (echo) jids.add(echo);
    if (room) jids.add(room);
    for (const jid of [...this.#added, ...this.#talks.keys()]) jids.add(jid);
    return [...jids];
  }

  /** Updates what is there: a button must not go away under the finger that presses it. */
  #drawContacts() {
    const { contacts } = this.#parts;
    const jids = this.#list();
    for (const item of [...contacts.children]) {
      if (!jids.includes(item.firstElementChild.dataset.jid)) item.remove();
    }
    jids.forEach((jid, at) => {
      let item = [...contacts.children].find((one) => one.firstElementChild.dataset.jid === jid);
      item ??= this.#contact(jid);
      if (contacts.children[at] !== item) contacts.insertBefore(item, contacts.children[at] ?? null);
      this.#updateContact(item.firstElementChild, jid);
    });
    this.#drawHead();
    this.#tellStatus();
  }

  #contact(jid) {
    const button = make("button", "contact");
    button.type = "button";
    button.dataset.jid = jid;
    button.title = jid;
    const dot = make("span", "dot");
    dot.setAttribute("aria-hidden", "true");
    const badge = make("span", "badge");
    badge.append(make("span", "badge-count"), make("span", "unseen", " unread"));
    button.append(dot, make("span", "contact-name"), make("span", "contact-words"), badge);
    button.addEventListener("click", () => {
      this.#open(jid);
      this.#parts.draft.focus();
    });
    const item = make("li", "contact-item");
    item.append(button);
    return item;
  }

  #updateContact(button, jid) {
    const presence = this.#presence(jid);
    const unread = this.#talks.get(jid)?.unread ?? 0;
    if (jid === this.#current) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    button.querySelector(".dot").className = `dot dot-${presence.state}`;
    setText(button.querySelector(".contact-name"), this.#nameOf(jid));
    setText(button.querySelector(".contact-words"), presence.words);
    setText(button.querySelector(".badge-count"), String(unread));
    button.querySelector(".badge").hidden = unread === 0;
  }

  #presence(jid) {
    if (!this.#session?.online) return { state: "offline", words: this.#isRoom(jid) ? "a room" : "not known" };
    if (this.#isRoom(jid)) {
      const inside = this.#session.presenceOf(jid);
      return inside.state === "online" ? inside : { state: "offline", words: "a room, not entered" };
    }
    return this.#session.presenceOf(jid);
  }

  #isRoom(jid) {
    return jid.slice(jid.indexOf("@") + 1) === this.#roomDomain();
  }

  #roomDomain() {
    return this.#config.room?.split("@")[1] ?? "";
  }

  #nameOf(jid) {
    const listed = this.#session?.roster.get(jid);
    return listed || (jid.endsWith(`@${this.#config.domain}`) || this.#isRoom(jid) ? local(jid) : jid);
  }

  #add(input) {
    const typed = input.value.trim().toLowerCase();
    if (typed === "") return input.focus();
    const jid = typed.includes("@") ? bare(typed) : `${typed}@${this.#config.domain}`;
    input.value = "";
    this.#added.add(jid);
    this.#open(jid);
    this.#parts.draft.focus();
  }

  #open(jid) {
    this.#current = jid;
    const talk = this.#talks.get(jid);
    if (talk) talk.unread = 0;
    if (this.#isRoom(jid)) this.#session?.join(jid);
    this.#drawContacts();
    this.#drawLog();
  }

  // --- messages

  #send(body) {
    const to = this.#current;
    const room = this.#isRoom(to);
    if (!this.#session || this.#state === "offline" || this.#state === "leaving") {
      this.#keep(to, { note: "Not sent: connect first.", failed: true });
      return;
    }
    if (room) this.#session.join(to);
    const id = this.#session.message(to, room ? "groupchat" : "chat", body);
    this.#keep(to, { id, body, mine: true, at: new Date(), progress: "on its way" });
    if (to === this.#peer) this.#on.sent();
  }

  #received({ from, type, body, id, error, delayed, mine }) {
    const jid = bare(from);
    if (type === "error") {
      const sent = this.#find(id);
      if (sent) this.#progress(sent, `not delivered: ${error}`, true);
      else this.#keep(jid, { note: `${this.#nameOf(jid)}: ${error}.`, failed: true });
      return;
    }
    // A room gives our own words back, and to whoever comes again its last words.
    if (type === "groupchat" && this.#find(id)) return mine && this.#confirmed(id);
    const at = delayed ? new Date(delayed) : new Date();
    const who = type === "groupchat" ? resource(from) || local(jid) : local(jid);
    this.#keep(jid, { id, body, mine: Boolean(mine), who, at, progress: mine ? "at the server" : "" });
  }

  #confirmed(id) {
    const message = this.#find(id);
    if (message && !message.failed) this.#progress(message, "at the server", false);
  }

  #find(id) {
    if (!id) return null;
    for (const talk of this.#talks.values()) {
      const found = talk.messages.find((one) => one.id === id);
      if (found) return found;
    }
    return null;
  }

  #progress(message, words, failed) {
    message.progress = words;
    message.failed = failed;
    if (!message.view) return;
    message.view.classList.toggle("failed", failed);
    setText(message.view.querySelector(".message-progress"), words);
  }

  #keep(jid, message) {
    const talk = this.#talks.get(jid) ?? { messages: [], unread: 0 };
    this.#talks.set(jid, talk);
    talk.messages.push(message);
    if (talk.messages.length > KEPT) talk.messages.shift().view?.remove();
    const { log } = this.#parts;
    // A shore that is not on the screen is not read.
    const visible = jid === this.#current && this.root.offsetParent !== null;
    if (!visible && !message.mine) talk.unread += 1;
    if (jid === this.#current) {
      const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
      log.querySelector(".empty")?.remove();
      log.append(view(message));
      if (atEnd || message.mine) log.scrollTop = log.scrollHeight;
    }
    this.#drawContacts();
  }

  #drawHead() {
    const room = this.#isRoom(this.#current);
    setText(this.#parts.head, `${room ? "In the room" : "With"} ${this.#current}`);
  }

  #drawLog() {
    const { log } = this.#parts;
    const messages = this.#talks.get(this.#current)?.messages ?? [];
    // What was said before is not news.
    log.setAttribute("aria-live", "off");
    if (messages.length > 0) log.replaceChildren(...messages.map(view));
    else log.replaceChildren(make("p", "empty", this.#invitation()));
    log.scrollTop = log.scrollHeight;
    requestAnimationFrame(() => log.setAttribute("aria-live", "polite"));
  }

  #invitation() {
    if (this.#current === this.#config.echo) return "Echo says back whatever it is told.";
    if (this.#isRoom(this.#current)) return "Whoever picks the room is in it.";
    return "No word yet.";
  }

  // --- what a reload brings back

  #remember(what) {
    const all = { ...this.#remembered(), ...what };
    try {
      sessionStorage.setItem(`bosphorus-${this.#side}`, JSON.stringify(all));
    } catch {
      // Forbidden or full: then a reload brings nothing back.
    }
  }

  #remembered() {
    try {
      return JSON.parse(sessionStorage.getItem(`bosphorus-${this.#side}`)) ?? {};
    } catch {
      return {};
    }
  }
}

/** A message, or a note, as it stands in the log. */
function view(message) {
  const { id, body, mine, who, at, note, progress, failed } = message;
  if (note) {
    const line = make("p", "note", note);
    line.classList.toggle("failed", Boolean(failed));
    return line;
  }
  const made = make("div", mine ? "message mine" : "message");
  made.classList.toggle("failed", Boolean(failed));
  made.dataset.id = id;
  made.dataset.length = body.length;
  const head = make("p", "message-head");
  const time = make("time", "message-time", clock.format(at));
  time.dateTime = at.toISOString();
  head.append(make("span", "message-who", mine ? "You" : who), time);
  if (mine) head.append(make("span", "message-progress", progress ?? ""));
  made.append(head, words(body));
  message.view = made;
  return made;
}

function words(body) {
  if (body.length <= SHOWN) return make("p", "message-body", body);
  const folded = make("details", "message-long");
  const summary = make("summary", "message-body", `${body.slice(0, PREVIEW).replace(/\s+/g, " ")}… `);
  summary.append(make("span", "message-size", `${body.length.toLocaleString("en")} characters`));
  folded.append(summary, make("pre", "message-all", body));
  return folded;
}

/** Sixty thousand bytes in which a missing or doubled piece would be seen. */
function largeMessage() {
  let text = "";
  for (let line = 1; text.length < LARGE; line += 1) {
    text += `${String(line).padStart(4, "0")} The ferry carries one more line across the strait.\n`;
  }
  return text.slice(0, LARGE);
}

function onSubmit(form, action) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    action();
  });
}

function make(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

/** A screen reader says a status again when it is set again, even to the same words. */
function setText(node, text) {
  if (node && node.textContent !== text) node.textContent = text;
}
