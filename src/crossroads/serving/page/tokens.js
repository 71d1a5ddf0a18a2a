// The text of an answer, token by token, and walking it.

import { make } from "./dom.js";
import { appendText } from "./hidden.js";
import { isKept, spoken } from "./words.js";

const views = new WeakMap(); // of an element: its TokenView

const FENCE = /(^|\n)[ \t]*```/g;

// Whether text stands in a fenced block, for which the page takes a fixed-width face; no Markdown
// is read otherwise: tokens stay tokens.
class Fence {
  constructor() {
    this.line = "";
    this.inside = false;
  }

  // Takes a token's text; returns whether any of it is code.
  take(text) {
    const before = this.inside;
    const seen = this.line + text;
    const ends = [...seen.matchAll(FENCE)].map((mark) => mark.index + mark[0].length);
    const marks = ends.filter((end) => end > this.line.length);
    if (marks.length % 2) this.inside = !this.inside;
    this.line = seen.slice(seen.lastIndexOf("\n") + 1);
    return before || this.inside;
  }
}

// One element that is read as one text and walked as one control: a slider's children are
// presentational, its value is the token that the arrow keys have reached.
export class TokenView {
  constructor(answer, name) {
    this.answer = answer;
    this.tokens = [];
    this.at = 0;
    this.fence = new Fence();
    this.heard = make("div", "heard unselectable");
    this.spoken = "";
    this.element = make("div", "tokens");
    this.element.role = "slider";
    this.element.ariaReadOnly = "true";
    this.element.ariaLabel = `${name}, token by token`;
    this.element.ariaValueMin = "1";
    this.element.addEventListener("keydown", (event) => this.walk(event));
    this.element.addEventListener("focus", () => this.focused());
    views.set(this.element, this);
  }

  // `scale` gives the heat of a score.
  add(token, scale) {
    const span = make("span", "token");
    span.dataset.at = this.tokens.length;
    if (token.writer) span.dataset.writer = token.writer;
    if (isKept(token)) span.dataset.kept = "";
    if (token.score != null) span.style.setProperty("--score", scale.place(token.score).toFixed(3));
    appendText(span, token.text);
    if (this.fence.take(token.text)) span.classList.add("code");
    this.tokens.push(token);
    this.element.append(span);
    if (this.tokens.length === 1) this.element.tabIndex = 0;
    this.element.setAttribute("aria-valuemax", this.tokens.length);
    this.hear(token.text);
  }

  // Read aloud sentence by sentence, not token by token.
  hear(text) {
    this.spoken += text;
    if (/[.!?\n:]\s*$/.test(this.spoken)) this.flush();
  }

  flush() {
    if (this.spoken) this.heard.append(this.spoken);
    this.spoken = "";
  }

  span(at) {
    return this.element.children[at];
  }

  focused() {
    if (this.tokens.length && this.element.matches(":focus-visible")) this.go(this.at);
  }

  go(at, how = "key") {
    this.at = Math.min(Math.max(at, 0), this.tokens.length - 1);
    const text = spoken(this.tokens[this.at], this.at, this.tokens.length, this.answer.threshold);
    this.element.setAttribute("aria-valuenow", this.at + 1);
    this.element.setAttribute("aria-valuetext", text);
    const detail = { view: this, at: this.at, how };
    this.element.dispatchEvent(new CustomEvent("token", { bubbles: true, detail }));
  }

  walk(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const last = this.tokens.length - 1;
    const to = { ArrowRight: this.at + 1, ArrowLeft: this.at - 1, Home: 0, End: last,
      ArrowDown: this.nextLarge(1), ArrowUp: this.nextLarge(-1) }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.go(to);
  }

  nextLarge(step) {
    for (let at = this.at + step; at >= 0 && at < this.tokens.length; at += step) {
      if (this.tokens[at].writer === "large") return at;
    }
    return this.at;
  }
}

// The view and place of the token that an event happened on, or null.
export function tokenAt(target) {
  const span = target instanceof Element ? target.closest(".token") : null;
  const view = span && views.get(span.parentElement);
  return view ? { view, at: Number(span.dataset.at) } : null;
}
