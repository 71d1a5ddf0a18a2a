// An answer on the page: its text, its thinking, what it cost, how it ended.

import { make, tell } from "./dom.js";
import { count, percent, rate, score, seconds } from "./numbers.js";
import { TokenView } from "./tokens.js";
import { FINISHES } from "./words.js";

const REFRESH = 120; // ms between changes of the running numbers

function fact(name, value) {
  const element = make("span", "fact");
  element.append(make("b", "", value), ` ${name}`);
  return element;
}

export class AnswerView {
  // heading: shown above where several answers stand side by side.
  constructor(answer, { scale, thinks, heading = null, live = true }) {
    this.answer = answer;
    this.scale = scale;
    this.thinks = thinks;
    this.text = new TokenView(answer, `Answer of ${answer.model}`);
    this.thoughts = null;
    this.timer = 0;
    this.element = make("article", "answer");
    this.element.dataset.model = answer.model;
    this.element.setAttribute("aria-label", `Answer of ${answer.model}`);
    this.element.setAttribute("aria-busy", "true");
    if (live) this.text.heard.setAttribute("aria-live", "polite");
    this.place = make("div", "thinking-place");
    this.facts = make("div", "facts");
    this.failed = make("p", "failed wrong");
    this.failed.hidden = true;
    if (heading) this.element.append(heading);
    this.element.append(this.place, this.text.heard, this.text.element, this.failed, this.facts);
    this.refresh(true);
  }

  add(tokens) {
    for (const token of tokens) this.viewOf(token).add(this.shownText(token), this.scale);
    this.refresh(this.text.tokens.length === 1);
  }

  // A tag of a model that thinks is a token, but not a part of either text.
  shownText(token) {
    return this.thinks && token.channel === null ? { ...token, text: "" } : token;
  }

  viewOf(token) {
    const tag = this.thinks && token.channel === null;
    const thinking = token.channel === "reasoning" || (tag && !this.answer.content);
    if (!thinking) {
      if (this.thoughts && this.text.tokens.length === 0) this.endThinking();
      return this.text;
    }
    this.thoughts ??= this.beginThinking();
    return this.thoughts.view;
  }

  beginThinking() {
    const details = make("details", "thinking");
    const summary = make("summary", "", "Thinking …");
    const view = new TokenView(this.answer, `Thinking of ${this.answer.model}`);
    details.open = true;
    details.append(summary, view.heard, view.element);
    this.place.append(details);
    return { details, summary, view };
  }

  // Folded when the answer begins, unless the reader stands in it.
  endThinking() {
    const { details, summary, view } = this.thoughts;
    summary.textContent = `Thought for ${count(view.tokens.length, "token")}`;
    view.flush();
    if (!details.contains(document.activeElement)) details.open = false;
  }

  end() {
    if (this.thoughts && this.text.tokens.length === 0) this.endThinking();
    this.text.flush();
    this.element.setAttribute("aria-busy", "false");
    tell(this.failed, this.answer.error?.message);
    this.refresh(true);
  }

  // Now, or with the numbers of a moment later if they were refreshed a moment ago.
  refresh(now) {
    if (!now) {
      this.timer ||= setTimeout(() => this.refresh(true), REFRESH);
      return;
    }
    clearTimeout(this.timer);
    this.timer = 0;
    const answer = this.answer;
    if (!answer.tokens.length) {
      const waiting = make("span", "muted", "waiting for the first token …");
      this.facts.replaceChildren(answer.running ? waiting : this.ending());
      return;
    }
    this.facts.replaceChildren(...this.numbers());
  }

  numbers() {
    const answer = this.answer;
    const parts = [];
    if (answer.model !== "mixed" || answer.largeFraction === null) {
      const { length } = answer.tokens;
      parts.push(fact(length === 1 ? "token" : "tokens", String(length)));
    } else {
      const share = make("span", "share");
      share.style.setProperty("--share", answer.largeFraction);
      const fraction = fact("large_fraction", percent(answer.largeFraction));
      fraction.classList.add("large-fraction");
      parts.push(share, fraction, make("span", "", `${answer.large} large, ${answer.small} small`));
    }
    parts.push(
      fact("tokens/s", rate(answer.tokensPerSecond)),
      fact("to first token", seconds(answer.firstToken)),
      fact("in all", seconds(answer.seconds)),
    );
    if (answer.model === "mixed" && answer.threshold != null) {
      parts.push(fact("threshold", answer.threshold > 1 ? "above 1" : score(answer.threshold)));
    }
    const discarded = answer.routing?.discarded_tokens;
    if (discarded) parts.push(fact("taken back", String(discarded)));
    parts.push(this.ending());
    return parts;
  }

  ending() {
    const { finish } = this.answer;
    return make("span", "muted", finish === null ? "" : FINISHES[finish] ?? `ended by ${finish}`);
  }
}
