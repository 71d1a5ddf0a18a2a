"""One vLLM server, or several that serve the same model, by URL: tokens in, tokens out.

Which server a request goes to, and when it is sent again, is `server_pool`'s.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx2
from torch import Tensor

from crossroads.errors import EngineError, UnreachableError
from crossroads.models.server_pool import (
    FAULTS,
    Patience,
    Server,
    ServerFaultError,
    ServerPool,
    words,
)
from crossroads.models.vllm_replies import (
    WireToken,
    events,
    numbers_of,
    prompt_values,
    refused,
    tokens_of,
)

MOST_PLACES = 32
"""Places of one row that a server is asked about at a time."""

_COMPLETIONS = "/v1/completions"

Result = TypeVar("Result")


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
    patience: Patience = field(default_factory=Patience)
    api_key: str | None = None
    _pool: ServerPool = field(init=False)

    def __post_init__(self) -> None:
        """Check the addresses.

        Raises:
            ConfigError: none, or one that is no http address.
        """
        self._pool = ServerPool(self.urls, self.patience, self.api_key)

    @property
    def available(self) -> bool:
        """Whether a server is not known to be down."""
        return self._pool.available

    async def connect(self) -> ServerInfo:
        """Return what the servers serve; all of them must serve the same.

        Raises:
            EngineError: a server does not answer, or they differ.
        """
        infos = [await self._info(server) for server in self._pool.servers]
        if len({info.context_length for info in infos}) > 1 or len({i.model for i in infos}) > 1:
            raise EngineError(f"the servers {', '.join(self.urls)} do not serve the same model")
        self.model = infos[0].model
        return infos[0]

    def apart(self) -> list[VllmClient]:
        """Return a client for each server alone; close them, too."""
        return [
            VllmClient([s.url], self.model, self.patience, self.api_key) for s in self._pool.servers
        ]

    async def _info(self, server: Server) -> ServerInfo:
        try:
            reply = await self._pool.http().get(f"{server.url}/v1/models")
            reply.raise_for_status()
            cards = reply.json()["data"]
        except (httpx2.HTTPError, ValueError, KeyError) as error:
            raise EngineError(
                f"no server answers at {server.url} ({words(error)}); start it, or give "
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
        attempts = self._pool.attempts(self.model, insist=insist)
        while len(came) < max_tokens:
            server = self._pool.choose(row, attempts)
            before = len(came)
            try:
                body = self._body([*prompt, *came], max_tokens - len(came), options(len(came)))
                async with aclosing(self._stream(server, body, seconds)) as stream:
                    async for token in stream:
                        server.answered()
                        came.append(token.token_id)
                        yield token
            except FAULTS as error:
                if len(came) > before:  # it works, if not for long
                    attempts.begin_again()
                await attempts.failed(server, error)
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

        def tokens(reply: Mapping[str, Any]) -> list[WireToken]:
            choices = sorted(reply["choices"], key=lambda choice: int(choice["index"]))
            found = tokens_of({"choices": choices})
            if len(found) != len(prompts):
                raise ServerFaultError(f"{len(found)} tokens came for {len(prompts)} prompts")
            return found

        body = self._body([list(prompt) for prompt in prompts], 1, options, stream=False)
        return await self._answer(_COMPLETIONS, body, row, tokens, insist=insist)

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

        Up to 32 are so many prompts of one request, which its prefix cache holds but for the last
        block of each. More make vLLM read all of the tokens again, past that cache. row, insist:
        as in `write`.

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
        if count <= MOST_PLACES:
            prompts = [tokens[:end] for end in range(len(tokens) - count + 1, len(tokens) + 1)]
            found = await self.next(prompts, options, row, insist=insist)
            return [token.values for token in found]

        def values(reply: Mapping[str, Any]) -> list[Mapping[int, float]]:
            written = (token.values for token in tokens_of(reply))
            return [*prompt_values(reply, count - 1), *written]

        options["prompt_logprobs"] = top
        body = self._body(tokens, 1, options, stream=False)
        return await self._answer(_COMPLETIONS, body, row, values, insist=insist)

    async def ask(
        self, path: str, body: Mapping[str, Any], row: Sequence[int] = (), *, insist: bool = True
    ) -> dict[str, Any]:
        """Return the answer to a request of whatever kind. row, insist: as in `write`.

        Raises:
            RequestError: the server refuses the request. UnreachableError: no server answers in
            time.
        """
        return await self._answer(path, body, row, dict, insist=insist)

    async def ask_once(self, number: int, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the server at `urls[number]` answers at once.

        Raises:
            RequestError: it refuses the request. EngineError: it fails at it. UnreachableError: it
            does not answer.
        """
        server = self._pool.servers[number]
        try:
            return await self._post(server, path, body, self.patience.token)
        except httpx2.HTTPError as error:
            raise UnreachableError(f"{server.url} does not answer: {words(error)}") from error
        except FAULTS as error:
            raise EngineError(f"{server.url} fails: {words(error)}") from error

    async def look_back(
        self, tokens: Sequence[int], count: int, top: int, row: Sequence[int] = ()
    ) -> list[Mapping[int, float]]:
        """Return, at each of the last `count` tokens, its own and the `top` best log-probabilities.

        One token of room is needed, since vLLM writes one at least. It reads all of the tokens
        again, past its prefix cache; there must be more than `count`.

        Raises:
            RequestError: the server refuses the request. EngineError: no server answers in time.
        """
        options = {"temperature": 0, "prompt_logprobs": top}
        body = self._body(tokens, 1, options, stream=False)
        seconds = self.patience.text

        def values(reply: Mapping[str, Any]) -> list[Mapping[int, float]]:
            return prompt_values(reply, count)

        return await self._answer(_COMPLETIONS, body, row, values, seconds=seconds)

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
        numbers = await self._answer("/pooling", body, row, numbers_of, seconds=seconds)
        if len(numbers) % len(tokens):
            raise EngineError(
                f"a server of {self.model} tells {len(numbers)} numbers for {len(tokens)} tokens"
            )
        return numbers.view(len(tokens), -1)

    async def _answer(
        self,
        path: str,
        body: Mapping[str, Any],
        row: Sequence[int],
        read: Callable[[Mapping[str, Any]], Result],
        *,
        seconds: float | None = None,
        insist: bool = True,
    ) -> Result:
        """Return what is read in the first whole answer in which it can be."""
        wait = self.patience.token if seconds is None else seconds

        async def ask(server: Server) -> Result:
            return read(await self._post(server, path, body, wait))

        return await self._pool.again(row, ask, model=self.model, insist=insist)

    async def _post(
        self, server: Server, path: str, body: Mapping[str, Any], seconds: float
    ) -> dict[str, Any]:
        url, wait = f"{server.url}{path}", self._pool.timeout(seconds)
        reply = await self._pool.http().post(url, json=body, timeout=wait)
        if reply.status_code >= 400:
            raise refused(server.url, reply.status_code, reply.text)
        value: dict[str, Any] = reply.json()
        return value

    def _body(
        self,
        prompt: Sequence[int] | Sequence[Sequence[int]],
        max_tokens: int,
        options: Mapping[str, Any],
        *,
        stream: bool = True,
    ) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "stream": stream,
            "ignore_eos": True,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "add_special_tokens": False,
            **options,
        }

    async def _stream(
        self, server: Server, body: Mapping[str, Any], seconds: float
    ) -> AsyncGenerator[WireToken]:
        url, wait = f"{server.url}{_COMPLETIONS}", self._pool.timeout(seconds)
        async with self._pool.http().stream("POST", url, json=body, timeout=wait) as reply:
            if reply.status_code >= 400:
                text = (await reply.aread()).decode(errors="replace")
                raise refused(server.url, reply.status_code, text)
            async for event in events(reply.aiter_bytes()):
                for token in tokens_of(event):
                    yield token

    async def close(self) -> None:
        """Close the connections. Twice is harmless."""
        await self._pool.close()
