// Dark or light by hand; theme.js shows what was chosen before the first paint.

import { find } from "./dom.js";

const system = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
}

function refresh() {
  find("theme").setAttribute("aria-pressed", String(isDark()));
}

export function wireTheme() {
  refresh();
  system.addEventListener("change", refresh);
  find("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("crossroads.theme", root.dataset.theme);
    } catch {
      // It then lasts as long as the page.
    }
    refresh();
  });
}
