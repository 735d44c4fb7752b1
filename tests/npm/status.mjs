// The status page in a real Chromium: what it shows is what /metrics shows. See tab.mjs for what is
// printed. Argument: {"admin": …, "chromium": …, "profile": …, "screenshots": …} as JSON.

import { Tab, drive, equal, metrics, sum } from "./tab.mjs";

const config = JSON.parse(process.argv[2]);
const { admin, screenshots } = config;

/** What Prometheus makes of the buckets: histogram_quantile. */
function quantile(q, samples, family, labels) {
  const wanted = Object.entries(labels).map(([name, value]) => `${name}="${value}"`);
  const buckets = Object.entries(samples)
    .filter(([sample]) => sample.startsWith(`${family}_bucket`) && wanted.every((one) => sample.includes(one)))
    .map(([sample, count]) => [Number(sample.match(/le="([^"]*)"/)[1].replace("+Inf", "Infinity")), count])
    .sort(([one], [other]) => one - other);
  const rank = q * buckets.at(-1)[1];
  const at = buckets.findIndex(([, count]) => count >= rank);
  if (buckets[at][0] === Infinity) return buckets.at(-2)[0];
  const [start, below] = at === 0 ? [0, 0] : buckets[at - 1];
  return start + (buckets[at][0] - start) * (rank - below) / (buckets[at][1] - below);
}

const shown = (page) => page.evaluate(() => Object.fromEntries([...document.querySelectorAll("#comparison tr[data-id]")].map((row) => [
  row.dataset.id,
  Object.fromEntries([...row.querySelectorAll("td[data-transport]")].map((cell) => [cell.dataset.transport, cell.dataset.value === undefined ? null : Number(cell.dataset.value)])),
])));

await drive(config, async (browser, step) => {
  const tab = await Tab.open(browser, `${admin}/status`);
  const { page } = tab;

  await step(tab, "it is fed live", async () => {
    await tab.until("figures", () => document.getElementById("feed").textContent === "Live");
    await tab.until("rows", () => document.querySelector("tr[data-id=elements] td.bosh").dataset.value > 0);
    await tab.until("points", () => document.querySelector("[data-id=wire] .plot-value").textContent !== "–");
  });

  await step(tab, "numbers are those of /metrics", async () => {
    // Whatever passes meanwhile, a ping say, would make a difference: then once more.
    let before, page_, after;
    for (let count = 0; count < 5; count += 1) {
      before = await metrics(`${admin}/metrics`);
      await new Promise((resolve) => setTimeout(resolve, 2_500));
      page_ = await shown(page);
      after = await metrics(`${admin}/metrics`);
      if (JSON.stringify(before) === JSON.stringify(after)) break;
    }
    for (const transport of ["websocket", "bosh"]) {
      const of = (family) => sum(after, family, { transport });
      const [elements, payload, wire] = ["stanzas", "payload_bytes", "wire_bytes"].map((name) => of(`bosphorus_${name}_total`));
      const opened = of("bosphorus_sessions_opened_total");
      const expected = {
        "sessions": of("bosphorus_sessions"),
        opened,
        elements,
        payload,
        wire,
        "wire-per-element": wire / elements,
        "wire-per-session": wire / opened,
        "overhead": wire / payload - 1,
        "requests-per-element": of("bosphorus_http_requests_total") / elements,
        "connections-per-element": of("bosphorus_client_connections_total") / elements,
        "connections-per-session": of("bosphorus_client_connections_total") / opened,
      };
      for (const q of [0.5, 0.95, 0.99]) {
        for (const direction of ["to_server", "to_client"]) {
          expected[`${direction}-p${q * 100}`] = quantile(q, after, "bosphorus_delivery_seconds", { transport, direction });
        }
        if (transport === "bosh") expected[`wait-p${q * 100}`] = quantile(q, after, "bosphorus_bosh_wait_seconds", {});
      }
      for (const [id, value] of Object.entries(expected)) {
        if (!(value > 0)) throw new Error(`${transport} ${id}: nothing was measured`);
        equal(`${transport} ${id}`, page_[id][transport], value);
      }
    }
    if (page_["wait-p50"].websocket !== null) throw new Error("a WebSocket waits for no request");
  });

  await step(tab, "refusals, endings and servers are listed", async () => {
    await tab.until("the refused upgrade", () => /WebSocket upgrade\s+subprotocol\s+1/.test(document.getElementById("refused").innerText));
    await tab.until("the ending", () => /client lost\s+client\s+1\s+0/.test(document.getElementById("endings").innerText));
    await tab.until("the server", () => /xmpp:\/\/127\.0\.0\.1:\d+\s+up/.test(document.getElementById("servers").innerText));
  });

  await step(tab, "who still uses BOSH is listed", async () => {
    await tab.until("the one over BOSH", () => /Client\s+Page\s+Domain\s+Logins\s+none\s+none\s+\S+\s+1$/.test(document.getElementById("census").innerText.trim()));
  });

  await step(tab, "the last minute, by keyboard", async () => {
    await page.focus("#ranges button");
    await page.keyboard.press("Enter");
    await tab.until("pressed", () => document.querySelector("#ranges [aria-pressed=true]").dataset.seconds === "60");
    // The process is younger than that.
    await tab.until("told how long", () => /Figures since the process began/.test(document.getElementById("range-words").textContent));
  });

  await step(tab, "a plot as a table", async () => {
    await page.click("[data-id=elements] summary");
    await tab.until("rows", () => document.querySelectorAll("[data-id=elements] tbody tr").length > 0);
  });

  await step(tab, "looks and accessibility", () => tab.looks(screenshots, "status"));
  await page.close();

  // Without a feed it asks.
  const other = await browser.newPage();
  await other.evaluateOnNewDocument(() => { window.WebSocket = class { constructor() { setTimeout(() => this.onclose?.({})); } }; });
  const asking = { page: other, faults: [] };
  await step(asking, "without a feed it asks", async () => {
    await other.goto(`${admin}/status`, { waitUntil: "load" });
    await other.waitForFunction(() => document.getElementById("feed").textContent === "Asking every two seconds");
  });
});
