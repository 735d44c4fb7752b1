// Drives the demo's page in a real Chromium, as people would. Prints one JSON object a line:
//   {"case": …, "step": …, "ok": …, "detail": …}   a step of a case
//   {"screenshot": path}                            a picture of the page
// Argument: {"url": …, "chromium": …, "profile": …, "screenshots": …} as JSON.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import puppeteer from "puppeteer-core";

const PATIENCE = 15_000;
const { url, chromium, profile, screenshots } = JSON.parse(process.argv[2]);
const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

const LEFT = { side: "left", name: "ayse" };
const RIGHT = { side: "right", name: "ali" };

/** A browser tab with the page, and all that went wrong in it. */
class Tab {
  faults = [];

  /** `transports`: the one of the left pane, the one of the right pane. */
  static async open(browser, transports, prepare = () => {}) {
    const tab = new Tab();
    tab.context = await browser.createBrowserContext();
    const page = await tab.context.newPage();
    tab.page = page;
    tab.transports = { left: transports[0], right: transports[1] };
    page.setDefaultTimeout(PATIENCE);
    page.on("console", (line) => {
      if (["error", "warn", "assert"].includes(line.type())) tab.faults.push(`console: ${line.text()}`);
    });
    page.on("pageerror", (error) => tab.faults.push(`exception: ${error.message}`));
    page.on("requestfailed", (request) => {
      const why = request.failure()?.errorText;
      // A request that BOSH gives up by itself, on purpose.
      if (why === "net::ERR_ABORTED" && request.method() === "POST") return;
      tab.faults.push(`request failed: ${request.url()}: ${why}`);
    });
    page.on("response", (response) => {
      if (response.status() >= 400) tab.faults.push(`status ${response.status()}: ${response.url()}`);
    });
    await page.exposeFunction("violated", (what) => tab.faults.push(`policy violated: ${what}`));
    await page.evaluateOnNewDocument(() => {
      addEventListener("securitypolicyviolation", (event) => {
        window.violated(`${event.violatedDirective} by ${event.blockedURI}`);
      });
    });
    await page.evaluateOnNewDocument(prepare);
    await page.setViewport({ width: 1280, height: 1000 });
    await page.goto(url, { waitUntil: "networkidle0" });
    return tab;
  }

  /** Waits until `test(pane, …values)` is true in the page. */
  async until(what, { side }, test, ...values) {
    const source = `(() => {
      const pane = document.querySelector(".pane[data-side=${side}]");
      return pane !== null && (${test})(pane, ...${JSON.stringify(values)});
    })()`;
    await this.page.waitForFunction(source, { polling: 50 }).catch(async (error) => {
      const seen = await this.page.$eval(`.pane[data-side=${side}]`, (pane) => pane.innerText).catch(() => "");
      throw new Error(`waited in vain for: ${what} (${error.message})\n${seen.slice(0, 1500)}`);
    });
  }

  find({ side }, selector) {
    return this.page.$(`.pane[data-side=${side}] ${selector}`);
  }

  async press(who, selector) {
    const found = await this.find(who, selector);
    if (!found) throw new Error(`no ${selector} in the pane ${who.side}`);
    await found.click();
  }

  async fill(who, selector, text) {
    const found = await this.find(who, selector);
    await found.click({ count: 3 });
    await found.press("Backspace");
    await found.type(text);
  }

  async login(who, { user = who.name, password = user } = {}) {
    await this.page.select(`.pane[data-side=${who.side}] select[name=transport]`, this.transports[who.side]);
    await this.fill(who, "input[name=user]", user);
    await this.fill(who, "input[name=password]", password);
    await this.press(who, ".login button");
  }

  online(who) {
    return this.until("online", who, (pane) => pane.dataset.state === "online");
  }

  async logout(who) {
    await this.press(who, "[data-do=disconnect]");
    await this.until("offline", who, (pane) => pane.dataset.state === "offline");
  }

  /** Opens a conversation. */
  async pick(who, jid) {
    await this.until(`contact ${jid}`, who, (pane, jid) =>
      [...pane.querySelectorAll(".contact")].some((one) => one.dataset.jid === jid), jid);
    await this.press(who, `.contact[data-jid="${jid}"]`);
  }

  async write(who, text) {
    const draft = await this.find(who, ".composer textarea");
    await draft.click();
    await draft.type(text);
    await draft.press("Enter");
  }

  /** Waits for a message in the open conversation, and that it is there once. */
  async reads(who, text) {
    await this.until(`one message "${text}"`, who, (pane, text) =>
      [...pane.querySelectorAll(".message:not(.mine) .message-body")].filter((one) => one.textContent === text).length === 1, text);
  }

