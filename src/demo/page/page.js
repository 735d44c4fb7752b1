// The page: two shores, and the strait between them.

import { BoshTransport } from "./bosh.js";
import { Pane } from "./pane.js";
import { WebSocketTransport } from "./websocket.js";

const SHORES = [
  { side: "left", user: "ayse" },
  { side: "right", user: "ali" },
];

/** How each connection may be made: name, title, and whether the gateway has it. */
function transports(config) {
  const socket = new URL(config.websocket, location.href);
  socket.protocol = socket.protocol.replace("http", "ws");
  return [
    {
      name: "websocket",
      title: "WebSocket",
      make: (on) => new WebSocketTransport(socket.href, config.domain, on),
    },
    {
      name: "bosh",
      title: "BOSH",
      make: config.bosh && ((on) => new BoshTransport(config.bosh, config.domain, on)),
    },
  ];
}

async function start() {
  const answer = await fetch("/demo/config.json", { cache: "no-cache" });
  const config = await answer.json();
  if (config.metrics) {
    const link = document.getElementById("metrics");
    link.href = config.metrics;
    link.hidden = false;
  }

  const shores = document.getElementById("shores");
  const choice = document.getElementById("switch");
  const strait = document.getElementById("strait");
  const panes = new Map();
  const other = (side) => panes.get(side === "left" ? "right" : "left");

  // On a small screen one shore is shown at a time.
  const showShore = (side) => {
    shores.dataset.shown = side;
    for (const tab of choice.children) tab.setAttribute("aria-pressed", String(tab.dataset.side === side));
    panes.get(side)?.shown();
  };

  for (const { side, user } of SHORES) {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.className = "switch-tab";
    tab.dataset.side = side;
    tab.addEventListener("click", () => showShore(side));
    const [tabName, tabWords] = ["switch-name", "switch-words"].map((className) => {
      const part = document.createElement("span");
      part.className = className;
      return part;
    });
    tab.append(tabName, " ", tabWords);
    choice.append(tab);
    const pane = new Pane({
      side,
      user,
      config,
      transports: transports(config),
      on: {
        user: (name) => other(side)?.setPeer(name),
        sent: () => { strait.dataset.ferry = side === "left" ? "right" : "left"; },
        status: ({ name, words, unread }) => {
          tabName.textContent = name;
          tabWords.textContent = unread > 0 ? `${words}, ${unread} unread` : words;
        },
      },
    });
    panes.set(side, pane);
    shores.append(pane.root);
  }
  for (const { side } of SHORES) panes.get(side).start(other(side).user);
  showShore("left");

  window.addEventListener("pagehide", () => panes.forEach((pane) => pane.leave()));
  // A page that comes back from the browser's memory was told that it goes.
  window.addEventListener("pageshow", ({ persisted }) => persisted && location.reload());
  window.addEventListener("online", () => panes.forEach((pane) => pane.hurry()));
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible") panes.forEach((pane) => pane.hurry());
  });
}

start().catch(() => {
  const words = document.createElement("p");
  words.className = "noscript";
  words.setAttribute("role", "alert");
  words.textContent = "The page could not be set up: the server did not answer. Reload it once the server is back.";
  document.getElementById("shores").replaceChildren(words);
});
