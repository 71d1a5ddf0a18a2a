// Requests to the server, the key that they may need, and errors as one sentence.

import { find, tell } from "./dom.js";

const KEY = "crossroads.key";
let key = null;
let asking = null;

try {
  key = sessionStorage.getItem(KEY);
} catch {
  // A browser that keeps nothing asks for the key again after a reload.
}

export class ApiError extends Error {
  constructor(message, { status = null, param = null, code = null, type = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code, type });
  }
}

export function errorOf(error, status = null) {
  const message = error?.message || "The server answered with an error that it did not explain.";
  return new ApiError(message, { ...error, status });
}

export function isAbort(error) {
  return error?.name === "AbortError";
}

async function failure(response) {
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // Not the server's own words: a proxy, perhaps.
  }
  const unsaid = { message: `The server answered ${response.status} without saying why.` };
  const found = errorOf(error ?? unsaid, response.status);
  const wait = response.headers.get("Retry-After");
  if (wait) found.message += ` (The server asks to wait ${wait} s.)`;
  return found;
}

async function send(path, { body, signal }) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key) headers.Authorization = `Bearer ${key}`;
  const method = body === undefined ? "GET" : "POST";
  const text = body && JSON.stringify(body);
  try {
    return await fetch(path, { method, headers, signal, body: text, cache: "no-store" });
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ApiError("The server cannot be reached. Is it still running? Then try again.");
  }
}

// Resolves to a response that is fine. A 401 opens the field for a key, unless `quiet`.
export async function request(path, { body, signal, quiet = false } = {}) {
  for (;;) {
    const response = await send(path, { body, signal });
    if (response.ok) return response;
    const error = await failure(response);
    if (response.status !== 401 || quiet || !(await askForKey(error.message))) throw error;
  }
}

export async function getJson(path, options) {
  return (await request(path, options)).json();
}

function keep(text) {
  key = text;
  try {
    sessionStorage.setItem(KEY, text);
  } catch {
    // See above.
  }
}

// One field, however many requests need it. Resolves to whether there is a key to try.
function askForKey(reason) {
  asking ??= openKey(reason).finally(() => {
    asking = null;
  });
  return asking;
}

function openKey(reason) {
  const dialog = find("key-dialog");
  const field = find("key");
  find("key-reason").textContent = reason;
  tell(find("key-error"), null);
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "use"), { once: true });
  });
}

// A header takes nothing but visible ASCII.
function wrongWith(text) {
  if (text === "") return "The key is empty; paste it here.";
  if (/^[\x21-\x7e]+$/.test(text)) return null;
  return "A key has no spaces and only ASCII characters; copy it again.";
}

export function wireKey() {
  const dialog = find("key-dialog");
  find("key-cancel").addEventListener("click", () => dialog.close(""));
  find("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = find("key").value.trim();
    const wrong = wrongWith(text);
    tell(find("key-error"), wrong);
    if (wrong) return;
    keep(text);
    dialog.close("use");
  });
}
