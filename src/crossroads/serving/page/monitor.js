// What the server does now, asked every two seconds while the panel's section is open.

import { getJson } from "./api.js";
import { draw, find, make } from "./dom.js";
import { count, parameters, percent, rate } from "./numbers.js";

const EVERY = 2000; // ms
const [WIDTH, HEIGHT] = [280, 72]; // of the histogram's own units

const TENTHS = "tenth of the calibration scores, low to high; the line is calibration.";
const TWO_RATES =
  "positive_rate is of scored tokens, large_fraction of written ones: two populations.";

let timer = 0;

function pair(name, value, title) {
  const row = make("div", "pair");
  row.append(make("dt", "", name), make("dd", "", value));
  if (title) row.title = title;
  return row;
}

// Tenths of the calibration scores hold a tenth each; live scores that still do have not drifted.
function histogram({ histogram: shares, tokens }) {
  const most = Math.max(2 / shares.length, ...shares);
  const height = (share) => (share / most) * (HEIGHT - 2);
  const wide = WIDTH / shares.length;
  const said = shares.map((share) => percent(share, 0)).join(", ");
  const svg = draw("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    class: "histogram",
    role: "img",
    "aria-label": `Live scores by tenth of the calibration scores: ${said}`,
  });
  shares.forEach((share, i) => {
    const [x, high] = [i * wide + 1.5, height(share)];
    svg.append(draw("rect", { x, y: HEIGHT - high, width: wide - 3, height: high, rx: 1.5 }));
  });
  const expected = HEIGHT - height(1 / shares.length);
  svg.append(draw("path", { d: `M0 ${expected}H${WIDTH}`, class: "expected" }));
  const caption = `${count(tokens, "live score")} by ${TENTHS}`;
  return make("figure", "", svg, make("figcaption", "note", caption));
}

function driftOf(live, promised) {
  const drift = live.drift;
  const parts = [];
  if (drift) {
    const verdict = make("p", "verdict", drift.sentence);
    verdict.dataset.verdict = drift.verdict;
    parts.push(verdict);
  }
  const rates = make("dl", "pairs");
  rates.append(pair("promised positive_rate", percent(drift?.promised_positive_rate ?? promised)));
  if (drift) rates.append(pair("live positive_rate", percent(drift.live_positive_rate)));
  rates.append(pair("live large_fraction", percent(live.large_fraction)));
  parts.push(rates, make("p", "note", TWO_RATES));
  if (drift?.histogram?.every(Number.isFinite)) parts.push(histogram(drift));
  return parts;
}

function modelsOf(server) {
  const list = make("dl", "pairs");
  for (const role of ["small", "large"]) {
    const { name, parameters: size } = server[role];
    list.append(pair(role, `${name}${size ? ` (${parameters(size)})` : ""}`));
  }
  list.append(pair("router", server.router));
  return list;
}

function show(server) {
  const { live } = server;
  const now = make("dl", "pairs now");
  now.append(
    pair("running", String(live.running)),
    pair("waiting", String(live.waiting)),
    pair("tokens/s", rate(live.tokens_per_second)),
  );
  const drift = driftOf(live, server.calibration?.positive_rate);
  find("monitor-body").replaceChildren(now, ...drift, modelsOf(server));
}

async function poll() {
  clearTimeout(timer);
  if (!find("monitor").open) return;
  if (!document.hidden) {
    try {
      show(await getJson("/v1/routing", { quiet: true }));
    } catch (error) {
      find("monitor-body").replaceChildren(make("p", "wrong", error.message));
    }
  }
  clearTimeout(timer);
  timer = setTimeout(poll, EVERY);
}

export function wireMonitor() {
  find("monitor").addEventListener("toggle", poll);
  document.addEventListener("visibilitychange", () => document.hidden || poll());
}
