"use strict";
// Texts of models and people reach the page as textContent and attributes alone.
const WRITERS = {
  s: "the small model wrote it",
  t: "the small model wrote it; the large model was asked and let it stand",
  k: "the large model wrote what the small model had proposed",
  c: "the large model wrote it",
  a: "the large model wrote it",
};
const CAUSES = {
  r: "the score reached the threshold",
  m: "the large model had not been asked for too long",
  v: "the large model found the small model\u2019s token implausible",
  f: "the answer would have ended with tokens that the large model had not seen",
};
const details = new WeakMap(); // of a trace: what its tokens tell

function make(tag, style, text) {
  const element = document.createElement(tag);
  if (style) element.className = style;
  if (text !== undefined) element.textContent = text;
  return element;
}

async function unpack(text) {
  if (!("DecompressionStream" in window)) throw new Error("it cannot decompress (DecompressionStream)");
  const bytes = Uint8Array.from(atob(text.trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

let sharing;
function shared() {
  sharing ||= unpack(document.getElementById("shared").textContent).then(({ systems, pieces }) => ({
    systems,
    pieces: new Map(pieces.ids.map((id, i) => [id, pieces.bytes[i]])),
  }));
  return sharing;
}

function bytesOf(piece) {
  return Uint8Array.from(piece, (character) => character.charCodeAt(0));
}

// A character may be split over tokens: the one that completes it shows it.
function textsOf(ids, pieces) {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const texts = ids.map((id) => decoder.decode(bytesOf(pieces.get(id) || ""), { stream: true }));
  if (texts.length) texts[texts.length - 1] += decoder.decode();
  return texts;
}

function alone(id, pieces) {
  const piece = pieces.get(id);
  return piece ? new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytesOf(piece)) : `\u27e8${id}\u27e9`;
}

// Columns that skip tokens are spread over all of them again.
function tokensOf(answer, pieces) {
  const texts = textsOf(answer.ids, pieces);
  let asked = 0, replaced = 0;
  return answer.ids.map((id, i) => {
    const writer = answer.writers[i];
    const token = { id, writer, text: texts[i], special: !pieces.get(id) };
    if (writer !== "s") {
      token.lag = answer.lags[asked];
      token.cause = answer.causes[asked++];
    }
    if (writer === "c") token.was = alone(answer.proposals[replaced++], pieces);
    token.score = answer.scores?.[i];
    token.entropy = answer.entropies?.[i];
    return token;
  });
}

function told(token, place, count) {
  let shown = token.special ? `\u27e8${token.id}\u27e9` : JSON.stringify(token.text);
  if (!token.special && !token.text) shown = "a part of a character";
  const parts = [`${shown} \u00b7 token ${place + 1} of ${count}`, WRITERS[token.writer]];
  if (token.was !== undefined) parts.push(`the small model proposed ${JSON.stringify(token.was)}`);
  if (token.score != null) parts.push(`score ${(token.score / 10000).toFixed(4)}`);
  if (token.entropy != null) parts.push(`entropy ${(token.entropy / 100).toFixed(2)} nats`);
  if (token.lag > 0) parts.push(`the large model read ${token.lag} token${token.lag === 1 ? "" : "s"}`);
  if (CAUSES[token.cause]) parts.push(`asked because ${CAUSES[token.cause]}`);
  return parts.join(" \u00b7 ");
}

function traceOf(answer, pieces, name) {
  const trace = make("p", /^a+$/.test(answer.writers) ? "trace plain" : "trace");
  trace.tabIndex = 0;
  trace.setAttribute("role", "group");
  trace.setAttribute("aria-label", `${name}; arrow keys go from token to token`);
  const tokens = tokensOf(answer, pieces);
  for (const token of tokens) {
    const span = make("span", token.writer, token.special ? `\u27e8${token.id}\u27e9` : token.text);
    if (token.special) span.classList.add("special");
    if (token.was !== undefined) span.dataset.was = token.was;
    trace.append(span);
  }
  details.set(trace, (place) => told(tokens[place], place, tokens.length));
  return trace;
}

function verdictOf(answer) {
  return answer.correct ? "correct" : answer.parsed === null ? "unparsed" : "wrong";
}

function factsOf(answer) {
  const large = [...answer.writers].filter((writer) => "kca".includes(writer)).length;
  const count = answer.ids.length;
  const facts = answer.parsed === null ? [] : [`answer ${answer.parsed}`];
  facts.push(answer.reason, `${count} tokens, ${count ? ((100 * large) / count).toFixed(1) : 0} % by the large model`);
  facts.push(`ended by ${answer.finish}`);
  if (answer.threshold !== null) facts.push(`threshold ${answer.threshold.toFixed(4)}`);
  return facts.filter(Boolean).join(" \u00b7 ");
}

function sectionOf(answer, { systems, pieces }, samples) {
  const section = make("section", "answer");
  const name = systems[answer.system] + (samples > 1 ? `, sample ${answer.sample + 1}` : "");
  const head = make("h4", "", `${name}: `);
  head.append(make("span", verdictOf(answer), verdictOf(answer)));
  const about = make("output", "about");
  about.setAttribute("aria-live", "polite");
  section.append(head, make("p", "note", factsOf(answer)), traceOf(answer, pieces, name));
  if (answer.text !== undefined) {
    section.append(make("p", "note", "What was graded is not simply these tokens:"), make("div", "prompt", answer.text));
  }
  section.append(about);
  return section;
}

async function fill(problem) {
  const place = problem.querySelector(".body");
  if (place.dataset.filled) return;
  place.dataset.filled = "yes";
  try {
    const [found, common] = await Promise.all([unpack(problem.querySelector("script").textContent), shared()]);
    const samples = Math.max(...found.answers.map((answer) => answer.sample + 1));
    place.replaceChildren();
    for (const [role, content] of found.messages) place.append(make("div", "note", role), make("div", "prompt", content));
    place.append(make("div", "note", "gold answer"), make("div", "prompt", found.gold));
    for (const answer of found.answers) place.append(sectionOf(answer, common, samples));
  } catch (error) {
    place.textContent = `This browser cannot show the answers: ${error.message}. They are in answers.parquet, too.`;
  }
}

function tell(trace, token) {
  trace.querySelector(".here")?.classList.remove("here");
  token.classList.add("here");
  const place = Array.prototype.indexOf.call(trace.children, token);
  trace.closest(".answer").querySelector(".about").textContent = details.get(trace)(place);
}

function tokenAt(target) {
  const trace = target.closest?.(".trace");
  return trace && target !== trace ? [trace, target] : [];
}

for (const kind of ["click", "pointerover"]) {
  document.addEventListener(kind, (event) => {
    const [trace, token] = tokenAt(event.target);
    if (trace) tell(trace, token);
  });
}

const STEPS = {
  ArrowRight: (here) => here.nextElementSibling,
  ArrowLeft: (here) => here.previousElementSibling,
  Home: (here) => here.parentElement.firstElementChild,
  End: (here) => here.parentElement.lastElementChild,
};
document.addEventListener("keydown", (event) => {
  const trace = event.target;
  if (!details.has(trace) || !(event.key in STEPS) || !trace.firstElementChild) return;
  event.preventDefault();
  const here = trace.querySelector(".here");
  const next = here ? STEPS[event.key](here) || here : trace.firstElementChild;
  tell(trace, next);
  next.scrollIntoView({ block: "nearest" });
});

function wanted(problem, filter) {
  const flags = problem.dataset.flags.split(",");
  const looked = filter.system.value === "" ? flags : [flags[Number(filter.system.value)]];
  return (
    problem.dataset.id.toLowerCase().includes(filter.id.value.trim().toLowerCase()) &&
    (!filter.disputed.checked || problem.dataset.disputed === "yes") &&
    (!filter.wrong.checked || looked.some((letters) => letters.includes("w"))) &&
    (!filter.unparsed.checked || looked.some((letters) => letters.includes("u")))
  );
}

for (const form of document.querySelectorAll(".filter")) {
  const filter = form.elements;
  const list = form.parentElement.querySelector(".problems");
  const update = () => {
    let count = 0;
    for (const problem of list.children) {
      problem.hidden = !wanted(problem, filter);
      count += !problem.hidden;
    }
    filter.count.value = `${count} of ${list.children.length} problems`;
    list.classList.toggle("proposals", filter.proposals.checked);
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  list.addEventListener("toggle", (event) => {
    if (!event.target.classList.contains("problem") || !event.target.open) return;
    fill(event.target);
    history.replaceState(null, "", `#${event.target.id}`);
  }, true);
  update();
}

const tasks = [...document.querySelectorAll(".task")];
function showTask(task) {
  for (const other of tasks) other.hidden = other !== task;
  for (const link of document.querySelectorAll(".tasks a")) {
    if (link.hash === `#${task.id}`) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

// #task-1 shows a task, #p1-20 opens a problem of it.
function follow() {
  const target = location.hash ? document.getElementById(location.hash.slice(1)) : null;
  const task = target?.closest(".task") || tasks[0];
  if (task) showTask(task);
  if (!target?.classList.contains("problem")) return;
  target.hidden = false;
  target.open = true;
  fill(target).then(() => target.scrollIntoView());
}
document.documentElement.classList.add("scripted");
window.addEventListener("hashchange", follow);
follow();
