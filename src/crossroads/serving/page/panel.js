// The panel beside the page, or over it where there is no room beside.

import { find } from "./dom.js";

const wide = matchMedia("(min-width: 62rem)");

function set(open) {
  document.body.classList.toggle("with-panel", open);
  find("panel").hidden = !open;
  find("panel-toggle").setAttribute("aria-expanded", String(open));
  const covered = open && !wide.matches;
  find("main").inert = covered;
  document.body.classList.toggle("covered", covered);
}

export function panelCovers() {
  return !wide.matches && !find("panel").hidden;
}

export function openPanel() {
  set(true);
  if (panelCovers()) find("panel-close").focus();
  else find("threshold").focus();
}

export function closePanel() {
  set(false);
  find("panel-toggle").focus();
}

export function wirePanel() {
  set(wide.matches);
  wide.addEventListener("change", () => set(wide.matches));
  find("panel-toggle").addEventListener("click", () => {
    if (find("panel").hidden) openPanel();
    else closePanel();
  });
  find("panel-close").addEventListener("click", closePanel);
}
