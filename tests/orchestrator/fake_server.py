"""What the orchestrator sees of a vLLM server with the plugin, over a scripted model.

The plugin's own code decides; only vLLM around it is played. It can be told to fail.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from crossroads.models.base import CausalLM, Want
from crossroads.models.vllm_server import MOST_REPORTED
from crossroads.routing.routers.base import Router
from crossroads.serving.server import listen
from crossroads.vllm.deciding import decide, ordered_row, say

LINE_ENDS = "\x85\u2028\u2029"
"""Ends of lines to Python, and not to an event stream; a model may write them."""


@dataclass
class FakeServer:
    """A running server and what it saw; the fields may be changed while it runs.

    break_after: tokens after which each stream is cut off in the middle; None: never. refuse: the
    status with which requests are answered; 0: properly. silent: streams end
    without a token. delay: seconds before each token. asleep: seconds before each answer.
    wedged: it says that it is there, and fails at each request. stutters: every step is computed
    twice. most_logprobs: its --max-logprobs. mode: vLLM's --logprobs-mode. aborted: streams that
    the client left. stretch: what the states are multiplied by.
    """

    model: CausalLM
    router: Router | None
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    break_after: int | None = None
    refuse: int = 0
    silent: bool = False
    delay: float = 0.0
    asleep: float = 0.0
    wedged: bool = False
    stutters: bool = False
    most_logprobs: int = MOST_REPORTED
    mode: str = "raw_logprobs"
    open_streams: int = 0
    most_open: int = 0
    waiting: int = 0
    most_waiting: int = 0
    aborted: int = 0
    stretch: float = 1.0
    tokens_sent: int = 0

    @property
    def probes(self) -> int:
        """Requests of one token, by which a client looks for the plugin."""
        return sum(body["prompt"] == [1] for body in self.requests)

    @property
    def asks(self) -> list[dict[str, Any]]:
        """Requests whose answers matter: others are made to have a prompt read."""
        return [body for body in self.requests if "stop_token_ids" in body]

    async def models(self, _: Request) -> Response:
        await asyncio.sleep(self.asleep)
        if self.refuse >= 500:
            return JSONResponse({"error": {"message": "told to"}}, self.refuse)
        info = self.model.info
        card = {"id": info.name, "max_model_len": info.context_length}
        return JSONResponse({"data": [card]})

    async def health(self, _: Request) -> Response:
        return Response()

    async def completions(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.requests.append(body)
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        try:
            await asyncio.sleep(self.asleep)
        finally:
            self.waiting -= 1
        if self.refuse or self.wedged:
            return JSONResponse({"error": {"message": "told to"}}, self.refuse or 500)
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        if max(map(len, prompts)) + body["max_tokens"] > self.model.info.context_length:
            return JSONResponse({"error": {"message": "too long"}}, 400)
        if "prompt_logprobs" not in body and not body["stream"]:
            return self._next(body, prompts)
        if not body["stream"]:
            return JSONResponse(self._whole(body))
        return StreamingResponse(self._events(body), media_type="text/event-stream")

    async def pooling(self, request: Request) -> Response:
        """Return the states of a text, as vLLM's pooling runner does for token_embed."""
        body = json.loads(await request.body())
        self.requests.append(body)
        assert body["use_activation"] is False
        cache = self.model.new_cache()
        out = self.model.extend([cache], [body["input"]], Want(positions="all", hidden=True))
        cache.release()
        assert out.hidden_NH is not None
        data = base64.b64encode((self.stretch * out.hidden_NH).float().numpy().tobytes()).decode()
        return JSONResponse({"data": [{"index": 0, "data": data}]})

    def _whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return one token, and what is told of the prompt: its tokens and the likeliest there."""
        prompt, top = body["prompt"], body.get("prompt_logprobs")
        read = [None]
        for end in range(1, len(prompt) if top else 0):
            told_V = self._told(self._logits(prompt[:end])[0])
            ids = {*torch.topk(told_V, top).indices.tolist(), prompt[end]}
            read.append({str(i): {"logprob": float(told_V[i])} for i in ids})
        token_id, values = self._step(body, [])
        return {"choices": [{**self._choice(token_id, values), "prompt_logprobs": read}]}

    def _next(self, body: dict[str, Any], prompts: list[list[int]]) -> Response:
        """Return the next token of each prompt, in an order of its own."""
        if (refusal := self._refusal(body)) is not None:
            return JSONResponse(refusal, 400)
        choices = []
        for index, prompt in enumerate(prompts):
            choice = self._choice(*self._step({**body, "prompt": prompt}, []))
            choices.append({**choice, "index": index})
        return JSONResponse({"choices": choices[::-1]})

    def _refusal(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """Return vLLM's words where more log-probabilities are asked for than it tells."""
        if (asked := body.get("logprobs") or 0) <= self.most_logprobs:
            return None
        words = f"Requested sample logprobs of {asked}, which is greater than max allowed: "
        error = {"message": words + str(self.most_logprobs), "param": "logprobs", "code": 400}
        return {"error": error}

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        self.open_streams += 1
        self.most_open = max(self.most_open, self.open_streams)
        try:
            if (refusal := self._refusal(body)) is not None:  # found out once it has begun
                yield b"data: " + json.dumps(refusal).encode() + b"\n\n"
                return
            output: list[int] = []
            for count in range(0 if self.silent else body["max_tokens"]):
                if self.break_after is not None and count >= self.break_after:
                    return  # without [DONE]
                await asyncio.sleep(self.delay)
                if self.stutters:  # vLLM drops what it computes of a prompt that it reads in parts
                    self._step(body, output)
                token_id, values = self._step(body, output)
                output.append(token_id)
                self.tokens_sent += 1
                yield self._event(token_id, values)
                if token_id in body.get("stop_token_ids", []):
                    break
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        finally:
            self.open_streams -= 1

    def _logits(self, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the logits [V] after the tokens, and the hidden state [1, H]."""
        cache = self.model.new_cache()
        out = self.model.extend([cache], [tokens], Want(logits=True, hidden=True))
        cache.release()
        assert out.logits_NV is not None
        return out.logits_NV[0].clone(), out.hidden_NH

    def _told(self, row_V: torch.Tensor) -> torch.Tensor:
        return row_V.log_softmax(0) if self.mode.endswith("logprobs") else row_V

    def _step(self, body: dict[str, Any], output: list[int]) -> tuple[int, dict[int, float]]:
        """Return the next token, and the values that are reported at its position, by id."""
        prompt = body["prompt"]
        row_V, hidden_NH = self._logits([*prompt, *output])
        row = ordered_row(body.get("vllm_xargs"), prompt, list(output))
        if row is not None and self.router is not None:
            say([row], decide([row], row_V[None], hidden_NH, self.router), [row_V])
        told_V = self._told(row_V)
        token_id = int(row_V.argmax())
        if body["temperature"] > 0:
            weights_V = (row_V / body["temperature"]).softmax(0).double().numpy()
            generator = np.random.default_rng([body["seed"], len(output)])
            token_id = int(generator.choice(len(weights_V), p=weights_V / weights_V.sum()))
        ids = {*torch.topk(told_V, body.get("logprobs") or 1).indices.tolist(), token_id}
        return token_id, {i: max(float(told_V[i]), -9999.0) for i in ids}

    def _event(self, token_id: int, values: dict[int, float]) -> bytes:
        choices = [self._choice(token_id, values)]
        text = json.dumps({"choices": choices}, ensure_ascii=False)  # as vLLM writes it
        return b"data: " + text.encode() + b"\n\n"

    def _choice(self, token_id: int, values: dict[int, float]) -> dict[str, Any]:
        named = {f"token_id:{i}": value for i, value in values.items()}
        logprobs = {"tokens": [f"token_id:{token_id}"], "top_logprobs": [named]}
        return {"index": 0, "text": LINE_ENDS, "token_ids": [token_id], "logprobs": logprobs}


@contextmanager
def fake_server(model: CausalLM, router: Router | None, port: int = 0) -> Iterator[FakeServer]:
    """Serve until the block ends. router: the plugin's; None: a server without the plugin."""
    mode = "raw_logprobs" if router is None else "processed_logits"
    fake = FakeServer(model, router, mode=mode)
    app = Starlette(
        routes=[
            Route("/health", fake.health),
            Route("/v1/models", fake.models),
            Route("/v1/completions", fake.completions, methods=["POST"]),
            Route("/pooling", fake.pooling, methods=["POST"]),
        ]
    )
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    with listen("127.0.0.1", port) as listener:
        fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield fake
        finally:
            # On a busy machine the server may not have seen yet that its clients have closed.
            end = time.monotonic() + 5
            while server.server_state.connections and time.monotonic() < end:
                time.sleep(0.01)
            server.should_exit = server.force_exit = True
            thread.join(20)
            assert not thread.is_alive()