  /** Waits until all that was sent has reached the server. */
  confirmed(who) {
    return this.until("all confirmed", who, (pane) =>
      [...pane.querySelectorAll(".message.mine .message-progress")].every((one) => one.textContent === "at the server"));
  }

  presence(who, jid, words) {
    return this.until(`${jid} is ${words}`, who, (pane, jid, words) =>
      [...pane.querySelectorAll(".contact")].some((one) =>
        one.dataset.jid === jid && one.querySelector(".contact-words").textContent === words), jid, words);
  }

  /** Nothing moves, nothing is pointed at. */
  async settled() {
    await this.page.mouse.move(0, 0);
    await this.page.evaluate(() => document.activeElement?.blur());
    await this.page.waitForFunction(() => document.readyState === "complete" && document.getAnimations().length === 0);
  }

  frames(who) {
    return this.page.$eval(`.pane[data-side=${who.side}] .frames-list`, (list) => list.textContent);
  }

  async close() {
    await this.context.close();
  }
}

/** The steps of one case, in their order: each goes on where the one before it ended. */
function steps(config) {
  const { domain, echo, room } = config;
  const jid = (who) => `${who.name}@${domain}`;
  return {
    "two people log in": async (tab) => {
      for (const who of [LEFT, RIGHT]) {
        await tab.login(who);
        await tab.online(who);
      }
    },

    "a name may be written otherwise, but not anyhow": async (tab) => {
      await tab.logout(RIGHT);
      await tab.login(RIGHT, { user: "a b" });
      await tab.until("told what a name is", RIGHT, (pane) =>
        pane.dataset.state === "offline" && pane.querySelector(".state").innerText.includes("no spaces"));
      await tab.login(RIGHT, { user: ` ${RIGHT.name.toUpperCase()} ` });
      await tab.online(RIGHT);
    },

    "no secret is shown in the frames": async (tab) => {
      for (const who of [LEFT, RIGHT]) {
        const text = await tab.frames(who);
        if (!text.includes("characters hidden")) throw new Error("nothing was hidden");
        const secrets = [`n=${who.name},r=`, `\0${who.name}\0${who.name}`];
        const bare = text.replace(/\s+/g, "");
        for (const secret of secrets) {
          // However it is aligned, some of it would be found.
          const piece = Buffer.from(secret).toString("base64").slice(2, 10);
          if (bare.includes(piece)) throw new Error("part of a login is shown");
        }
      }
    },

    "each sees the other": async (tab) => {
      await tab.presence(LEFT, jid(RIGHT), "online");
      await tab.presence(RIGHT, jid(LEFT), "online");
      await tab.page.select(".pane[data-side=right] select[name=show]", "away");
      await tab.presence(LEFT, jid(RIGHT), "away");
      await tab.page.select(".pane[data-side=right] select[name=show]", "");
      await tab.presence(LEFT, jid(RIGHT), "online");
    },

    "messages both ways": async (tab) => {
      await tab.pick(LEFT, jid(RIGHT));
      await tab.pick(RIGHT, jid(LEFT));
      await tab.write(LEFT, "Is the ferry there?");
      await tab.reads(RIGHT, "Is the ferry there?");
      await tab.write(RIGHT, "<b>It</b> is & \"sails\" at 8 \u26F4");
      await tab.reads(LEFT, "<b>It</b> is & \"sails\" at 8 \u26F4");
      await tab.confirmed(LEFT);
      await tab.confirmed(RIGHT);
    },

    "a message of 60 kB": async (tab) => {
      await tab.press(LEFT, "[data-do=large]");
      await tab.until("60000 characters", RIGHT, (pane) => {
        const whole = pane.querySelector(".message:not(.mine)[data-length=\"60000\"] .message-all")?.textContent;
        if (whole?.length !== 60_000) return false;
        const lines = whole.split("\n");
        return lines.every((line, at) => {
          const full = `${String(at + 1).padStart(4, "0")} The ferry carries one more line across the strait.`;
          return at === lines.length - 1 ? full.startsWith(line) : line === full;
        });
      });
      await tab.confirmed(LEFT);
    },

    "the echo answers": async (tab) => {
      await tab.pick(LEFT, echo);
      await tab.write(LEFT, "Anybody there?");
      await tab.reads(LEFT, "Anybody there?");
      await tab.pick(LEFT, jid(RIGHT));
    },

    "the room carries": async (tab) => {
      await tab.pick(LEFT, room);
      await tab.pick(RIGHT, room);
      await tab.presence(LEFT, room, "2 people");
      const text = `Good morning, everyone (${Date.now()})`;
      await tab.write(RIGHT, text);
      await tab.reads(LEFT, text);
      await tab.confirmed(RIGHT);
      await tab.pick(LEFT, jid(RIGHT));
      await tab.pick(RIGHT, jid(LEFT));
    },

    "back after a reload": async (tab) => {
      await tab.page.reload({ waitUntil: "load" });
      await tab.online(LEFT);
      await tab.online(RIGHT);
      await tab.presence(LEFT, jid(RIGHT), "online");
      await tab.presence(RIGHT, jid(LEFT), "online");
      await tab.write(LEFT, "Back again");
      await tab.reads(RIGHT, "Back again");
    },

    "cut off and back, nothing lost": async (tab) => {
      await tab.press(LEFT, "[data-do=cut]");
      await tab.until("waiting", LEFT, (pane) =>
        pane.dataset.state === "waiting" && /cut.*Reconnecting in \d s/.test(pane.querySelector(".state").innerText));
      await tab.write(RIGHT, "While you were away");
      await tab.write(LEFT, "Written without a connection");
      await tab.online(LEFT);
      // XEP-0198 over WebSocket, the requests' own numbers over BOSH; a new login would be neither.
      const how = tab.transports.left === "bosh" ? "sent again" : "session was resumed";
      await tab.until(`told: ${how}`, LEFT, (pane, how) => pane.querySelector(".state-words").textContent.includes(how), how);
      await tab.reads(LEFT, "While you were away");
      await tab.reads(RIGHT, "Written without a connection");
      await tab.confirmed(LEFT);
      await tab.confirmed(RIGHT);
      await tab.presence(LEFT, jid(RIGHT), "online");
      await tab.presence(RIGHT, jid(LEFT), "online");
      await tab.write(RIGHT, "Still here");
      await tab.reads(LEFT, "Still here");
    },

    "cut off while nobody else writes": async (tab) => {
      await tab.press(LEFT, "[data-do=cut]");
      await tab.until("waiting", LEFT, (pane) => pane.dataset.state === "waiting");
      await tab.write(LEFT, "At once");
      await tab.reads(RIGHT, "At once");
      await tab.confirmed(LEFT);
      await tab.press(LEFT, "[data-do=cut]");
      await tab.until("waiting", LEFT, (pane) => pane.dataset.state === "waiting");
      // Nothing to say: the gateway holds what is sent again.
      await tab.online(LEFT);
      await tab.write(LEFT, "Later");
      await tab.reads(RIGHT, "Later");
      await tab.confirmed(LEFT);
    },

    "nobody is lost unasked": async (tab) => {
      // What is still on its way would be a sign of life.
      await tab.until("quiet", LEFT, (pane) => {
        const { length } = pane.querySelector(".frames-list").textContent;
        if (window.quiet?.length !== length) window.quiet = { length, since: performance.now() };
        return performance.now() - window.quiet.since > 1000;
      });
      for (const who of [LEFT, RIGHT]) await tab.press(who, "[data-do=clear]");
      // As in a page that is hidden, whose timers come once in a while.
      await tab.page.evaluate(() => {
        const now = Date.now;
        Date.now = () => now() + 100_000;
      });
      await tab.until("a frame", LEFT, (pane) => pane.querySelector(".frames-list").textContent !== "");
      const text = await tab.frames(LEFT);
      // A session that is given up would be seen by the other, as a sign of life.
      if ((await tab.frames(RIGHT)).includes("framing")) throw new Error("the other is lost");
      if (!text.includes("urn:xmpp:sm:3") || text.includes("framing")) throw new Error(`not asked: ${text}`);
      await tab.online(LEFT);
    },

    "an element of any name is an element": async (tab) => {
      const source = await (await fetch(new URL("/demo/xml.js", url))).text();
      // A page without a policy: Chromium's report of an error has a style of its own.
      const page = await tab.context.newPage();
      const wrong = await page.evaluate(async (source) => {
        const { parse } = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
        const error = (space) => `<message><parsererror xmlns="${space}">a</parsererror></message>`;
        const good = ["<a/>", error("urn:x"), error("http://www.w3.org/1999/xhtml"), "<a>parsererror</a>"];
        const bad = ["", "<a>", "a", "<a></b>", "<parsererror>", "<a><parsererror/></b>", "<a/>parsererror"];
        return [...good.filter((text) => parse(text) === null), ...bad.filter((text) => parse(text) !== null)];
      }, source);
      await page.close();
      await tab.page.bringToFront();
      if (wrong.length > 0) throw new Error(`parsed wrongly: ${wrong}`);
    },

    "frames can be paused and cleared": async (tab) => {
      await tab.press(LEFT, "[data-do=pause]");
      await tab.press(LEFT, "[data-do=clear]");
      await tab.write(LEFT, "Unseen on the wire");
      await tab.confirmed(LEFT);
      if ((await tab.frames(LEFT)) !== "") throw new Error("a frame was shown during the pause");
      await tab.press(LEFT, "[data-do=pause]");
      if (!(await tab.frames(LEFT)).includes("Unseen on the wire")) throw new Error("a frame was lost in the pause");
    },

    "a message to nobody comes back": async (tab) => {
      await tab.fill(LEFT, ".add input", "nobody-of-that-name@elsewhere.invalid");
      await (await tab.find(LEFT, ".add input")).press("Enter");
      await tab.write(LEFT, "Hello?");
      await tab.until("not delivered", LEFT, (pane) =>
        /not delivered: /.test(pane.querySelector(".message.mine.failed .message-progress")?.textContent));
      await tab.pick(LEFT, jid(RIGHT));
    },

    "a logout is seen": async (tab) => {
      await tab.logout(RIGHT);
      await tab.presence(LEFT, jid(RIGHT), "offline");
    },

    "a wrong password is said plainly": async (tab) => {
      await tab.login(RIGHT, { password: "not the user name" });
      await tab.until("wrong password", RIGHT, (pane) =>
        pane.dataset.state === "offline" && pane.querySelector(".state").innerText.startsWith("Wrong password"));
      await tab.page.reload({ waitUntil: "load" });
      await tab.online(LEFT);
      await tab.until("no login by itself", RIGHT, (pane) => pane.dataset.state === "offline");
    },

    "by keyboard alone": async (tab) => {
      const { page } = tab;
      const inside = (selector) => page.evaluate((selector) =>
        Boolean(document.activeElement?.closest(".pane[data-side=right]") && document.activeElement.matches(selector)), selector);
      const tabTo = async (selector) => {
        for (let count = 0; count < 80; count += 1) {
          if (await inside(selector)) return;
          await page.keyboard.press("Tab");
        }
        throw new Error(`no way to ${selector} by Tab`);
      };
      await page.evaluate(() => document.activeElement?.blur());
      await tabTo("input[name=user]");
      await page.keyboard.press("Enter");
      await tab.online(RIGHT);
      if (!(await inside("textarea"))) throw new Error("after the login the focus is not where one writes");
      await page.keyboard.type("Without a mouse");
      await page.keyboard.press("Enter");
      await tab.reads(LEFT, "Without a mouse");
      await page.keyboard.press("Escape");
      if (!(await inside(".contact"))) throw new Error("Escape does not lead to the contacts");
      await page.keyboard.press("ArrowDown");
      await page.keyboard.press("Enter");
      if (!(await inside("textarea"))) throw new Error("Enter on a contact does not lead to where one writes");
    },

    "both log out": async (tab) => {
      await tab.logout(LEFT);
      await tab.logout(RIGHT);
    },
  };
}

