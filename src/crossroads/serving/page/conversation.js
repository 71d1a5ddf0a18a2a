// Turns: a prompt and its answers. The chat has one answer a turn, side by side has three.

import { Answer } from "./answer.js";
import { AnswerView } from "./answer_view.js";
import { make, say } from "./dom.js";
import { parameters, percent } from "./numbers.js";
import { run } from "./stream.js";

export const MODELS = ["small", "mixed", "large"];

export class Conversation {
  // models: who answers each turn. remembers: whether a turn sees those before it.
  constructor(element, models, { remembers, onChange }) {
    Object.assign(this, { element, models, remembers, onChange });
    this.turns = [];
    this.abort = null;
  }

  get running() {
    return this.abort !== null;
  }

  // What the models are to see: the turns that got an answer, and the prompt.
  messages(prompt, system) {
    const messages = system ? [{ role: "system", content: system }] : [];
    for (const { prompt: asked, answers } of this.remembers ? this.turns : []) {
      const { content } = answers[0];
      if (content) messages.push({ role: "user", content: asked }, { role: "assistant", content });
    }
    return [...messages, { role: "user", content: prompt }];
  }

  body(model, messages, { settings, threshold }) {
    const { system: _, routing, ...sampling } = settings;
    const asked = { ...(threshold !== null && { threshold }), ...routing };
    return {
      model,
      messages,
      ...sampling,
      stream: true,
      stream_options: { include_usage: true },
      routing: { ...(model === "mixed" && asked), trace: true },
    };
  }

  // context: {scale, settings, threshold, server} as they are when it is asked.
  async ask(prompt, context) {
    const messages = this.messages(prompt, context.settings.system);
    const bodies = this.models.map((model) => this.body(model, messages, context));
    const answers = bodies.map((body) => new Answer(body.model, body));
    const turn = { prompt, answers, element: make("div", "turn") };
    this.turns.push(turn);
    const views = this.show(turn, context);
    const abort = new AbortController();
    this.abort = abort;
    this.onChange();
    turn.element.scrollIntoView({ block: "start" });
    await Promise.all(answers.map((answer, i) => this.run(answer, views[i], abort.signal)));
    if (this.abort === abort) this.abort = null;
    this.announce(answers);
    this.onChange();
  }

  async run(answer, view, signal) {
    await run(answer, signal, (tokens) => {
      const follows = atFoot();
      view.add(tokens);
      if (follows) toFoot();
    });
    const follows = atFoot();
    view.end();
    if (follows) toFoot();
  }

  show(turn, { scale, server }) {
    const several = this.models.length > 1;
    const thinks = Boolean(server?.thinks);
    const views = turn.answers.map((answer) => {
      const heading = several ? headingOf(answer.model, server) : null;
      return new AnswerView(answer, { scale, thinks, heading, live: !several });
    });
    const prompt = make("div", "asked", turn.prompt);
    prompt.dir = "auto";
    const elements = views.map((view) => view.element);
    const answers = make("div", several ? "columns" : "column", ...elements);
    turn.element.append(prompt, answers);
    this.element.append(turn.element);
    return views;
  }

  announce(answers) {
    const said = answers.map(({ model, error, finish, largeFraction }) => {
      if (error) return `${model}: ${error.message}`;
      const by = model === "mixed" ? `, ${percent(largeFraction)} by the large model` : "";
      return finish === "stopped" ? `${model} stopped${by}` : `${model} has answered${by}`;
    });
    say(said.join(". "));
  }

  stop() {
    this.abort?.abort();
  }

  // Asks the last prompt again, with the settings of now; its earlier answer goes.
  retry(context) {
    const turn = this.turns.pop();
    turn.element.remove();
    return this.ask(turn.prompt, context);
  }

  clear() {
    this.stop();
    this.turns = [];
    this.element.replaceChildren();
    this.onChange();
  }
}

function headingOf(model, server) {
  const heading = make("h3", "who-answers", model);
  if (!server) return heading;
  const router = `router ${server.router}`;
  const about = model === "mixed" ? router : parameters(server[model].parameters);
  heading.append(make("span", "muted", about));
  return heading;
}

function atFoot() {
  return innerHeight + scrollY >= document.documentElement.scrollHeight - 80;
}

function toFoot() {
  scrollTo(0, document.documentElement.scrollHeight);
}
