// How numbers are written on the page.

export function percent(share, digits = 1) {
  return share == null ? "–" : `${(100 * share).toFixed(digits)} %`;
}

// Scores live between 1e-5 and 1: three significant digits of each.
export function score(value) {
  if (value == null) return "–";
  if (value === 0) return "0";
  return value < 1e-3 ? value.toExponential(1) : value.toPrecision(3);
}

export function rate(tokensPerSecond) {
  if (tokensPerSecond == null) return "–";
  return tokensPerSecond.toFixed(tokensPerSecond < 10 ? 1 : 0);
}

export function seconds(value) {
  return value == null ? "–" : `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

export function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

export function parameters(number) {
  if (!number) return "";
  return number >= 1e9 ? `${(number / 1e9).toFixed(2)} B` : `${Math.round(number / 1e6)} M`;
}