/** axe-core's judgement of the page as it stands. */
async function accessible(page, where) {
  // The policy forbids scripts from elsewhere; the debugger may all the same.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  const told = violations.map(({ id, impact, help, nodes }) =>
    `${where}: ${impact} ${id}: ${help}: ${nodes.map(({ target }) => target.join(" ")).slice(0, 4).join(", ")}`);
  if (told.length > 0) throw new Error(told.join("\n"));
}

const LOOKS = [
  { name: "desktop-light", scheme: "light", viewport: { width: 1440, height: 1000 } },
  { name: "desktop-dark", scheme: "dark", viewport: { width: 1440, height: 1000 } },
  { name: "phone-light", scheme: "light", viewport: { width: 390, height: 844, deviceScaleFactor: 2, isMobile: true, hasTouch: true } },
  { name: "phone-dark", scheme: "dark", viewport: { width: 390, height: 844, deviceScaleFactor: 2, isMobile: true, hasTouch: true } },
];

/** How the page looks and what it is for those who do not see it, before and after a login. */
function looks(config) {
  const login = `${LEFT.name}@${config.domain}`;
  const each = async (tab, state) => {
    for (const { name, scheme, viewport } of LOOKS) {
      await tab.page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
      // A change of device is a new start of the page.
      await tab.page.setViewport(viewport);
      if (state === "") for (const who of [LEFT, RIGHT]) await tab.online(who);
      await tab.settled();
      // Not innerWidth: a phone zooms out until everything fits.
      const width = await tab.page.evaluate(() => document.documentElement.scrollWidth);
      if (width > viewport.width) throw new Error(`${name}: ${width} pixels wide`);
      await accessible(tab.page, name);
      await tab.page.evaluate(() => scrollTo(0, 0));
      const path = `${screenshots}/${name}${state}.png`;
      await tab.page.screenshot({ path, fullPage: true });
      console.log(JSON.stringify({ screenshot: path }));
    }
    await tab.page.emulateMediaFeatures([]);
    await tab.page.setViewport({ width: 1280, height: 1000 });
  };
  return {
    "looks and accessibility, not connected": (tab) => each(tab, "-start"),
    "looks and accessibility, connected": async (tab) => {
      for (const who of [LEFT, RIGHT]) {
        await tab.login(who);
        await tab.online(who);
      }
      const lines = [
        [LEFT, "Good morning! Does the ferry from Karaköy sail today?"],
        [RIGHT, "It does. Every twenty minutes, and the sea is calm."],
        [LEFT, "Then I take the one at half past eight, and we have tea on your shore."],
        [RIGHT, "Here is the timetable: https://timetable.example/lines/karakoy-kadikoy/winter/monday-to-friday?stops=all&direction=east"],
      ];
      for (const [who, text] of lines) {
        await tab.write(who, text);
        await tab.reads(who === LEFT ? RIGHT : LEFT, text);
      }
      await tab.press(RIGHT, "[data-do=large]");
      await tab.until("60000 characters", LEFT, (pane) => Boolean(pane.querySelector(".message:not(.mine)[data-length=\"60000\"]")));
      await tab.write(LEFT, "All of it arrived.");
      await tab.reads(RIGHT, "All of it arrived.");
      await tab.pick(RIGHT, config.room);
      await tab.pick(LEFT, config.room);
      await tab.write(LEFT, "And here is everyone.");
      // Rooms have a history.
      await tab.until("the room's message", RIGHT, (pane) => pane.querySelector(".log").innerText.includes("And here is everyone."));
      await tab.pick(LEFT, `${RIGHT.name}@${config.domain}`);
      await tab.pick(RIGHT, login);
      await each(tab, "");
    },
  };
}

