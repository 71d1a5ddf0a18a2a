// Elements. Texts of models and people reach the page as textContent and attributes alone.

const SVG = "http://www.w3.org/2000/svg";

export function find(id) {
  return document.getElementById(id);
}

export function make(tag, style, ...children) {
  const element = document.createElement(tag);
  if (style) element.className = style;
  element.append(...children);
  return element;
}

export function button(text, onClick, style = "quiet") {
  const element = make("button", style, text);
  element.type = "button";
  element.addEventListener("click", onClick);
  return element;
}

export function draw(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// Tells a screen reader without moving anything.
export function say(sentence) {
  find("said").textContent = sentence;
}

export function tell(element, sentence) {
  element.textContent = sentence ?? "";
  element.hidden = !sentence;
}
