// Characters that cannot be seen: shown, and kept from changing what stands beside them.

import { make } from "./dom.js";

// Controls; soft hyphen; zero width, but for the joiners that emoji and scripts need; marks of
// direction; tags.
const HIDDEN = new RegExp(
  "[\\0-\\x08\\v\\f\\x0e-\\x1f\\x7f-\\x9f\\xad\\u180e\\u200b\\u2060-\\u2065\\ufeff" +
    "\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\u{e0000}-\\u{e007f}]",
  "u",
);
const EACH_HIDDEN = new RegExp(HIDDEN.source, "gu");

function code(character) {
  return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

// Appends the text. What cannot be seen stays in it, in a box of its own (`bdi` in effect) that
// bears its code: an override of the direction then ends where it began, and a copy is exact.
export function appendText(element, text) {
  if (!HIDDEN.test(text)) {
    element.append(text);
    return;
  }
  let from = 0;
  for (const found of text.matchAll(EACH_HIDDEN)) {
    if (found.index > from) element.append(text.slice(from, found.index));
    const box = make("span", "hidden-character", found[0]);
    box.dataset.code = code(found[0]);
    element.append(box);
    from = found.index + found[0].length;
  }
  if (from < text.length) element.append(text.slice(from));
}

const SPACES = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽" };

// A token's text with everything in it visible.
export function visible(text) {
  if (text === "") return "∅";
  return text
    .replace(/[ \n\t\r\u00a0]/g, (character) => SPACES[character])
    .replace(EACH_HIDDEN, (character) => `⟨${code(character)}⟩`);
}
