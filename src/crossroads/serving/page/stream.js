// One request, from its sending to the end of its stream.

import { ApiError, errorOf, isAbort, request } from "./api.js";
import { events } from "./sse.js";

const now = () => performance.now() / 1000;

function broken(answer) {
  const kept = answer.tokens.length ? "What had arrived is kept" : "Nothing had arrived";
  const what = "The connection broke before the answer had ended.";
  return new ApiError(`${what} ${kept}; Retry asks again.`);
}

function whatHappened(error, answer) {
  if (error instanceof ApiError) return error;
  if (!(error instanceof SyntaxError)) return broken(answer);
  return new ApiError("The server sent something that is no JSON; Retry asks again.");
}

async function read(answer, signal, onTokens) {
  answer.started = now();
  const response = await request("/v1/chat/completions", { body: answer.body, signal });
  if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
    throw new ApiError("The server did not stream. Is something else listening at this address?");
  }
  let done = false;
  for await (const data of events(response.body)) {
    done ||= data === "[DONE]";
    if (done) continue; // the server closes; hanging up first would look like a stop to it
    const chunk = JSON.parse(data);
    if (chunk.error) throw errorOf(chunk.error);
    onTokens(answer.take(chunk, now()));
  }
  if (!done) throw broken(answer);
}

// Fills the answer; it always ends with `finish` or `error`. Calls `onTokens` with what arrives.
export async function run(answer, signal, onTokens) {
  try {
    await read(answer, signal, onTokens);
    answer.finish ??= "unknown";
  } catch (error) {
    if (isAbort(error) || signal.aborted) answer.finish = "stopped";
    else answer.error = whatHappened(error, answer);
  }
}
