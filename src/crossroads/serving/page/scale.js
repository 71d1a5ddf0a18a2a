// A logarithmic axis for scores, and what calibration says of a threshold on it.

export const STEPS = 400; // of the slider: 0 is the large model alone, STEPS the small model alone
export const ABOVE = 1.01; // scores end at 1

const LOWEST = 1e-6; // a router whose least score is 0 starts here
const USUAL = 1e-5; // without calibration

export class Scale {
  // quantiles: evenly spaced ones of the calibration scores, or null.
  constructor(quantiles) {
    this.quantiles = quantiles?.length > 1 ? quantiles : null;
    const least = this.quantiles ? Math.min(Math.max(this.quantiles[0], LOWEST), 0.1) : USUAL;
    this.floor = 10 ** Math.floor(Math.log10(least) + 1e-9);
  }

  // Between 0 and 1, as a score lies between the floor and 1.
  place(score) {
    if (score <= this.floor) return 0;
    return Math.min(1, 1 - Math.log(score) / Math.log(this.floor));
  }

  score(place) {
    return this.floor ** (1 - place);
  }

  threshold(step) {
    if (step <= 0) return 0;
    if (step >= STEPS) return ABOVE;
    return this.score((step - 1) / (STEPS - 2));
  }

  step(threshold) {
    if (threshold <= 0) return 0;
    if (threshold > 1) return STEPS;
    return 1 + Math.round(this.place(threshold) * (STEPS - 2));
  }

  // Where the handle of a threshold lies along the slider, between 0 and 1.
  along(threshold) {
    return this.step(threshold) / STEPS;
  }

  // The share of calibration scores that reach the threshold; null without calibration.
  promised(threshold) {
    if (!this.quantiles) return null;
    if (threshold <= 0) return 1;
    if (threshold > 1) return 0;
    return 1 - this.below(threshold);
  }

  below(score) {
    const q = this.quantiles;
    const last = q.length - 1;
    if (score <= q[0]) return 0;
    if (score > q[last]) return 1;
    let i = 0;
    while (q[i + 1] < score) i += 1;
    const [low, high] = [Math.log(Math.max(q[i], this.floor)), Math.log(q[i + 1])];
    const part = high > low ? (Math.log(score) - low) / (high - low) : 1;
    return (i + Math.min(1, Math.max(0, part))) / last;
  }

  // How many scores lie in each of `bins` equal stretches of the axis, the fullest being 1.
  density(bins) {
    if (!this.quantiles) return null;
    const edges = Array.from({ length: bins + 1 }, (_, i) => this.below(this.score(i / bins)));
    const share = (i) => (i < 0 || i >= bins ? 0 : edges[i + 1] - edges[i]);
    const near = (i) => share(i - 1) + 2 * share(i) + share(i + 1);
    const smooth = Array.from({ length: bins }, (_, i) => near(i));
    const most = Math.max(...smooth);
    return smooth.map((value) => value / most);
  }
}
