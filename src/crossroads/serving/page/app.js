// Puts the page together. One concept a file; none of them knows this one.

import { getJson, wireKey } from "./api.js";
import { isOpen as cardIsOpen, hide as hideCard, setScale, wireCard } from "./card.js";
import { Conversation, MODELS } from "./conversation.js";
import { button, find, make, say, tell } from "./dom.js";
import { copy, exported, download, textOf } from "./exporting.js";
import { wireMonitor } from "./monitor.js";
import { parameters, percent, score } from "./numbers.js";
import { closePanel, openPanel, panelCovers, wirePanel } from "./panel.js";
import { Settings } from "./settings.js";
import { Threshold } from "./threshold.js";
import { wireTheme } from "./theme_button.js";

const EXAMPLES = [
  "What is 17 * 23? Think step by step.",
  "Write a Python function that returns the n-th prime.",
  "Tom has 3 boxes of 12 eggs and drops 7. How many are whole?",
];
const AGAIN = 3000; // ms between tries to reach a server that is not there
let connecting = 0;

const keyboard = matchMedia("(pointer: fine)");
const prompt = find("prompt");
const settings = new Settings();
const threshold = new Threshold(showChip);
let server = null;
let view = "chat";

const conversations = {
  chat: new Conversation(find("chat"), ["mixed"], { remembers: true, onChange: refresh }),
  compare: new Conversation(find("compare"), MODELS, { remembers: false, onChange: refresh }),
};

function context() {
  const { scale, value } = threshold;
  return { scale, settings: settings.read(), threshold: value, server };
}

function current() {
  return conversations[view];
}

function refresh() {
  const { running, turns } = current();
  find("send").hidden = running;
  find("stop").hidden = !running;
  for (const id of ["new", "copy", "export"]) find(id).disabled = turns.length === 0;
  find("retry").disabled = running || turns.length === 0;
  find("welcome").hidden = turns.length > 0;
  for (const name of Object.keys(conversations)) {
    find(name).hidden = name !== view || turns.length === 0;
  }
}

function showView(name) {
  hideCard();
  view = name;
  document.body.dataset.view = name;
  for (const element of document.querySelectorAll("[data-view][aria-pressed]")) {
    element.setAttribute("aria-pressed", String(element.dataset.view === name));
  }
  refresh();
}

function showChip(value) {
  const promised = threshold?.promised;
  const share = promised == null ? "" : ` · positive_rate ${percent(promised)}`;
  const text = `threshold ${value > 1 ? "above 1" : score(value)}`;
  find("chip").replaceChildren(text, make("span", "more", share));
}

function fit() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

// Runs something that asks the models; a setting that cannot be read is said where it stands.
async function asking(action) {
  hideCard();
  tell(find("notice"), null);
  if (!server) connect(); // a key that was not given at first is asked for again
  try {
    await action();
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    openPanel();
    error.field.focus();
    tell(find("notice"), error.message);
  }
}

function send() {
  const text = prompt.value.trim();
  if (!text || current().running) return;
  asking(async () => {
    const answering = current().ask(text, context());
    prompt.value = "";
    fit();
    if (!keyboard.matches) prompt.blur(); // or the keyboard on the screen covers the answer
    await answering;
  });
}

function wireComposer() {
  find("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  prompt.addEventListener("input", fit);
  find("stop").addEventListener("click", () => {
    current().stop();
    prompt.focus();
  });
  find("chip").addEventListener("click", openPanel);
  find("examples").append(...EXAMPLES.map((text) => button(text, () => {
    prompt.value = text;
    send();
    prompt.focus();
  }, "example")));
}

function wireTools() {
  find("new").addEventListener("click", () => {
    hideCard();
    current().clear();
    prompt.focus();
  });
  find("retry").addEventListener("click", () => asking(async () => current().retry(context())));
  find("export").addEventListener("click", () => {
    download("crossroads-conversation.json", exported(current(), view, server));
  });
  find("copy").addEventListener("click", async () => {
    try {
      await copy(textOf(current()));
      flash(find("copy"), "Copied");
    } catch (error) {
      tell(find("notice"), error.message);
    }
  });
  find("scores").addEventListener("change", (event) => {
    document.body.classList.toggle("with-scores", event.target.checked);
  });
  for (const element of document.querySelectorAll("[data-view][aria-pressed]")) {
    element.addEventListener("click", () => showView(element.dataset.view));
  }
}

function flash(element, text) {
  const before = element.textContent;
  element.textContent = text;
  say(text);
  setTimeout(() => {
    element.textContent = before;
  }, 1200);
}

// What is on top goes first: the card, the panel over a phone's page, then the answer that runs.
function wireEscape() {
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || find("key-dialog").open) return;
    if (cardIsOpen()) hideCard();
    else if (panelCovers()) closePanel();
    else if (current().running) current().stop();
    else return;
    event.preventDefault();
  });
}

function introduce() {
  const { small, large, router } = server;
  const sizes = `${parameters(small.parameters)} + ${parameters(large.parameters)}`;
  find("pair").textContent = `${server.pair} · ${sizes} · router ${router}`;
  find("introduction").textContent =
    `${small.name} proposes every token. The router scores it, and where the score reaches the ` +
    `threshold ${large.name} writes the token instead. Its tokens are coloured and underlined; ` +
    "point at any token to see why.";
}

async function connect() {
  clearTimeout(connecting);
  try {
    server = await getJson("/v1/routing");
    tell(find("notice"), null);
    threshold.learn(server);
    settings.learn(server);
    setScale(threshold.scale);
    introduce();
  } catch (error) {
    tell(find("notice"), error.message);
    if (error.status !== 401) connecting = setTimeout(connect, AGAIN);
  }
}

wireKey();
wireTheme();
wirePanel();
wireCard();
wireComposer();
wireTools();
wireEscape();
wireMonitor();
setScale(threshold.scale);
showView("chat");
connect();
if (keyboard.matches) prompt.focus();
