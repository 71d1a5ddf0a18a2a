// What can be taken away: the conversation as JSON with its traces, or as text.

function errorOf({ message, status, param, code }) {
  return { message, status, param, code };
}

function answerOf(answer) {
  const { model, body, content, reasoning, finish, routing, usage, tokens, error } = answer;
  return {
    model,
    request: body,
    content,
    reasoning_content: reasoning || null,
    finish_reason: finish,
    error: error && errorOf(error),
    routing,
    usage,
    seconds: { first_token: answer.firstToken, all: answer.seconds },
    trace: answer.traced ? tokens : null,
  };
}

export function exported(conversation, view, server) {
  const { live: _, score_quantiles: __, ...about } = server ?? {};
  return {
    format: "crossroads conversation 1",
    view,
    exported: new Date().toISOString(),
    server: about,
    turns: conversation.turns.map(({ prompt, answers }) => ({
      prompt,
      answers: answers.map(answerOf),
    })),
  };
}

export function textOf(conversation) {
  const several = conversation.models.length > 1;
  const parts = conversation.turns.flatMap(({ prompt, answers }) => [
    `> ${prompt.replaceAll("\n", "\n> ")}`,
    ...answers.map(({ model, content }) => (several ? `${model}:\n${content}` : content)),
  ]);
  return `${parts.join("\n\n")}\n`;
}

export function download(name, value) {
  const blob = new Blob([`${JSON.stringify(value, null, 1)}\n`], { type: "application/json" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// The clipboard needs a secure page; a server on another machine's plain http is none.
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "heard";
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (!done) throw new Error("This browser does not let the page copy; Export saves a file.");
}
