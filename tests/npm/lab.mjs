// The lab in a real Chromium: each of its buttons, with both transports, and its figures beside those
// that the gateway sent. See tab.mjs for what is printed. Argument: {"url": …, "metrics": …,
// "account": {"jid": …, "password": …} or null, "chromium": …, "profile": …, "screenshots": …} as JSON.

import { Tab, drive, equal, metrics, sum } from "./tab.mjs";

const config = JSON.parse(process.argv[2]);
const { url, account, screenshots } = config;
const BOTH = ["websocket", "bosh"];

/** What the gateway sent to the page: the snapshots, in their order. */
async function record(page) {
  const events = [];
  const client = await page.createCDPSession();
  client.on("Network.eventSourceMessageReceived", ({ data }) => events.push(JSON.parse(data)));
  await client.send("Network.enable");
  return events;
}

/** The sum of a family's samples of a transport in a snapshot. */
const total = ({ families }, family, transport) =>
  (families[family] ?? []).filter(({ labels }) => labels.transport === transport).reduce((all, { value }) => all + value, 0);

const online = (tab) => tab.until("both online", () =>
  [...document.querySelectorAll(".pane")].map((pane) => pane.dataset.state).join() === "online,online");

/** Presses a button, waits until it is done, and gives what is shown: id of the row → transport → value. */
async function act(tab, name) {
  await tab.until("a button to press", (name) => !document.querySelector(`[data-act=${name}]`).disabled, name);
  await tab.page.click(`[data-act=${name}]`);
  await tab.until("the work begun", (name) => document.querySelector(`[data-act=${name}]`).disabled, name);
  await tab.until(`${name} done`, () => /: (done\.|broken off)/.test(document.getElementById("doing").textContent));
  const words = await tab.page.$eval("#doing", (one) => one.textContent);
  if (!words.endsWith("done.")) throw new Error(words);
  return tab.page.evaluate((name) => {
    const body = document.querySelector("#results tbody");
    if (body.dataset.act !== name) throw new Error(`a result of ${body.dataset.act}`);
    return Object.fromEntries([...body.querySelectorAll("tr[data-id]")].map((row) => [row.dataset.id,
      Object.fromEntries([...row.querySelectorAll("td:not(.times)")].map((cell) => [cell.classList[0],
        cell.dataset.value === undefined ? cell.innerText.trim() : Number(cell.dataset.value)])),
    ]));
  }, name);
}

function check(what, is, shown) {
  if (!is) throw new Error(`${what}: ${JSON.stringify(shown)}`);
}

/** What holds for whatever was sent and came back. */
function whole(shown) {
  for (const key of BOTH) {
    check(`${key}: nothing lost`, shown.lost[key] === 0, shown);
    check(`${key}: more on the wire than in it`, shown.wire[key] > shown.bytes[key], shown);
  }
  check("a WebSocket makes no requests", shown.requests.websocket === 0, shown);
  check("BOSH does", shown.requests.bosh > 0, shown);
}

function actions(tab) {
  return {
    "send a message": async () => {
      const shown = await act(tab, "message");
      whole(shown);
      for (const key of BOTH) check(`${key}: a round trip`, shown.median[key] > 0, shown);
      check("BOSH needs one request for a message", shown.requests.bosh >= 1 && shown.requests.bosh <= 3, shown);
    },

    "send a burst": async () => {
      await tab.page.$eval("#burst", (input) => { input.value = 20; });
      const shown = await act(tab, "burst");
      whole(shown);
      for (const key of BOTH) {
        check(`${key}: in their order`, shown.median[key] <= shown.p95[key] && shown.p95[key] <= shown.took[key], shown);
        equal(`${key}: per message`, shown.perMessage[key], shown.wire[key] / 20);
      }
      // Over a WebSocket each is a frame; over BOSH several may share a request.
      check("frames", shown.frames.websocket >= 20, shown);
    },

    "send 60 kB in one stanza": async () => {
      const shown = await act(tab, "large");
      whole(shown);
      for (const key of BOTH) check(`${key}: there and back`, shown.bytes[key] > 120_000, shown);
    },

    "cut the line": async () => {
      const shown = await act(tab, "cut");
      for (const key of BOTH) {
        check(`${key}: nothing lost`, shown.lost[key] === 0, shown);
        check(`${key}: nothing twice`, shown.twice[key] === 0, shown);
        check(`${key}: a time`, shown.took[key] > 0, shown);
      }
      check("how", shown.how.websocket === "resumed (XEP-0198)" && shown.how.bosh === "the session went on (rid)", shown);
      check("a WebSocket is a new connection and an upgrade", shown.connections.websocket === 1 && shown.requests.websocket === 1, shown);
    },

    "do nothing": async () => {
      await tab.page.$eval("#idle", (input) => { input.value = 2; });
      const shown = await act(tab, "idle");
      check("no rows of messages", shown.lost === undefined && shown.median === undefined, shown);
      check("connections", BOTH.every((key) => shown.connections[key] === 0), shown);
    },
  };
}

/** The values of a plot, the oldest first. */
async function plotted(tab, id) {
  await tab.page.$eval(`[data-id=${id}] details`, (details) => { details.open = true; });
  await tab.until(`rows of ${id}`, (id) => document.querySelectorAll(`[data-id=${id}] tbody tr`).length > 3, id);
  return tab.page.$eval(`[data-id=${id}] tbody`, (body) => [...body.rows].reverse().map((row) =>
    [...row.cells].slice(1).map((cell) => (cell.dataset.value === undefined ? null : Number(cell.dataset.value)))));
}

