"""Servers of other kinds than vLLM, over a model in this process: what they tell, what is wrong."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from crossroads.models.base import CausalLM, Tokenizer, Want
from crossroads.serving.server import listen

KINDS = ("llamacpp", "ids", "named", "bytes", "text")
"""What tells the token: llama.cpp's own API, entries with an id, names like token_id:17, entries
with bytes, the text alone."""
TRICKS = ("beginning", "anew", "literal", "mute", "first", "strings", "busy")
"""What is wrong: a token added, the text split anew, the list written out as text, no usage, the
first character of a text changed (as by those who cut white space off), ids refused, failure."""


@dataclass
class FakeCompletions:
    """A running server and what it saw.

    context: what it says of its own context; 0: nothing. most_top: likeliest tokens that it tells;
    more are refused; 0: `logprobs` is refused. refuse: a status for all; 0: properly. dies_after:
    requests after which it is 503; None: never.
    """

    model: CausalLM
    tokenizer: Tokenizer
    kind: str
    trick: str = ""
    context: int = 0
    most_top: int = 20
    refuse: int = 0
    dies_after: int | None = None
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)

    async def models(self, _: Request) -> Response:
        if self.refuse:
            return JSONResponse({"error": {"message": "told to"}}, self.refuse)
        meta = {"n_ctx": self.context} if self.kind == "llamacpp" and self.context else None
        return JSONResponse({"data": [{"id": "fake", "meta": meta}]})

    async def own(self, request: Request) -> Response:
        """llama.cpp's /completion."""
        if self.kind != "llamacpp":
            return JSONResponse({"detail": "Not Found"}, 404)
        body = await self._heard(request)
        if isinstance(body, Response):
            return body
        top = body["n_probs"]
        ids, tops = self._write(body["prompt"], body["n_predict"], max(1, top))
        piece = self._piece(ids[0])
        reply: dict[str, Any] = {
            "content": self._text(ids),
            "tokens": ids if body["return_tokens"] else [],
            "tokens_evaluated": self._read(body["prompt"]),
            "stop_type": "eos" if ids[-1] in self.model.info.eos_ids else "limit",
        }
        if top and _is_text(piece):
            entries = [{"id": i, "logprob": value} for i, value in tops[0]]
            reply["completion_probabilities"] = [{"id": ids[0], "top_logprobs": entries}]
        return JSONResponse(reply)

    async def completions(self, request: Request) -> Response:
        body = await self._heard(request)
        if isinstance(body, Response):
            return body
        asked = body.get("logprobs")
        if asked is not None and asked > self.most_top:
            message = f"logprobs must be at most {self.most_top}"
            return JSONResponse({"error": {"message": message}}, 400)
        ids, tops = self._write(body["prompt"], body["max_tokens"], asked or 1)
        choice = {
            "text": self._text(ids),
            "logprobs": self._logprobs(ids, tops) if asked else None,
            "finish_reason": "stop" if ids[-1] in self.model.info.eos_ids else "length",
        }
        reply: dict[str, Any] = {"choices": [choice]}
        if self.trick != "mute":
            reply["usage"] = {"prompt_tokens": self._read(body["prompt"])}
        return JSONResponse(reply)

    async def _heard(self, request: Request) -> dict[str, Any] | Response:
        body: dict[str, Any] = json.loads(await request.body())
        self.requests.append(body)
        if self.dies_after is not None and len(self.requests) > self.dies_after:
            self.refuse = 503
        if self.refuse:
            return JSONResponse({"error": {"message": "told to"}}, self.refuse)
        if self.trick == "busy":
            return JSONResponse({"error": {"message": "unhashable list"}}, 500)
        if self.trick == "strings":
            return JSONResponse({"detail": "prompt must be a string"}, 422)
        return body

    def _read(self, prompt: Sequence[int]) -> int:
        if self.trick == "beginning":
            return len(prompt) + 1
        if self.trick == "literal":
            return len(str(prompt))
        if self.trick == "anew":
            return len(self.tokenizer.encode(self.tokenizer.decode(prompt)))
        return len(prompt)

    def _write(
        self, prompt: Sequence[int], count: int, top: int
    ) -> tuple[list[int], list[list[tuple[int, float]]]]:
        cache = self.model.new_cache()
        ids: list[int] = []
        tops = []
        try:
            for _ in range(count):
                new = ids[-1:] or list(prompt)
                out = self.model.extend([cache], [new], Want(top_k=top))
                values_K = out.top_logits_NK[0] - out.logsumexp_N[0]
                tops.append(list(zip(out.top_ids_NK[0].tolist(), values_K.tolist(), strict=True)))
                ids.append(tops[-1][0][0])
                if ids[-1] in self.model.info.eos_ids:
                    break
        finally:
            cache.release()
        return ids, tops

    def _piece(self, token_id: int) -> bytes:
        if token_id in self.model.info.eos_ids:
            return b""
        return self.tokenizer.pieces()[token_id] or b""

    def _text(self, ids: Sequence[int]) -> str:
        text = b"".join(map(self._piece, ids)).decode(errors="replace")
        if self.trick == "first" and text:
            text = chr(33 + (ord(text[0]) - 32) % 63) + text[1:]
        return text

    def _logprobs(self, ids: list[int], tops: list[list[tuple[int, float]]]) -> dict[str, Any]:
        if self.kind == "named":
            named = [{f"token_id:{i}": value for i, value in top} for top in tops]
            return {"tokens": [f"token_id:{i}" for i in ids], "top_logprobs": named}
        if self.kind == "text":
            texts = [self._text([i]) for i in ids]
            by_text = [{self._text([i]): value for i, value in top} for top in tops]
            return {"tokens": texts, "top_logprobs": by_text}

        def entry(i: int, value: float) -> dict[str, Any]:
            name = {"id": i} if self.kind == "ids" else {"bytes": list(self._piece(i))}
            return {"token": self._text([i]), "logprob": value, **name}

        return {
            "content": [
                {**entry(*top[0]), "top_logprobs": [entry(*one) for one in top]} for top in tops
            ]
        }


def _is_text(piece: bytes) -> bool:
    return "\ufffd" not in piece.decode(errors="replace")


@contextmanager
def fake_completions(
    model: CausalLM, tokenizer: Tokenizer, kind: str, trick: str = "", **fields: Any
) -> Iterator[FakeCompletions]:
    """Serve until the block ends."""
    fake = FakeCompletions(model, tokenizer, kind, trick, **fields)
    app = Starlette(
        routes=[
            Route("/v1/models", fake.models),
            Route("/completion", fake.own, methods=["POST"]),
            Route("/v1/completions", fake.completions, methods=["POST"]),
        ]
    )
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    with listen("127.0.0.1", 0) as listener:
        fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield fake
        finally:
            server.should_exit = server.force_exit = True
            thread.join(20)
            assert not thread.is_alive()
