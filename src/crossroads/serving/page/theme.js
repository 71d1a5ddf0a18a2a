"use strict";
// Runs before the first paint: the colours that were chosen here before, or else the system's.
{
  let chosen = null;
  try {
    chosen = localStorage.getItem("crossroads.theme");
  } catch {
    // A browser that keeps nothing shows the system's colours.
  }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
}
