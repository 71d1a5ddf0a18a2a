// Sampling and routing settings of the next message. An empty field leaves it to the server.

import { find, make, tell } from "./dom.js";

const FIELDS = [
  { name: "temperature", label: "Temperature", low: 0, high: 2, hint: "greedy" },
  { name: "max_tokens", label: "Max tokens", low: 1, whole: true, hint: "the server’s own" },
  { name: "seed", label: "Seed", whole: true, hint: "random" },
  { name: "max_large_fraction", label: "Large share at most", low: 0, high: 1, hint: "no limit" },
  { name: "revise_below", label: "Revise below", low: 0, high: 1, hint: "never" },
];

const ROUTING = new Set(["max_large_fraction", "revise_below"]);
const NOTE = "An empty field leaves it to the server. The last two are for mixed.";

function bounds({ low, high }) {
  if (high !== undefined) return ` from ${low} to ${high}`;
  return low === undefined ? "" : `, at least ${low}`;
}

// Returns the number, null for an empty field; throws a sentence.
function read(field, text) {
  if (text.trim() === "") return null;
  const value = Number(text.trim());
  const outside = value < (field.low ?? -Infinity) || value > (field.high ?? Infinity);
  if (!Number.isFinite(value) || outside || (field.whole && !Number.isSafeInteger(value))) {
    const kind = field.whole ? "a whole number" : "a number";
    const what = `${field.label} must be ${kind}${bounds(field)}`;
    throw new RangeError(`${what}, not “${text.trim()}”; or leave it empty.`);
  }
  return value;
}

function row(field) {
  const label = make("label", "field-row");
  const input = make("input", "number");
  input.name = field.name;
  input.inputMode = field.whole ? "numeric" : "decimal";
  input.autocomplete = "off";
  input.placeholder = field.hint;
  label.append(make("span", "", field.label), input);
  label.title = field.name;
  const error = make("p", "wrong");
  error.id = `${field.name}-error`;
  error.setAttribute("role", "alert");
  error.hidden = true;
  input.setAttribute("aria-describedby", error.id);
  input.addEventListener("input", () => check(field, input));
  return [label, error];
}

// Says at the field what is wrong with it; returns its value, or null where it is wrong or empty.
function check(field, input) {
  let [value, wrong] = [null, null];
  try {
    value = read(field, input.value);
  } catch (problem) {
    wrong = problem.message;
  }
  tell(find(`${field.name}-error`), wrong);
  input.setAttribute("aria-invalid", String(wrong !== null));
  return { value, wrong };
}

export class Settings {
  constructor() {
    this.form = find("settings-form");
    const system = make("label", "field-system", "System prompt");
    const text = make("textarea");
    text.name = "system";
    text.rows = 3;
    text.placeholder = "none";
    system.append(text);
    this.form.append(system, ...FIELDS.flatMap(row));
    this.form.append(make("p", "note", NOTE));
    this.form.addEventListener("submit", (event) => event.preventDefault());
  }

  learn({ defaults }) {
    if (!defaults) return;
    this.form.temperature.placeholder = String(defaults.temperature || "0, greedy");
    this.form.max_tokens.placeholder = String(defaults.max_tokens ?? "no limit");
  }

  // What to send: {system, temperature, ..., routing: {...}}, only what was filled in.
  // Throws a sentence, opens the panel's section and goes to the field that is wrong.
  read() {
    const found = { system: this.form.system.value.trim(), routing: {} };
    for (const field of FIELDS) {
      const input = this.form.elements[field.name];
      const { value, wrong } = check(field, input);
      if (wrong) {
        find("settings").open = true;
        throw Object.assign(new RangeError(wrong), { field: input });
      }
      if (value !== null) (ROUTING.has(field.name) ? found.routing : found)[field.name] = value;
    }
    return found;
  }
}
