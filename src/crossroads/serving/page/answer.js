// What is known of one answer while it streams and afterwards. Times are seconds of this browser.

export class Answer {
  constructor(model, body) {
    this.model = model;
    this.body = body; // as it was sent
    this.tokens = []; // as the trace has them
    this.content = "";
    this.reasoning = "";
    this.finish = null; // why it ended; "stopped" if the reader did it
    this.routing = null;
    this.usage = null;
    this.error = null;
    this.started = null;
    this.first = null;
    this.last = null;
    this.traced = false;
    this.small = 0;
    this.large = 0;
  }

  get running() {
    return this.finish === null && this.error === null;
  }

  get threshold() {
    return this.routing?.threshold ?? this.body.routing?.threshold ?? null;
  }

  get largeFraction() {
    const written = this.small + this.large;
    return written ? this.large / written : null;
  }

  get firstToken() {
    return this.first === null ? null : this.first - this.started;
  }

  get seconds() {
    return this.last === null ? null : this.last - this.started;
  }

  // From the first token on: what a reader sees, without the wait for it.
  get tokensPerSecond() {
    const time = this.last - this.first;
    return this.tokens.length > 1 && time > 0 ? (this.tokens.length - 1) / time : null;
  }

  // Takes a chunk of the stream; returns the tokens that it brought.
  take(chunk, now) {
    if (chunk.routing) this.routing = chunk.routing;
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return [];
    const { content = "", reasoning_content: reasoning = "" } = choice.delta ?? {};
    this.content += content ?? "";
    this.reasoning += reasoning ?? "";
    if (choice.finish_reason) this.finish = choice.finish_reason;
    const tokens = this.tokensOf(choice, content, reasoning);
    if (tokens.length) {
      this.first ??= now;
      this.last = now;
    }
    for (const token of tokens) this.count(token);
    return tokens;
  }

  // Without a trace (a server that gives none) text still is text, by nobody in particular.
  tokensOf(choice, content, reasoning) {
    if (choice.trace?.length) {
      this.traced = true;
      return choice.trace;
    }
    if (this.traced) return [];
    return [
      { text: reasoning, channel: "reasoning" },
      { text: content, channel: "content" },
    ].filter((token) => token.text);
  }

  count(token) {
    this.tokens.push(token);
    if (token.writer === "large") this.large += 1;
    else if (token.writer === "small") this.small += 1;
  }
}
