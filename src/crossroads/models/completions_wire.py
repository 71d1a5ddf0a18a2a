"""How servers that are not vLLM are asked for the next token, and what they say of it.

llama.cpp's server tells the token's id by its own `/completion`. A server that knows only OpenAI's
`/v1/completions` tells its text, and some tell the id or the bytes with the log-probabilities. The
text is a token where exactly one token of the vocabulary has those bytes; where it is not, nobody
guesses: the same text in other tokens is another beginning for whatever follows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from crossroads.errors import EngineError

_ADVICE = "serve the model with a server that tells token ids, such as llama.cpp's or vLLM"


@dataclass(frozen=True, slots=True)
class Told:
    """What a server said of one token.

    token_id, piece: its id or its bytes; both None if it told neither. values: log-probabilities of
    the likeliest tokens by id, as many as it told. read: how many tokens the prompt was to it.
    ended: the answer ended here by itself. text: what it wrote.
    """

    token_id: int | None = None
    piece: bytes | None = None
    values: Mapping[int, float] | None = None
    read: int | None = None
    ended: bool = False
    text: str = ""


class TokenFinder:
    """Finds the id of the token that a server told."""

    def __init__(self, pieces: Sequence[bytes | None], eos_ids: Sequence[int]) -> None:
        """Index a vocabulary. eos_ids: an end that came without an id is the first of them."""
        self._eos_ids = tuple(eos_ids)
        self._size = len(pieces)
        self._ids: dict[bytes, int | None] = {}  # None: more than one
        for token_id, piece in enumerate(pieces):
            if piece:
                self._ids[piece] = None if piece in self._ids else token_id

    def only(self, piece: bytes) -> int | None:
        """Return the one id with these bytes; None if there is none, or more than one."""
        return self._ids.get(piece)

    def find(self, told: Told) -> int:
        """Return the id of the token.

        Raises:
            EngineError: what was told is no token, or may be several.
        """
        if told.token_id is not None:
            if not 0 <= told.token_id < self._size:
                raise EngineError(
                    f"the server wrote token {told.token_id}, outside of the vocabulary of "
                    f"{self._size}; it serves another model"
                )
            return told.token_id
        if not told.piece:
            if told.ended and not told.text and self._eos_ids:
                return self._eos_ids[0]
            raise EngineError(
                "the server tells its tokens as text, and this one has none: it is part of a "
                f"character, or a special token; {_ADVICE}"
            )
        token_id = self.only(told.piece)
        if token_id is None:
            several = "more than one token" if told.piece in self._ids else "no token"
            raise EngineError(
                f"the server tells its tokens as text, and this one, {told.piece!r}, is {several} "
                f"of the vocabulary; {_ADVICE}"
            )
        return token_id


class Dialect(Protocol):
    """One way of asking."""

    @property
    def path(self) -> str:
        """Where requests go."""

    def body(self, model: str, tokens: Sequence[int], top: int, count: int = 1) -> dict[str, Any]:
        """Return the request for the `count` tokens after `tokens`, greedy.

        top: how many likeliest tokens to tell; 0: none.
        """

    def told(self, reply: Mapping[str, Any]) -> Told:
        """Return what a reply says of its first token.

        Raises:
            KeyError, TypeError, ValueError, IndexError: it has another form.
        """


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """llama.cpp's server, by its own API."""

    path: str = "/completion"

    def body(self, model: str, tokens: Sequence[int], top: int, count: int = 1) -> dict[str, Any]:
        """Return a request; it names its samplers, so that no setting of the server's acts."""
        return {
            "model": model,
            "prompt": list(tokens),
            "n_predict": count,
            "temperature": 0,
            "samplers": ["temperature"],
            "n_probs": top,
            "return_tokens": True,
            "cache_prompt": True,
        }

    def told(self, reply: Mapping[str, Any]) -> Told:
        """Return the token; a part of a character comes without log-probabilities."""
        probabilities = reply.get("completion_probabilities") or []
        return Told(
            token_id=int(reply["tokens"][0]),
            values=_by_id(probabilities[0]["top_logprobs"]) if probabilities else None,
            read=int(reply["tokens_evaluated"]),
            ended=reply.get("stop_type") == "eos",
            text=reply["content"],
        )


@dataclass(frozen=True, slots=True)
class Completions:
    """OpenAI's completions. asks_top: whether the server takes `logprobs` at all."""

    asks_top: bool = True
    path: str = "/v1/completions"

    def body(self, model: str, tokens: Sequence[int], top: int, count: int = 1) -> dict[str, Any]:
        """Return a request; it switches off, by all their names, penalties that are a default."""
        body: dict[str, Any] = {
            "model": model,
            "prompt": list(tokens),
            "max_tokens": count,
            "temperature": 0,
            "stream": False,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "repetition_penalty": 1.0,
            "repeat_penalty": 1.0,
            "add_special_tokens": False,
            "skip_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        if self.asks_top:
            body["logprobs"] = max(1, top)  # the token's bytes may be with them
        return body

    def told(self, reply: Mapping[str, Any]) -> Told:
        """Return the token by the best name that the reply has for it: id, bytes, text."""
        choice = reply["choices"][0]
        found = _named(choice.get("logprobs") or {})
        text = choice["text"] or ""
        ids = choice.get("token_ids") or []
        token_id, piece = (int(ids[0]), None) if ids else (found.token_id, found.piece)
        return Told(
            token_id=token_id,
            # U+FFFD is what servers write for half a character, whatever token that is.
            piece=piece or (b"" if "\ufffd" in text else text.encode()),
            values=found.values,
            read=(reply.get("usage") or {}).get("prompt_tokens"),
            ended=choice.get("finish_reason") == "stop",
            text=text,
        )


def _named(logprobs: Mapping[str, Any]) -> Told:
    """Return what log-probabilities say of the first token: its id or bytes, and values."""
    if content := logprobs.get("content"):  # as in chat completions, and llama.cpp's
        first = content[0]
        return Told(
            first.get("id"), bytes(first.get("bytes") or b""), _by_id(first["top_logprobs"])
        )
    names, tops = logprobs.get("tokens") or [], logprobs.get("top_logprobs") or []
    if not names:
        return Told()
    top = [{"id": _id_of(name), "logprob": value} for name, value in (tops or [{}])[0].items()]
    return Told(_id_of(names[0]), _bytes_of(names[0]), _by_id(top))


def _by_id(entries: Sequence[Mapping[str, Any]]) -> Mapping[int, float] | None:
    """Return log-probabilities by id; None unless every entry has an id."""
    if not entries or any(entry.get("id") is None for entry in entries):
        return None
    return {int(entry["id"]): float(entry["logprob"]) for entry in entries}


def _id_of(name: str) -> int | None:
    """Return the id in a name like `token_id:17`."""
    found = re.fullmatch(r"token_id:(\d+)", name)
    return int(found[1]) if found else None


def _bytes_of(name: str) -> bytes | None:
    r"""Return the bytes in a name like `bytes:\xe2\x82`."""
    found = re.fullmatch(r"bytes:((?:\\x[0-9a-f]{2})+)", name)
    return bytes.fromhex(found[1].replace("\\x", "")) if found else None
