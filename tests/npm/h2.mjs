// BOSH in a real Chromium over TLS: tabs of one browser, in each several sessions of Strophe, all of
// which write to each other. Prints one JSON object a line:
//   {"step": …, "ok": …, "detail": …}   what was done
//   {"seen": {…}}                       how the browser and the gateway's metrics say it went
// Argument: {"url": …, "metrics": …, "domain": …, "tabs": [[{"name": …, "password": …}, …], …],
//   "chromium": …, "profile": …, "spki": …} as JSON; "spki" is the certificate's SHA-256, in base64.

import { readFile } from "node:fs/promises";
import puppeteer from "puppeteer-core";

const PATIENCE = 15_000;
const { url, metrics, domain, tabs, chromium, profile, spki } = JSON.parse(process.argv[2]);
const strophe = await readFile(new URL("./node_modules/strophe.js/dist/strophe.umd.cjs", import.meta.url), "utf8");
const { hostname } = new URL(url);

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  `--ignore-certificate-errors-spki-list=${spki}`,
  `--host-resolver-rules=MAP ${hostname} 127.0.0.1`,
];

/** Samples of the gateway's metrics, by their names and labels. */
async function samples() {
  const text = await (await fetch(metrics)).text();
  const lines = text.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  return Object.fromEntries(lines.map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ") + 1))]));
}

const handshakes = (samples) => samples['bosphorus_tls_handshakes_total{outcome="ok",version="1.3"}'] ?? 0;

async function until(what, test) {
  const end = performance.now() + PATIENCE;
  for (;;) {
    const found = await test();
    if (found !== undefined) return found;
    if (performance.now() > end) throw new Error(`waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Runs in the page: logs in, and keeps what comes. The full JID. */
function login(url, jid, password) {
  const { Strophe, $pres } = window;
  window.sessions ??= [];
  const session = { connection: new Strophe.Connection(url), bodies: [] };
  session.connection.addHandler((message) => {
    const body = message.getElementsByTagName("body")[0];
    if (body) session.bodies.push(body.textContent);
    return true;
  }, null, "message");
  window.sessions.push(session);
  return new Promise((resolve, reject) => {
    session.connection.connect(jid, password, (status, condition) => {
      const { CONNECTED, AUTHFAIL, CONNFAIL, ERROR, DISCONNECTED } = Strophe.Status;
      if (status === CONNECTED) {
        session.connection.send($pres().tree());
        resolve(session.connection.jid);
      } else if (status === DISCONNECTED) {
        session.gone?.();
        reject(new Error("disconnected"));
      } else if ([AUTHFAIL, CONNFAIL, ERROR].includes(status)) {
        reject(new Error(`status ${status}: ${condition}`));
      }
    });
  });
}

// Over a pipe, whose end is also the browser's, however this script ends.
const browser = await puppeteer.launch({ executablePath: chromium, userDataDir: profile, args: FLAGS, headless: true, pipe: true });
try {
  const pages = [];
  const wire = [];
  const jids = [];
  const steps = {
    "the tabs open": async () => {
      for (const _ of tabs) {
        const page = await browser.newPage();
        page.setDefaultTimeout(PATIENCE);
        // The library is not the gateway's, whose pages allow no scripts.
        await page.setBypassCSP(true);
        const tools = await page.createCDPSession();
        await tools.send("Network.enable");
        tools.on("Network.responseReceived", ({ type, response }) => {
          if (type === "XHR" || type === "Fetch") wire.push(response);
        });
        const { status } = await page.goto(url).then((response) => ({ status: response.status() }));
        if (status !== 200) throw new Error(`status ${status}`);
        await page.evaluate(strophe);
        pages.push(page);
      }
      console.log(JSON.stringify({ seen: { handshakes: handshakes(await samples()) } }));
    },
    "all log in": async () => {
      const logins = tabs.map((accounts, at) => accounts.map(({ name, password }) =>
        pages[at].evaluate(login, url, `${name}@${domain}`, password)));
      for (const each of logins) jids.push(await Promise.all(each));
    },
    "each writes to each": async () => {
      const all = jids.flat();
      for (const page of pages) {
        await page.evaluate((all) => {
          for (const { connection } of window.sessions) {
            for (const to of all) {
              connection.send(window.$msg({ to, type: "chat" }).c("body").t(`from ${connection.jid}`).tree());
            }
          }
        }, all);
      }
      const expected = all.map((jid) => `from ${jid}`).sort().join("\n");
      for (const page of pages) {
        const source = `window.sessions.every(({ bodies }) => [...bodies].sort().join("\\n") === ${JSON.stringify(expected)})`;
        await page.waitForFunction(source, { polling: 50 });
      }
    },
    "one request of each is held": async () => {
      const count = jids.flat().length;
      // A browser may have opened a second connection before it knew of HTTP/2, which it closes.
      await until(`${count} open requests on one connection`, async () => {
        const now = await samples();
        const connections = Object.entries(now).filter(([name]) => name.startsWith("bosphorus_http_connections{"));
        const open = connections.reduce((sum, [, value]) => sum + value, 0);
        return now.bosphorus_bosh_requests_open === count && open === 1 ? now : undefined;
      });
      console.log(JSON.stringify({ seen: { held: count } }));
    },
    "all log out": async () => {
      for (const page of pages) {
        await page.evaluate(() => Promise.all(window.sessions.map((session) => new Promise((resolve) => {
          session.gone = resolve;
          session.connection.disconnect("done");
        }))));
      }
    },
    "the browser says how it went": async () => {
      const protocols = {};
      for (const page of pages) {
        const list = await page.evaluate((url) => performance.getEntriesByType("resource")
          .filter(({ name, initiatorType }) => name === url && ["xmlhttprequest", "fetch"].includes(initiatorType))
          .map(({ nextHopProtocol }) => nextHopProtocol), url);
        for (const protocol of list) protocols[protocol] = (protocols[protocol] ?? 0) + 1;
      }
      const connections = new Set(wire.map(({ connectionId }) => connectionId)).size;
      const answers = wire.length;
      const others = wire.filter(({ protocol, status }) => protocol !== "h2" || status !== 200).length;
      console.log(JSON.stringify({ seen: { protocols, connections, answers, others } }));
    },
  };
  for (const [step, action] of Object.entries(steps)) {
    try {
      await action();
      console.log(JSON.stringify({ step, ok: true }));
    } catch (error) {
      console.log(JSON.stringify({ step, ok: false, detail: error.message }));
      process.exitCode = 1;
      break;
    }
  }
} finally {
  await browser.close();
}