await drive(config, async (browser, step) => {
  const page = await browser.newPage();
  const events = await record(page);
  const tab = await Tab.open(browser, url, page);

  if (account) {
    await step(tab, "asked who it is", async () => {
      await page.waitForSelector("#login:not([hidden])");
      await page.type("#login [name=jid]", "nobody");
      await page.click("#login-button");
      await tab.until("told what an address is", () => /juliet@example\.org/.test(document.getElementById("doing").textContent));
      await page.$eval("#login [name=jid]", (input) => { input.value = ""; });
      await page.type("#login [name=jid]", account.jid);
      await page.type("#login [name=password]", `not ${account.password}`);
      await page.keyboard.press("Enter");
      await tab.until("refused", () => [...document.querySelectorAll(".pane-words")].every((one) => one.textContent === "The server does not accept this password."));
      await page.$eval("#login [name=password]", (input) => { input.value = ""; });
      await page.type("#login [name=password]", account.password);
      await page.keyboard.press("Enter");
      await online(tab);
    });
    await step(tab, "nothing of it is kept", async () => {
      const kept = await page.evaluate(() => localStorage.length + sessionStorage.length + document.cookie.length);
      equal("what is kept", kept, 0);
    });
  } else {
    await step(tab, "reached from the demo's page, both connect by themselves", async () => {
      await Promise.all([page.waitForNavigation(), page.click("a[href='/lab']")]);
      await online(tab);
    });
    await step(tab, "what the browser loaded before is not BOSH's", async () => {
      const wire = sum(await metrics(config.metrics), "bosphorus_wire_bytes_total", { transport: "bosh" });
      check("bytes", wire > 0 && wire < 20_000, wire);
    });
  }

  for (const [title, action] of Object.entries(actions(tab))) await step(tab, title, action);

  await step(tab, "what is plotted is what the gateway sent", async () => {
    for (const [id, family] of [["wire", "bosphorus_wire_bytes_total"], ["requests", "bosphorus_http_requests_total"]]) {
      const drawn = await plotted(tab, id);
      const sent = events.slice(1).map((now, at) => BOTH.map((key) =>
        (total(now, family, key) - total(events[at], family, key)) / (now.uptime - events[at].uptime)));
      const fits = (end) => drawn.every((values, at) => BOTH.every((_, one) =>
        Math.abs(values[one] - (sent[end - drawn.length + at]?.[one] ?? NaN)) < 1e-6));
      // The last ones may have come since.
      if (![0, 1, 2, 3, 4].some((late) => fits(sent.length - late))) {
        throw new Error(`${id}: ${JSON.stringify(drawn.slice(-5))}, sent: ${JSON.stringify(sent.slice(-5))}`);
      }
      if (!BOTH.every((_, one) => sent.some((values) => values[one] > 0))) throw new Error(`${id}: nothing moved`);
    }
  });

  await step(tab, "the totals are those of /metrics", async () => {
    const first = events[0];
    // Whatever passes meanwhile makes a difference: then once more.
    for (let count = 0; ; count += 1) {
      const before = await metrics(config.metrics);
      await new Promise((resolve) => setTimeout(resolve, 1_200));
      const shown = await page.evaluate(() => Object.fromEntries([...document.querySelectorAll("#totals tbody:last-of-type tr[data-id]")].map((row) =>
        [row.dataset.id, [...row.querySelectorAll("td:not(.times)")].map((cell) => Number(cell.dataset.value))])));
      const after = await metrics(config.metrics);
      const names = { elements: "stanzas", payload: "payload_bytes", wire: "wire_bytes", requests: "http_requests", connections: "client_connections" };
      const of = (samples, name, transport) => sum(samples, `bosphorus_${name}_total`, { transport });
      const still = Object.values(names).every((name) => BOTH.every((key) => of(before, name, key) === of(after, name, key)));
      if (!still && count < 5) continue;
      for (const [id, name] of Object.entries(names)) {
        BOTH.forEach((key, at) => equal(`${id} ${key}`, shown[id][at], of(after, name, key) - total(first, `bosphorus_${name}_total`, key)));
      }
      break;
    }
  });

  await step(tab, "frames can be read, but no secret", async () => {
    for (const key of BOTH) {
      const text = await page.$eval(`.frames[data-transport=${key}] .frames-list`, (list) => list.textContent);
      for (const part of ["Under way 1", "Meanwhile 5", "no-store"]) check(`${key} has ${part}`, text.includes(part), text.slice(-500));
    }
    await page.click(".frames[data-transport=bosh] [data-do=clear]");
    await tab.until("cleared", () => document.querySelectorAll(".frames[data-transport=bosh] .frame").length === 0);
    await page.click("#disconnect");
    await tab.until("offline", () => [...document.querySelectorAll(".pane")].every((pane) => pane.dataset.state === "offline"));
    await page.click(account ? "#login-button" : "#connect");
    await online(tab);
    await tab.until("what is hidden", () => document.querySelector(".frames[data-transport=bosh]").textContent.includes("characters hidden"));
  });

  await step(tab, "by keyboard alone", async () => {
    await page.evaluate(() => document.activeElement?.blur());
    await page.focus("#disconnect");
    await page.keyboard.press("Tab");
    for (let count = 0; count < 20 && !(await page.evaluate(() => document.activeElement.dataset.act === "message")); count += 1) await page.keyboard.press("Tab");
    await page.$eval("#clear-results", (button) => button.click());
    await page.keyboard.press("Enter");
    await tab.until("a result", () => document.querySelector("#results tbody")?.dataset.act === "message");
    await page.$eval("#afresh", (button) => button.click());
    await tab.until("counted afresh", () => document.querySelector("#totals [data-id=sent] td.bosh").dataset.value === "0");
  });

  await step(tab, "looks and accessibility", () => tab.looks(screenshots, account ? "lab-serve" : "lab"));
  await page.close();
});
