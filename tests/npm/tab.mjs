// A tab of a real Chromium and all that went wrong in it; and the steps of a script, each printed as
// {"step": …, "ok": …, "detail": …}, one JSON object a line.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import puppeteer from "puppeteer-core";

export const PATIENCE = 15_000;
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

export const LOOKS = [
  { name: "desktop-light", scheme: "light", viewport: { width: 1280, height: 900 } },
  { name: "desktop-dark", scheme: "dark", viewport: { width: 1280, height: 900 } },
  { name: "phone-light", scheme: "light", viewport: { width: 390, height: 844 } },
  { name: "phone-dark", scheme: "dark", viewport: { width: 390, height: 844 } },
];

export class Tab {
  faults = [];

  static async open(browser, url, made = null) {
    const tab = new Tab();
    const page = made ?? await browser.newPage();
    tab.page = page;
    page.setDefaultTimeout(PATIENCE);
    page.on("console", (line) => {
      if (["error", "warn", "assert"].includes(line.type())) tab.faults.push(`console: ${line.text()}`);
    });
    page.on("pageerror", (error) => tab.faults.push(`exception: ${error.message}`));
    page.on("response", (response) => {
      if (response.status() >= 400) tab.faults.push(`status ${response.status()}: ${response.url()}`);
    });
    await page.exposeFunction("violated", (what) => tab.faults.push(`policy violated: ${what}`));
    await page.evaluateOnNewDocument(() => {
      addEventListener("securitypolicyviolation", (event) => {
        window.violated(`${event.violatedDirective} by ${event.blockedURI}`);
      });
    });
    await page.setViewport({ width: 1280, height: 900 });
    await page.goto(url, { waitUntil: "load" });
    return tab;
  }

  /** Waits until `test(…values)`, run in the page, is true. */
  async until(what, test, ...values) {
    await this.page.waitForFunction(test, { polling: 50 }, ...values).catch(async (error) => {
      const seen = await this.page.$eval("body", (body) => body.innerText).catch(() => "");
      throw new Error(`waited in vain for: ${what} (${error.message})\n${seen.slice(0, 3000)}`);
    });
  }

  /** In light and dark, wide and narrow: nothing sticks out, and axe-core finds nothing. */
  async looks(screenshots, name) {
    for (const look of LOOKS) {
      await this.page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: look.scheme }]);
      await this.page.setViewport(look.viewport);
      const width = await this.page.evaluate(() => document.documentElement.scrollWidth);
      if (width > look.viewport.width) throw new Error(`${look.name}: ${width} pixels wide`);
      // The policy forbids scripts from elsewhere; the debugger may all the same.
      await this.page.evaluate(axe);
      const { violations } = await this.page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
      const told = violations.map(({ id, impact, help, nodes }) =>
        `${look.name}: ${impact} ${id}: ${help}: ${nodes.map(({ target }) => target.join(" ")).slice(0, 4).join(", ")}`);
      if (told.length > 0) throw new Error(told.join("\n"));
      if (screenshots) await this.page.screenshot({ path: `${screenshots}/${name}-${look.name}.png`, fullPage: true });
    }
    await this.page.emulateMediaFeatures([]);
    await this.page.setViewport({ width: 1280, height: 900 });
  }
}

/** Starts a browser, runs `script(browser, step)` and ends it, however it went. */
export async function drive({ chromium, profile }, script) {
  // Over a pipe, whose end is also the browser's, however this script ends.
  const browser = await puppeteer.launch({ executablePath: chromium, userDataDir: profile, args: FLAGS, headless: true, pipe: true });
  let broken = false;
  const step = async (tab, title, action) => {
    try {
      if (broken) throw new Error("not run: an earlier step failed");
      await action();
      if (tab.faults.length > 0) throw new Error(tab.faults.splice(0).join("\n"));
      console.log(JSON.stringify({ step: title, ok: true }));
    } catch (error) {
      console.log(JSON.stringify({ step: title, ok: false, detail: `${error.stack}\n${tab.faults.splice(0).join("\n")}` }));
      broken = true;
    }
  };
  try {
    await script(browser, step);
  } finally {
    await browser.close();
  }
}

/** The samples of a text of metrics, by names and labels as they are written. */
export async function metrics(url) {
  const text = await (await fetch(url)).text();
  const lines = text.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  return Object.fromEntries(lines.map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ") + 1))]));
}

/** The sum of the samples of a family that have these labels. */
export function sum(samples, family, labels = {}) {
  const wanted = Object.entries(labels).map(([name, value]) => `${name}="${value}"`);
  return Object.entries(samples)
    .filter(([sample]) => (sample === family || sample.startsWith(`${family}{`)) && wanted.every((one) => sample.includes(one)))
    .reduce((all, [, value]) => all + value, 0);
}

export function equal(what, found, expected) {
  const near = Math.abs(found - expected) <= 1e-9 * Math.max(1, Math.abs(expected));
  if (!near) throw new Error(`${what}: ${found}, expected ${expected}`);
}