/** In a browser that lets no page keep anything. */
const forgetful = {
  "in and out without storage": async (tab) => {
    for (const who of [LEFT, RIGHT]) {
      await tab.login(who);
      await tab.online(who);
    }
    for (const who of [LEFT, RIGHT]) await tab.logout(who);
  },
};

async function run(tab, name, list) {
  let broken = false;
  for (const [step, action] of Object.entries(list)) {
    const line = { case: name, step };
    try {
      if (broken) throw new Error("not run: an earlier step failed");
      await action(tab);
      if (tab.faults.length > 0) throw new Error(tab.faults.splice(0).join("\n"));
      console.log(JSON.stringify({ ...line, ok: true }));
    } catch (error) {
      const faults = tab.faults.splice(0).join("\n");
      console.log(JSON.stringify({ ...line, ok: false, detail: `${error.message}\n${faults}` }));
      if (!broken) await tab.page.screenshot({ path: `${screenshots}/failure-${name}.png` }).catch(() => {});
      broken = true;
    }
  }
}

// Over a pipe, whose end is also the browser's, however this script ends.
const browser = await puppeteer.launch({ executablePath: chromium, userDataDir: profile, args: FLAGS, headless: true, pipe: true });
try {
  const config = await (await fetch(new URL("/demo/config.json", url))).json();
  const cases = [["websocket", "websocket"]];
  if (config.bosh) cases.push(["bosh", "bosh"], ["websocket", "bosh"]);
  for (const transports of cases) {
    const name = [...new Set(transports)].join("+");
    const tab = await Tab.open(browser, transports);
    const list = steps(config);
    // Over BOSH the transport sees by itself that it is lost.
    if (transports[0] !== "websocket") delete list["nobody is lost unasked"];
    await run(tab, name, list);
    await tab.close();
  }
  const tab = await Tab.open(browser, cases.at(-1));
  await run(tab, "page", looks(config));
  await tab.close();
  const without = await Tab.open(browser, cases[0], () => {
    Object.defineProperty(window, "sessionStorage", { get() { throw new DOMException("no", "SecurityError"); } });
  });
  await run(without, "no storage", forgetful);
  await without.close();
} finally {
  await browser.close();
}
