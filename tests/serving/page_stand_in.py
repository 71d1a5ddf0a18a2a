"""A server that says what it was told to, in the format of docs/guides/serving.md, for the page.

    python tests/serving/page_stand_in.py      # to look at the page without models

Deterministic: a text is cut into tokens, and a token's score depends on its place and the prompt
alone. A `Plan` makes it slow, wait, fail, break off, or want a key.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import crossroads
from crossroads.serving.safety import SecurityHeaders

PAGE = Path(crossroads.__file__).parent / "serving" / "page"
THRESHOLD = 0.0105
QUANTILES = [10 ** (-4.85 + 4.38 * (i / 100) ** 1.9) for i in range(101)]
ANSWER = """To multiply 17 by 23, split 23 into 20 and 3:

17 * 20 = 340
17 * 3 = 51

Then add the parts: 340 + 51 = 391.

```python
def product(a: int, b: int) -> int:
    return sum(a for _ in range(b))
```

The answer is 391."""


@dataclass
class Plan:
    """What the next answers are, and what goes wrong with them.

    hold_at: the answer waits before this token until `go` is set. seconds: between two tokens.
    break_at: the connection breaks before this token; cut_at: it ends there, as if all were well,
    but without `[DONE]`. error_at: an error event comes instead of
    it. error: every answer is this status, message and headers. thoughts: text before the answer.
    """

    text: str = ANSWER
    thoughts: str = ""
    seconds: float = 0.0
    hold_at: int | None = None
    go: threading.Event = field(default_factory=threading.Event)
    break_at: int | None = None
    cut_at: int | None = None
    error_at: int | None = None
    error: tuple[int, str, dict[str, str]] | None = None
    key: str | None = None
    traces: bool = True


class StandIn:
    """The server's memory: what was asked, what was sent, who hung up."""

    def __init__(self) -> None:
        self.url = ""
        self.plan = Plan()
        self.bodies: list[dict[str, Any]] = []
        self.sent: dict[str, list[dict[str, Any]]] = {}
        self.hung_up = threading.Event()
        self.polls = 0

    def begin(self, **plan: Any) -> None:
        """Forget what was, and do as told from now on."""
        self.plan.go.set()
        self.plan = Plan(**plan)
        self.bodies, self.sent, self.polls = [], {}, 0
        self.hung_up.clear()

    def app(self) -> Starlette:
        """Return the application."""
        return Starlette(
            routes=[
                Route("/", lambda _: FileResponse(PAGE / "index.html")),
                Route("/v1/routing", self.routing),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Mount("/page", StaticFiles(directory=PAGE)),
            ],
            middleware=[Middleware(SecurityHeaders)],
        )

    def refusal(self, request: Request) -> Response | None:
        """Return what a request without the key gets."""
        key = self.plan.key
        if key is None or request.headers.get("Authorization") == f"Bearer {key}":
            return None
        return error_reply(401, "the API key is missing or wrong; send the server's own", {})

    async def routing(self, request: Request) -> Response:
        """`GET /v1/routing`."""
        self.polls += 1
        return self.refusal(request) or JSONResponse(routing_info(self.plan))

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`, streamed."""
        if refused := self.refusal(request):
            return refused
        body = await request.json()
        self.bodies.append(body)
        if self.plan.error is not None:
            return error_reply(*self.plan.error)
        return StreamingResponse(self.stream(body, self.plan), media_type="text/event-stream")

    async def stream(self, body: dict[str, Any], plan: Plan) -> AsyncIterator[str]:
        """Yield the events of an answer."""
        tokens = tokens_of(plan, body)
        sent = self.sent[body["model"]] = []
        ended = False
        started = time.perf_counter()
        try:
            yield event(chunk(body, {"role": "assistant"}))
            for place, token in enumerate(tokens):
                await self.wait(plan, place)
                if place == plan.break_at:
                    ended = True
                    raise ConnectionError("the stand-in breaks off")
                if place == plan.cut_at:
                    ended = True
                    return
                if place == plan.error_at:
                    ended = True
                    yield event(error_of("the engine failed; start the server again"))
                    return
                token["seconds"] = round(time.perf_counter() - started, 3)
                sent.append(token)
                trace = [token] if plan.traces else None
                yield event(chunk(body, delta_of(token), trace))
            yield event(chunk(body, {}, finish="stop"))
            yield event(last_chunk(body, tokens))
            yield "data: [DONE]\n\n"
            ended = True
        finally:
            if not ended:
                self.hung_up.set()

    async def wait(self, plan: Plan, place: int) -> None:
        """Wait as planned before a token."""
        if plan.seconds:
            await asyncio.sleep(plan.seconds)
        while place == plan.hold_at and not plan.go.is_set():
            await asyncio.sleep(0.005)


def error_of(message: str) -> dict[str, Any]:
    """Return the body of an error."""
    return {"error": {"message": message, "type": "server_error", "param": None, "code": None}}


def error_reply(status: int, message: str, headers: dict[str, str]) -> JSONResponse:
    """Return an error as OpenAI words it."""
    return JSONResponse(error_of(message), status_code=status, headers=headers)


def event(value: dict[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(value)}\n\n"


def chunk(
    body: dict[str, Any],
    delta: dict[str, Any],
    trace: list[dict[str, Any]] | None = None,
    finish: str | None = None,
) -> dict[str, Any]:
    """Return a chunk of a streamed chat completion."""
    choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
    if trace is not None:
        choice["trace"] = trace
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0,
            "model": body["model"], "choices": [choice]}  # fmt: skip


def last_chunk(body: dict[str, Any], tokens: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the chunk that brings what the answer cost."""
    usage = {"prompt_tokens": 9, "completion_tokens": len(tokens)}
    return chunk(body, {}) | {"choices": [], "routing": totals(body, tokens), "usage": usage}


def delta_of(token: dict[str, Any]) -> dict[str, Any]:
    """Return what a token adds to the text of its channel."""
    names = {"reasoning": "reasoning_content", "content": "content"}
    name = names.get(token["channel"])
    return {name: token["text"]} if name else {}


def pieces(text: str) -> list[str]:
    """Return a text cut into something like tokens."""
    return re.findall(r"\n+|```| ?[A-Za-z]+|\d| +(?=\n)| ?[^\sA-Za-z\d`]+| +|`+", text)


def tokens_of(plan: Plan, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the trace of an answer, as the model that was asked would write it."""
    texts: list[tuple[str, str | None]] = []
    if plan.thoughts:
        texts += [("", None), *((text, "reasoning") for text in pieces(plan.thoughts)), ("", None)]
    texts += [(text, "content") for text in pieces(plan.text)] + [("", "content")]
    limit = body.get("max_tokens") or len(texts)
    vocabulary = sorted({text for text, _ in texts if text})
    return [token_of(i, *texts[i], vocabulary, body) for i in range(min(limit, len(texts)))]


def token_of(
    place: int, text: str, channel: str | None, vocabulary: list[str], body: dict[str, Any]
) -> dict[str, Any]:
    """Return a token's record."""
    dice = random.Random(f"{place}{text}")
    model = body["model"]
    threshold = body["routing"].get("threshold", THRESHOLD)
    score = QUANTILES[int(dice.random() * 101)] if model == "mixed" else None
    to_large = model == "large" or (score is not None and score >= threshold)
    ids = {text: index + 10 for index, text in enumerate(vocabulary)} | {"": 2}
    first = 0.97 - 0.5 * dice.random() ** 2 - (0.3 if to_large else 0)
    likely = [text, *(t for t in dice.sample(vocabulary, min(5, len(vocabulary))) if t != text)][:5]
    if to_large and dice.random() < 0.7 and len(likely) > 1:
        likely[0], likely[1] = likely[1], likely[0]
    weights = [first * 0.45**rank for rank in range(len(likely))]
    asked = model != "large"
    return {
        "position": place, "token_id": ids[text], "text": text, "channel": channel,
        "writer": "large" if to_large else "small",
        "score": score, "entropy": -math.log(first) * 2 if asked else None,
        "proposed": {"id": ids[likely[0]], "text": likely[0]} if asked else None,
        "proposals": [
            {"id": ids[t], "text": t, "probability": w / max(1, sum(weights))}
            for t, w in zip(likely, weights, strict=True)
        ] if asked else None,
        "lag": dice.randint(1, 12) if to_large else 0,
        "cause": "router" if to_large and model == "mixed" else None,
        "discarded": 0, "seconds": 0.0,
    }  # fmt: skip


def totals(body: dict[str, Any], tokens: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the reply's `routing`, counted from the trace."""
    large = sum(token["writer"] == "large" for token in tokens)
    return {
        "large_fraction": large / len(tokens), "large_tokens": large,
        "small_tokens": len(tokens) - large, "large_calls": large,
        "lag_tokens": sum(token["lag"] for token in tokens), "discarded_tokens": 0,
        "threshold": body["routing"].get("threshold", THRESHOLD), "active_parameters": 6.9e8,
    }  # fmt: skip


def routing_info(plan: Plan) -> dict[str, Any]:
    """Return what `GET /v1/routing` says."""
    shares = [0.07, 0.08, 0.08, 0.09, 0.1, 0.11, 0.11, 0.12, 0.13, 0.11]
    drift = {
        "tokens": 4210, "verdict": "as calibrated", "psi": 0.03,
        "sentence": "As calibrated: 24.6 % of the last 4,210 tokens would go to the large model, "
        "where the card promises 22.2 % [20.9, 23.5].",
        "live_positive_rate": 0.246, "promised_positive_rate": 0.222, "histogram": shares,
    }  # fmt: skip
    return {
        "pair": "qwen2.5-coder",
        "small": {"name": "qwen2.5-coder-0.5b", "parameters": 630_000_000},
        "large": {"name": "qwen2.5-coder-1.5b", "parameters": 1_780_000_000},
        "router": "mlp", "threshold": THRESHOLD,
        "calibration": {"positive_rate": 0.222, "recall": 0.952, "target": 0.95},
        "score_quantiles": QUANTILES, "thinks": bool(plan.thoughts),
        "defaults": {"temperature": 0.0, "max_tokens": 512},
        "live": {"tokens_per_second": 34.2, "running": 1, "waiting": 0, "large_fraction": 0.187,
                 "drift": drift},
    }  # fmt: skip


@contextmanager
def standing_in(port: int = 0) -> Iterator[StandIn]:
    """Serve on a free loopback port for the length of a block."""
    stand_in = StandIn()
    listener = socket.create_server(("127.0.0.1", port))
    stand_in.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(stand_in.app(), log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield stand_in
    finally:
        stand_in.plan.go.set()
        server.should_exit = server.force_exit = True
        thread.join()
        listener.close()


if __name__ == "__main__":
    with standing_in(8000) as running:
        running.begin(seconds=0.04)
        print(running.url)  # noqa: T201
        threading.Event().wait()
