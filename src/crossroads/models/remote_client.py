"""One vLLM server, or several that serve the same model, by URL: tokens in, tokens out.

A request is a function of its tokens and its order, so it can be sent again whenever an answer
does not come, also to another server: no token is ever written twice, because only what came back
counts. All requests of one row go to the same server while it lives, where the row's keys and
values still lie.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx2
import torch
from torch import Tensor

from crossroads.errors import ConfigError, EngineError, RequestError, UnreachableError

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a server, in seconds.

    connect: for a connection. token: for the next token. down: how long a server that failed is
    left alone. give_up: how long a request is tried again before it fails. text: for the next token
    or the reading of one of many texts, which wait for each other at the server.
    """

    connect: float = 5.0
    token: float = 60.0
    down: float = 5.0
    give_up: float = 120.0
    text: float = 600.0


@dataclass(frozen=True, slots=True)
class WireToken:
    """A token that came back, and the values that were reported at its position, by id."""

    token_id: int
    values: Mapping[int, float]


@dataclass(slots=True)
class _Server:
    url: str
    down_until: float = 0.0
    watched: bool = False
    pause: float = 0.0


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself."""

    model: str
    context_length: int


@dataclass(slots=True)
class VllmClient:
    """Servers of one model. To be used on one event loop; `close` it in the end."""

    urls: Sequence[str]
    model: str | None = None
    patience: Patience = Patience()
    api_key: str | None = None
    _servers: list[_Server] = field(init=False)
    _http: httpx2.AsyncClient | None = field(init=False, default=None)
    _watches: set[asyncio.Task[None]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        """Check the addresses.

        Raises:
            ConfigError: none, or one that is no http address.
        """
        if not self.urls:
            raise ConfigError("give the address of at least one server")
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise ConfigError(f"a server's address begins with http://, got {url!r}")
        self._servers = [_Server(url.rstrip("/").removesuffix("/v1")) for url in self.urls]

    async def connect(self) -> ServerInfo:
        """Return what the servers serve; all of them must serve the same.

        Raises:
            EngineError: a server does not answer, or they differ.
        """
        infos = [await self._info(server) for server in self._servers]
        if len({info.context_length for info in infos}) > 1 or len({i.model for i in infos}) > 1:
            raise EngineError(f"the servers {', '.join(self.urls)} do not serve the same model")
        self.model = infos[0].model
        return infos[0]

    def apart(self) -> list[VllmClient]:
        """Return a client for each server alone; close them, too."""
        return [VllmClient([s.url], self.model, self.patience, self.api_key) for s in self._servers]

    async def _info(self, server: _Server) -> ServerInfo:
        try:
            reply = await self._client().get(f"{server.url}/v1/models")
            reply.raise_for_status()
            cards = reply.json()["data"]
        except (httpx2.HTTPError, ValueError, KeyError) as error:
            raise EngineError(
                f"no server answers at {server.url} ({_words(error)}); start it, or give "
                "another address"
            ) from error
        found = [c for c in cards if self.model in (None, c["id"])]
        if not found:
            served = ", ".join(card["id"] for card in cards)
            raise EngineError(f"{server.url} serves {served}, not {self.model}")
        card = found[0]
        context = card.get("max_model_len") or (card.get("meta") or {}).get("n_ctx")  # llama.cpp's
        return ServerInfo(card["id"], int(context or 0))

    async def write(
        self,
        tokens: Sequence[int],
        max_tokens: int,
        options: Callable[[int], Mapping[str, Any]],
        row: Sequence[int] = (),
        *,
        insist: bool = True,
        seconds: float | None = None,
    ) -> AsyncGenerator[WireToken]:
        """Yield up to `max_tokens` tokens that follow `tokens`, as they come.

        options: fields of vLLM's completion request besides these, once so many tokens have come.
        If a connection breaks, what is missing is asked for again, after what has come. row: what
        chooses the server; the same for all requests of a row. insist: try again as long as
        `patience` says; False: each server that is not known to be down once. seconds: without a
        token, after which a server counts as failed; None: as `patience` says.

        Raises:
            RequestError: the server refuses the request. UnreachableError: no server answers in
            time.
        """
        prompt, came = list(tokens), list[int]()  # a copy: the caller's list may grow
        seconds = self.patience.token if seconds is None else seconds
        attempts = self._attempts(insist)
        while len(came) < max_tokens:
            server = self._choose(row, attempts.failures)
            before = len(came)
            try:
                body = self._body([*prompt, *came], max_tokens - len(came), options(len(came)))
                async with aclosing(self._stream(server, body, seconds)) as stream:
                    async for token in stream:
                        server.pause = 0.0
                        came.append(token.token_id)
                        yield token
            except FAULTS as error:
                if len(came) > before:  # it works, if not for long
                    attempts = _Attempts(self.patience, insist=insist)
                await attempts.failed(server, error, self)
            else:
                return

    async def next(
        self,
        prompts: Sequence[Sequence[int]],
        options: Mapping[str, Any],
        row: Sequence[int] = (),
        *,
        insist: bool = True,
    ) -> list[WireToken]:
        """Return the token that follows each of some prompts; row and insist as for `write`.

        Raises:
            RequestError: the server refuses the request. EngineError: no server answers in time.
        """
        body = self._body([list(prompt) for prompt in prompts], 1, options)
        body["stream"] = False

        async def ask(server: _Server) -> list[WireToken]:
            reply = await self._post(server, body, self.patience.token)
            choices = sorted(reply["choices"], key=lambda choice: int(choice["index"]))
            tokens = _tokens({"choices": choices})
            if len(tokens) != len(prompts):
                raise _ServerFaultError(f"{len(tokens)} tokens came for {len(prompts)} prompts")
            return tokens

        return await self._again(row, ask, insist=insist)

    async def read(
        self,
        tokens: Sequence[int],
        count: int,
        top: int,
        row: Sequence[int] = (),
        *,
        insist: bool = True,
    ) -> list[Mapping[int, float]]:
        """Return the log-probabilities of the `top` likeliest tokens at the last `count` positions.

        The first of `count` > 1 makes vLLM read all of the tokens again, past its prefix cache.
        row, insist: as in `write`.

        Raises:
            RequestError: the server refuses the request. UnreachableError: no server answers in
            time.
        """
        # A server that reports what penalties left would take them from the model's folder.
        options = {"temperature": 0, "repetition_penalty": 1.0, "logprobs": top}
        if count == 1:
            written = self.write(tokens, 1, lambda _: options, row, insist=insist)
            async with aclosing(written) as stream:
                return [token.values async for token in stream]
        body = self._body(tokens, 1, {**options, "prompt_logprobs": top})
        body["stream"] = False
        seconds = self.patience.token
        reply = await self._again(
            row, lambda server: self._post(server, body, seconds), insist=insist
        )
        choice = reply["choices"][0]
        read = [_by_id(found) for found in choice["prompt_logprobs"][1 - count :]]
        return [*read, *(token.values for token in _tokens(reply))]

    async def ask(
        self, path: str, body: Mapping[str, Any], row: Sequence[int] = (), *, insist: bool = True
    ) -> dict[str, Any]:
        """Return the answer to a request of whatever kind. row, insist: as in `write`.

        Raises:
            RequestError: the server refuses the request. UnreachableError: no server answers in
            time.
        """
        return await self._again(
            row,
            lambda server: self._post(server, body, self.patience.token, path=path),
            insist=insist,
        )

    async def ask_once(self, number: int, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the server at `urls[number]` answers at once.

        Raises:
            RequestError: it refuses the request. EngineError: it fails at it. UnreachableError: it
            does not answer.
        """
        server = self._servers[number]
        try:
            return await self._post(server, body, self.patience.token, path=path)
        except httpx2.HTTPError as error:
            raise UnreachableError(f"{server.url} does not answer: {_words(error)}") from error
        except FAULTS as error:
            raise EngineError(f"{server.url} fails: {_words(error)}") from error

    async def look_back(
        self, tokens: Sequence[int], count: int, top: int, row: Sequence[int] = ()
    ) -> list[Mapping[int, float]]:
        """Return, at each of the last `count` tokens, its own and the `top` best log-probabilities.

        One token of room is needed, since vLLM writes one at least. It reads all of the tokens
        again, past its prefix cache; there must be more than `count`.

        Raises:
            RequestError: the server refuses the request. EngineError: no server answers in time.
        """
        body = self._body(tokens, 1, {"temperature": 0, "prompt_logprobs": top})
        body["stream"] = False
        seconds = self.patience.text
        reply = await self._again(row, lambda server: self._post(server, body, seconds))
        return [_by_id(found) for found in reply["choices"][0]["prompt_logprobs"][-count:]]

    async def states(self, tokens: Sequence[int], row: Sequence[int] = ()) -> Tensor:
        """Return the states [N, H] after the final norm at each of the N tokens, float32.

        The servers have to run vLLM's pooling runner, with the task token_embed.

        Raises:
            RequestError: the server refuses the request. EngineError: no server answers in time.
        """
        body = {
            "model": self.model,
            "input": list(tokens),
            "use_activation": False,  # or vLLM scales each state to length 1
            "encoding_format": "base64",
            "embed_dtype": "float32",
        }
        seconds = self.patience.text
        reply = await self._again(
            row, lambda server: self._post(server, body, seconds, path="/pooling")
        )
        numbers = torch.frombuffer(
            bytearray(base64.b64decode(reply["data"][0]["data"])), dtype=torch.float32
        )
        if len(numbers) % len(tokens):
            raise EngineError(
                f"a server of {self.model} tells {len(numbers)} numbers for {len(tokens)} tokens"
            )
        return numbers.view(len(tokens), -1)

    async def _post(
        self,
        server: _Server,
        body: Mapping[str, Any],
        seconds: float,
        *,
        path: str = "/v1/completions",
    ) -> dict[str, Any]:
        timeout = httpx2.Timeout(seconds, connect=self.patience.connect)
        reply = await self._client().post(f"{server.url}{path}", json=body, timeout=timeout)
        if reply.status_code >= 400:
            raise self._refused(server, reply.status_code, reply.text)
        value: dict[str, Any] = reply.json()
        return value

    async def _again(
        self,
        row: Sequence[int],
        ask: Callable[[_Server], Awaitable[Result]],
        *,
        insist: bool = True,
    ) -> Result:
        """Return the answer of the first server that gives one."""
        attempts = self._attempts(insist)
        while True:
            server = self._choose(row, attempts.failures)
            try:
                reply = await ask(server)
            except FAULTS as error:
                await attempts.failed(server, error, self)
            else:
                server.pause = 0.0
                return reply

    def _attempts(self, insist: bool) -> _Attempts:
        """Begin to count attempts.

        Raises:
            UnreachableError: one must not insist, and no server is up.
        """
        if not insist and not self.available:
            raise UnreachableError(f"no server of {self.model} is up")
        return _Attempts(self.patience, insist=insist)

    @property
    def available(self) -> bool:
        """Whether a server is not known to be down."""
        return any(server.down_until <= time.monotonic() for server in self._servers)

    def _choose(self, row: Sequence[int], failures: Mapping[str, int]) -> _Server:
        """Return the server for a row: its own if that is up, else the next by the same rule."""
        now = time.monotonic()
        key = repr(tuple(row)).encode()

        def rank(server: _Server) -> tuple[bool, int, bytes]:
            weight = hashlib.blake2b(key, key=server.url.encode()[:64], digest_size=8).digest()
            return server.down_until > now, failures.get(server.url, 0), weight

        return min(self._servers, key=rank)

    def watch(self, server: _Server) -> None:
        """Leave a server alone until it answers again, which is asked from time to time.

        Who does not insist would else wait for a server that takes connections and stands still,
        again and again. One that says that it is there and fails is left alone for longer and
        longer, up to `patience.give_up`.
        """
        server.down_until = math.inf
        if not server.watched:
            server.watched = True
            server.pause = min(max(self.patience.down, 2 * server.pause), self.patience.give_up)
            task = asyncio.get_running_loop().create_task(self._watch(server))
            self._watches.add(task)
            task.add_done_callback(self._watches.discard)

    async def _watch(self, server: _Server) -> None:
        url, wait = f"{server.url}/v1/models", self.patience.connect
        while server.watched:
            await asyncio.sleep(server.pause)
            with suppress(httpx2.HTTPError):
                reply = await self._client().get(url, timeout=wait)
                server.watched = not reply.is_success
        server.down_until = 0.0

    def _body(
        self,
        prompt: Sequence[int] | Sequence[Sequence[int]],
        max_tokens: int,
        options: Mapping[str, Any],
    ) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "stream": True,
            "ignore_eos": True,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "add_special_tokens": False,
            **options,
        }

    async def _stream(
        self, server: _Server, body: Mapping[str, Any], seconds: float
    ) -> AsyncGenerator[WireToken]:
        url = f"{server.url}/v1/completions"
        timeout = httpx2.Timeout(seconds, connect=self.patience.connect)
        async with self._client().stream("POST", url, json=body, timeout=timeout) as reply:
            if reply.status_code >= 400:
                text = (await reply.aread()).decode(errors="replace")
                raise self._refused(server, reply.status_code, text)
            done = False
            async for line in _lines(reply.aiter_bytes()):
                if line == b"data: [DONE]":
                    done = True
                elif line.startswith(b"data: "):
                    for token in _tokens(json.loads(line[6:])):
                        yield token
            if not done:
                raise _ServerFaultError("the connection ended in the middle of an answer")

    def _refused(self, server: _Server, status: int, text: str) -> Exception:
        if status in _REFUSALS:
            return _refusal(server.url, text)
        return _ServerFaultError(f"{status} {_message(text)}")

    def _client(self) -> httpx2.AsyncClient:
        if self._http is None:
            wait = self.patience
            headers = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
            self._http = httpx2.AsyncClient(
                timeout=httpx2.Timeout(wait.token, connect=wait.connect),
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=256),
                headers=headers,
            )
        return self._http

    async def close(self) -> None:
        """Close the connections. Twice is harmless."""
        watches = list(self._watches)
        for task in watches:
            task.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        if self._http is not None:
            http, self._http = self._http, None
            await http.aclose()


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Yield the lines of an event stream, which end with a newline alone.

    A text may hold other characters that Python, and `aiter_lines`, take for the end of a line:
    U+0085, U+2028 and more; JSON does not escape them.
    """
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
    yield rest


_REFUSALS = (400, 404, 405, 422)
"""The request is wrong, and would be elsewhere."""


class _ServerFaultError(Exception):
    """A server that does not do what it should, for now."""


FAULTS = (httpx2.HTTPError, _ServerFaultError, ValueError, KeyError)
"""What is tried again, on another server if there is one."""


class _Attempts:
    """How often one request was tried where, and whether to go on."""

    def __init__(self, patience: Patience, *, insist: bool = True) -> None:
        self._patience = patience
        self._insist = insist
        self._begun = time.monotonic()
        self._pause = 0.05
        self.failures = Counter[str]()

    async def failed(self, server: _Server, error: BaseException, client: VllmClient) -> None:
        """Leave a server alone for a while, and wait a little.

        Raises:
            UnreachableError: it was tried for long enough.
        """
        now = time.monotonic()
        self.failures[server.url] += 1
        if not self._insist:
            client.watch(server)
            if client.available:
                return
            raise UnreachableError(f"no server of {client.model} is up: {_words(error)}") from error
        if not server.watched:
            server.down_until = now + self._patience.down
        if now - self._begun + self._pause > self._patience.give_up:
            raise UnreachableError(
                f"no server of {client.model} has answered for {self._patience.give_up:g} s; the "
                f"last error was: {_words(error)}"
            ) from error
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, 2.0)


def _tokens(event: Mapping[str, Any]) -> list[WireToken]:
    """Return the tokens of one event of vLLM's stream."""
    if "error" in event:
        status = event["error"].get("code") if isinstance(event["error"], dict) else None
        if status in _REFUSALS:  # what is found out only once the stream has begun
            raise _refusal("the server", json.dumps(event))
        raise _ServerFaultError(_message(json.dumps(event)))
    tokens = []
    for choice in event["choices"]:
        ids = choice.get("token_ids") or []
        logprobs = choice.get("logprobs") or {}
        tops = logprobs.get("top_logprobs") or [None] * len(ids)
        for token_id, top in zip(ids, tops, strict=True):
            values = {int(k.removeprefix("token_id:")): v for k, v in (top or {}).items()}
            tokens.append(WireToken(token_id, values))
    return tokens


def _by_id(found: Mapping[str, Any]) -> dict[int, float]:
    """Return vLLM's log-probabilities of a prompt's position by id."""
    return {int(token_id): value["logprob"] for token_id, value in found.items()}


def _refusal(server: str, text: str) -> RequestError:
    """Return what a server's error reply says as an error of ours."""
    try:
        field = json.loads(text)["error"]["param"]
    except (ValueError, LookupError, TypeError):
        field = None
    if field in ("logprobs", "prompt_logprobs"):
        return RequestError(
            f"{server} tells fewer log-probabilities than this takes ({_message(text)}); start it "
            "with a higher --max-logprobs, or ask for fewer"
        )
    return RequestError(f"{server} refuses the request: {_message(text)}")


def _message(text: str) -> str:
    """Return the sentence in an error reply."""
    try:
        value = json.loads(text)
        error = value.get("error", value)
        return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
    except (ValueError, AttributeError):
        return text[:300]


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
