// The threshold of the next message: a slider on a logarithmic axis over the calibration scores.

import { draw, find, tell } from "./dom.js";
import { percent, score } from "./numbers.js";
import { STEPS, Scale } from "./scale.js";

const BINS = 75;
const RANGE = "A threshold is a number from 0 (large alone) to above 1 (small alone)";
const USUAL = 0.5; // where a router without a threshold of its own begins
const [WIDTH, HEIGHT] = [300, 56]; // of the drawing's own units

export class Threshold {
  // onChange(threshold) after every change.
  constructor(onChange) {
    this.onChange = onChange;
    this.own = null;
    this.calibration = null;
    this.scale = new Scale(null);
    this.value = null; // not known: the server takes its own
    this.slider = find("threshold");
    this.slider.max = STEPS;
    this.slider.disabled = find("threshold-value").disabled = true;
    this.slider.addEventListener("input", () => this.set(this.fromStep(Number(this.slider.value))));
    find("threshold-value").addEventListener("change", (event) => this.typed(event.target.value));
    find("own").addEventListener("click", () => this.set(this.own));
  }

  // The server's own threshold and calibration, from GET /v1/routing.
  learn({ threshold, calibration, score_quantiles: quantiles }) {
    this.scale = new Scale(quantiles);
    this.own = threshold;
    this.slider.disabled = find("threshold-value").disabled = false;
    this.calibration = calibration;
    this.densities = this.scale.density(BINS);
    find("own").hidden = threshold === null;
    find("own").style.setProperty("--at", this.scale.along(threshold ?? USUAL));
    this.set(threshold ?? USUAL);
  }

  // The slider's step nearest to the router's own threshold means exactly that.
  fromStep(step) {
    const isOwn = this.own !== null && step === this.scale.step(this.own);
    return isOwn ? this.own : this.scale.threshold(step);
  }

  typed(text) {
    const value = Number(text.trim());
    const wrong = text.trim() === "" || !Number.isFinite(value) || value < 0;
    if (!wrong) {
      this.set(value);
      return;
    }
    tell(find("threshold-error"), `${RANGE}, not “${text}”.`);
    this.write();
  }

  set(value) {
    this.value = value;
    this.slider.value = this.scale.step(value);
    tell(find("threshold-error"), null);
    this.write();
    find("promise").textContent = this.promise();
    find("promise-note").textContent = this.note();
    find("own").setAttribute("aria-pressed", String(value === this.own));
    this.slider.setAttribute("aria-valuetext", `${this.named()}. ${this.promise()}`);
    this.sketch();
    this.onChange(value);
  }

  write() {
    const short = String(Number(this.value.toPrecision(4)));
    find("threshold-value").value = this.value > 1 ? "above 1" : short;
  }

  named() {
    if (this.value === 0) return "0, large alone";
    if (this.value > 1) return "above 1, small alone";
    return this.value === this.own ? `${score(this.value)}, the router’s own` : score(this.value);
  }

  get promised() {
    if (this.value === this.own && this.calibration) return this.calibration.positive_rate;
    return this.scale.promised(this.value);
  }

  promise() {
    if (this.value === 0) return "The large model writes every token.";
    if (this.value > 1) return "The small model writes every token.";
    if (this.promised === null) return "This router has no calibration to promise anything.";
    return `positive_rate ${percent(this.promised)}: so many calibration tokens reach it.`;
  }

  note() {
    if (this.value === this.own && this.calibration?.recall != null) {
      const recall = percent(this.calibration.recall);
      return `The router’s own: on calibration it catches ${recall} of the divergent tokens.`;
    }
    return "For the next message; one that runs keeps its own.";
  }

  // How the calibration scores lie on the axis; those that the large model would get, filled.
  sketch() {
    const svg = find("density");
    svg.replaceChildren();
    if (!this.densities) return;
    const at = this.scale.along(this.value);
    const from = (i) => ((1 + (i / BINS) * (STEPS - 2)) / STEPS) * WIDTH;
    this.densities.forEach((share, i) => {
      const [left, right] = [from(i), from(i + 1)];
      const [width, height] = [right - left - 0.8, share * (HEIGHT - 4)];
      const style = (left + right) / 2 >= at * WIDTH ? "large" : "small";
      svg.append(draw("rect", { x: left, y: HEIGHT - height, width, height, class: style }));
    });
  }
}
