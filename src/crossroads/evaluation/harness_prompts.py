"""The harness's prompts as ids: rendered chats, plain texts, contexts with continuations."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from crossroads.models.base import Tokenizer
from crossroads.types import Message


class ChatPrompt(str):
    """A rendered chat: for the harness its text, for the models the ids that they read.

    The text alone would not do: encoding it would read a special token that a document spells out
    as the token itself.
    """

    ids: tuple[int, ...] = ()

    @classmethod
    def of(cls, ids: Sequence[int], pieces: Sequence[bytes | None]) -> ChatPrompt:
        """Return the prompt of these ids; `pieces` are the tokenizer's."""
        content = b"".join(pieces[i] or b"" for i in ids)
        prompt = cls(content.decode("utf-8", errors="replace"))
        prompt.ids = tuple(ids)
        return prompt


def render_chat_prompt(
    tokenizer: Tokenizer, chat_history: Sequence[Mapping[str, str]], *, open_end: bool
) -> ChatPrompt:
    """Return the rendered chat, ready for an answer.

    open_end: the last message is the answer's beginning, which the model goes on with.

    Raises:
        ConfigError: the tokenizer carries no chat template.
        RequestError: the template refuses the messages.
    """
    messages = [Message(turn["role"], turn["content"]) for turn in chat_history]
    begun = messages.pop().content if open_end else ""
    ids = [*tokenizer.render(messages), *tokenizer.encode(begun)]
    return ChatPrompt.of(ids, tokenizer.pieces())


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> tuple[int, ...]:
    """Return the ids of a prompt; special tokens in a plain one are read as text."""
    return prompt.ids if isinstance(prompt, ChatPrompt) else tuple(tokenizer.encode(prompt))


def encode_pair(
    tokenizer: Tokenizer, prefix_id: int, context: str, continuation: str
) -> tuple[tuple[int, ...], int]:
    """Return context and continuation as ids, and where the continuation starts (at least 1).

    Plain text as in the harness: whitespace at the end of the context belongs to the
    continuation, both are encoded as one text, and `prefix_id` stands in for an empty context. A
    chat's continuation stands by itself: its template ends where the model learnt to begin.
    """
    if isinstance(context, ChatPrompt):
        return (*context.ids, *tokenizer.encode(continuation)), len(context.ids)
    stem = context.rstrip()
    tail = context[len(stem) :] + continuation
    if not stem:
        return (prefix_id, *tokenizer.encode(tail)), 1
    context_ids = tokenizer.encode(stem)
    # One token may cover the end of the one and all of the other; nothing would be left to score.
    tail_ids = tokenizer.encode(stem + tail)[len(context_ids) :] or tokenizer.encode(tail)
    return (*context_ids, *tail_ids), len(context_ids)


def warn_of_special_texts(
    tokenizer: Tokenizer, prompts: Sequence[str], log: logging.Logger
) -> None:
    """Say so where a plain prompt spells out a special token: a chat that somebody wrote."""
    plain = [prompt for prompt in prompts if not isinstance(prompt, ChatPrompt)]
    special = _special_texts(tokenizer) if plain else []
    found = next((text for prompt in plain for text in special if text in prompt), None)
    if found is not None:
        log.warning(
            "prompts hold %r, which is read as text and not as a special token; "
            "for chats, give --apply_chat_template",
            found,
        )


def _special_texts(tokenizer: Tokenizer) -> list[str]:
    """Return the texts of the tokens that add nothing to a text, such as <|im_end|>."""
    return [
        piece.decode("utf-8", errors="replace")
        for token_id, piece in enumerate(tokenizer.pieces())
        if piece and not tokenizer.text_bytes(token_id)
    ]
