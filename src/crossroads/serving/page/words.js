// What a token's record says, in sentences.

import { count, percent, score, seconds } from "./numbers.js";
import { visible } from "./hidden.js";

const CAUSES = {
  router: "its score reached the threshold",
  max_lag: "it had not been asked for too long",
  revision: "it found the small model’s token implausible",
  final: "the answer would have ended with tokens that it had not seen",
};

export const FINISHES = {
  stop: "ended by itself",
  length: "ended by max tokens",
  stopped: "you stopped it",
};

export function isKept(token) {
  return token.writer === "large" && token.proposed != null && token.proposed.id === token.token_id;
}

export function writerOf(token) {
  if (isKept(token)) return "The large model wrote what the small one had proposed";
  if (token.writer === "large") return "The large model wrote it";
  if (token.writer !== "small") return "The server did not say who wrote it";
  if (token.lag > 0) return "The small model wrote it, the large one let it stand";
  return "The small model wrote it";
}

export function causeOf(token) {
  return token.cause ? `asked because ${CAUSES[token.cause] ?? token.cause}` : null;
}

// The score beside the threshold, as the rule reads: score >= threshold goes to the large model.
export function comparison(token, threshold) {
  if (token.score == null) return null;
  if (threshold == null) return score(token.score);
  const limit = threshold > 1 ? "above 1" : score(threshold);
  return `${score(token.score)} ${token.score >= threshold ? "≥" : "<"} ${limit}`;
}

export function extrasOf(token) {
  const parts = [];
  if (token.lag > 0) parts.push(`the large model read ${count(token.lag, "token")}`);
  if (token.discarded > 0) parts.push(`${count(token.discarded, "small token")} taken back`);
  if (token.channel === null && token.text === "") parts.push("shows no text");
  return parts;
}

// A token as one sentence, for those who hear the page.
export function spoken(token, place, total, threshold) {
  const parts = [`${visible(token.text)}, token ${place + 1} of ${total}`, writerOf(token)];
  const cause = causeOf(token);
  if (cause) parts.push(cause);
  if (token.score != null) parts.push(`score ${comparison(token, threshold)}`);
  if (token.entropy != null) parts.push(`entropy ${token.entropy.toFixed(2)} nats`);
  for (const { text, probability } of token.proposals ?? []) {
    parts.push(`${visible(text)} ${percent(probability, 0)}`);
  }
  return [...parts, ...extrasOf(token), `at ${seconds(token.seconds)}`].join("; ");
}
