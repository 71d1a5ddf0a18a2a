// The card of a token: who wrote it and why, and what the small model had in mind.

import { button, find, make } from "./dom.js";
import { visible } from "./hidden.js";
import { percent, seconds } from "./numbers.js";
import { tokenAt } from "./tokens.js";
import { causeOf, comparison, extrasOf, writerOf } from "./words.js";

const OPEN_AFTER = 90; // ms of rest on a token, so that a crossing pointer opens nothing
const NEXT_AFTER = 30; // ms, once a card is open
const CLOSE_AFTER = 220; // ms, enough to reach the card itself
const GAP = 8; // px between token and card

const phone = matchMedia("(max-width: 40rem)");
let shown = null; // {view, at, pinned}
let timer = 0;
let scale = null;

export function setScale(value) {
  scale = value;
}

function bar(share) {
  const track = make("span", "track");
  const filled = make("span", "filled");
  filled.style.setProperty("--share", share);
  track.append(filled);
  return track;
}

function scoreRow(token, threshold) {
  const row = make("div", "score-row");
  const track = make("span", "score-track");
  track.style.setProperty("--share", scale.place(token.score));
  if (threshold > 0 && threshold <= 1) {
    const tick = make("span", "tick");
    tick.style.setProperty("--share", scale.place(threshold));
    track.append(tick);
  }
  track.append(make("span", token.score >= threshold ? "dot large" : "dot"));
  const value = make("span", "value", comparison(token, threshold));
  row.append(make("span", "name", "score"), track, value);
  return row;
}

function proposalsOf(token) {
  const list = make("ol", "proposals");
  for (const { id, text, probability } of token.proposals) {
    const row = make("li", id === token.proposed?.id ? "chosen" : "");
    const value = make("span", "value", percent(probability));
    row.append(make("code", "", visible(text)), bar(probability), value);
    row.title = `token ${id}`;
    list.append(row);
  }
  return list;
}

function factsOf(token) {
  const facts = extrasOf(token);
  if (token.entropy != null) facts.unshift(`entropy ${token.entropy.toFixed(2)} nats`);
  if (token.seconds != null) facts.push(`at ${seconds(token.seconds)}`);
  return facts.join(" · ");
}

function fill(card, { view, at }) {
  const token = view.tokens[at];
  const threshold = view.answer.threshold;
  const head = make("div", "card-head");
  const which = make("span", "muted", `${at + 1} of ${view.tokens.length}`);
  head.append(make("code", "text", visible(token.text)), which);
  const close = button("×", hide, "icon close");
  close.setAttribute("aria-label", "Close the card");
  head.append(close);
  const who = make("p", "who", writerOf(token));
  if (token.writer) who.dataset.writer = token.writer;
  card.replaceChildren(head, who);
  const cause = causeOf(token);
  if (cause) card.append(make("p", "cause", cause));
  if (token.score != null && scale) card.append(scoreRow(token, threshold));
  if (token.proposals?.length) {
    card.append(make("p", "name", proposedLine(token)), proposalsOf(token));
  }
  card.append(make("p", "facts muted", factsOf(token)));
}

function proposedLine(token) {
  if (token.proposed && !token.proposals.some(({ id }) => id === token.proposed.id)) {
    return `the small model proposed ${visible(token.proposed.text)}; its likeliest were`;
  }
  return "the small model’s likeliest (▸ proposed)";
}

// Beside the token, below it where there is room; the whole foot of a phone.
function place(card, span) {
  card.classList.toggle("sheet", phone.matches);
  if (phone.matches) {
    card.style.left = card.style.top = "";
    return;
  }
  const boxes = span.getClientRects();
  const box = boxes[0] ?? span.getBoundingClientRect();
  const last = boxes[boxes.length - 1] ?? box;
  const { offsetWidth: width, offsetHeight: height } = card;
  const room = document.documentElement.clientWidth - width - GAP;
  const left = Math.min(Math.max(box.left - 12, GAP), room);
  const below = last.bottom + GAP;
  const top = below + height <= innerHeight - GAP ? below : Math.max(GAP, box.top - height - GAP);
  card.style.left = `${left}px`;
  card.style.top = `${top}px`;
}

function mark(on) {
  if (shown) shown.view.span(shown.at)?.classList.toggle("here", on);
}

function show(next) {
  clearTimeout(timer);
  mark(false);
  shown = next;
  mark(true);
  const card = find("card");
  fill(card, next);
  card.hidden = false;
  card.classList.toggle("pinned", next.pinned);
  place(card, next.view.span(next.at));
}

export function isOpen() {
  return shown !== null;
}

export function hide() {
  clearTimeout(timer);
  mark(false);
  shown = null;
  find("card").hidden = true;
}

function later(what, after) {
  clearTimeout(timer);
  timer = setTimeout(what, after);
}

function hovered(event) {
  if (event.pointerType !== "mouse" || event.buttons) return;
  if (find("card").contains(event.target)) {
    clearTimeout(timer);
    return;
  }
  const found = tokenAt(event.target);
  if (found && !shown?.pinned) {
    later(() => show({ ...found, pinned: false }), shown ? NEXT_AFTER : OPEN_AFTER);
  } else if (shown) {
    closeSoon();
  } else {
    clearTimeout(timer);
  }
}

function closeSoon() {
  if (shown && !shown.pinned) later(hide, CLOSE_AFTER);
}

function clicked(event) {
  if (find("card").contains(event.target)) return;
  const found = tokenAt(event.target);
  const selecting = !getSelection().isCollapsed;
  if (!found) {
    if (shown) hide();
  } else if (!selecting) {
    found.view.go(found.at, "click");
  }
}

// The card stays with its token, and goes when that leaves the page.
function follow() {
  if (!shown) return;
  const span = shown.view.span(shown.at);
  const { top, bottom } = span.getBoundingClientRect();
  if (bottom < 0 || top > innerHeight) hide();
  else place(find("card"), span);
}

export function wireCard() {
  document.addEventListener("token", ({ detail }) => {
    show({ view: detail.view, at: detail.at, pinned: true });
    if (detail.how === "key") detail.view.span(detail.at).scrollIntoView({ block: "nearest" });
  });
  document.addEventListener("pointerover", hovered);
  document.documentElement.addEventListener("pointerleave", closeSoon);
  document.addEventListener("click", clicked);
  document.addEventListener("focusout", (event) => {
    const inside = find("card").contains(event.relatedTarget);
    if (event.target.classList?.contains("tokens") && !inside) hide();
  });
  addEventListener("scroll", follow, { passive: true, capture: true });
  addEventListener("resize", hide);
}
