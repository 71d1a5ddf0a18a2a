// Server-sent events out of a streamed body.

const BETWEEN = /\r\n\r\n|\n\n|\r\r/;

function dataOf(block) {
  const lines = block.split(/\r\n|\n|\r/).filter((line) => line.startsWith("data:"));
  return lines.length ? lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n") : null;
}

// Yields each event's data; comments that only keep a connection open are skipped.
export async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let waiting = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      waiting += decoder.decode(value, { stream: !done });
      for (let found; (found = BETWEEN.exec(waiting)); ) {
        const data = dataOf(waiting.slice(0, found.index));
        waiting = waiting.slice(found.index + found[0].length);
        if (data !== null) yield data;
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
