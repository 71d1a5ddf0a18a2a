"""The two endpoints that generate: from a request's bytes to a reply or a stream."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from crossroads.errors import CrossroadsError, RequestError
from crossroads.serving.answer import Delta
from crossroads.serving.api_error import ApiError, from_error, invalid_request
from crossroads.serving.job import Job
from crossroads.serving.metrics import Outcome, Refusal, RequestMeter
from crossroads.serving.protocol import parse_chat, parse_completion
from crossroads.serving.replies import ChatFormat, CompletionFormat, ReplyFormat
from crossroads.serving.service import Service, Work
from crossroads.serving.stream import (
    DONE,
    ClientGoneError,
    EventStream,
    dump,
    server_event,
    while_connected,
)

logger = logging.getLogger("crossroads.serving")

_LONG_BODY = 16_384  # bytes from which reading and tokenizing goes to a thread of its own
_CLIENT_GONE = 499  # nobody reads it; what proxies write into their logs for it


@dataclass(slots=True)
class _Generation:
    """One request on its way through the engine, with all that counts it."""

    service: Service
    work: Work
    reply: ReplyFormat
    job: Job
    meter: RequestMeter
    tokens: int = 0
    started: float = field(default_factory=time.perf_counter)

    def end(self, outcome: Outcome) -> None:
        """Stop what runs and count the request; only the first call counts it."""
        self.job.close()
        self.meter.finish(outcome, *self.job.traces)

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta]]:
        """Yield (number of an answer, what is new of it).

        Raises:
            ApiError: the deadline passed, or the engine failed; the request has ended then.
        """
        answers = [self.service.answer(self.work, i) for i in range(len(self.work.requests))]
        try:
            async for index, event in self.job.events():
                if event.record is not None:
                    self.tokens += 1
                    self.meter.token(event.record, index)
                yield index, answers[index].add(event)
        except ApiError:
            self._log("timed out")
            self.end(Outcome.TIMEOUT)
            raise
        except CrossroadsError as error:
            self._log(f"failed: {error}")
            self.end(Outcome.ERROR)
            raise from_error(error) from error
        self._log("ended")
        self.end(Outcome.OK)

    def totals(self) -> dict[str, Any]:
        """Return usage and routing, once every answer has ended."""
        return self.service.totals(self.work, [t for t in self.job.traces if t is not None])

    async def whole(self) -> bytes:
        """Return the reply to a request that does not stream."""
        whole = [Delta() for _ in self.work.requests]
        async for index, delta in self.deltas():
            whole[index].extend(delta)
        return dump(self.reply.whole(whole, self.totals()))

    async def events(self) -> AsyncGenerator[bytes]:
        """Yield the events of a stream; an error is the last one."""
        for value in self.reply.opening(len(self.work.requests)):
            yield server_event(value)
        try:
            async for index, delta in self.deltas():
                chunk = self.reply.chunk(index, delta)
                if chunk is None:
                    continue
                if self.work.usage_so_far:
                    chunk["usage"] = self.work.usage(self.tokens)
                yield server_event(chunk)
        except ApiError as error:
            yield server_event(error.body())
            return
        if self.work.include_usage or self.work.routing:
            totals = self.totals()
            usage = totals["usage"] if self.work.include_usage else None
            yield server_event(self.reply.totals_chunk({**totals, "usage": usage}))
        yield DONE

    def gone(self) -> None:
        """End a stream, however it came to its end; a client that went away has cancelled it."""
        self.end(Outcome.CANCELLED)

    def _log(self, how: str) -> None:
        tokens = sum(len(t.records) for t in self.job.traces if t is not None)
        seconds = time.perf_counter() - self.started
        said = ""
        if self.service.options.log_text:
            texts = [None if t is None else t.text for t in self.job.traces]
            prompts = [r.prompt_ids for r in self.work.requests[:: self.work.choices_per_prompt]]
            decode = self.service.models.tokenizer.decode
            said = f" prompts {[decode(p) for p in prompts]!r} answers {texts!r}"
        logger.info(
            "%s %s %s: %d tokens in %.2f s%s",
            self.reply.id, self.work.model, how, tokens, seconds, said,
        )  # fmt: skip


async def chat(request: Request) -> Response:
    """Answer `POST /v1/chat/completions`."""
    service: Service = request.app.state.service

    def read(body: bytes) -> Work:
        return service.chat_work(parse_chat(body, service.options.limits))

    return await _generate(request, read, ChatFormat)


async def complete(request: Request) -> Response:
    """Answer `POST /v1/completions`."""
    service: Service = request.app.state.service

    def read(body: bytes) -> Work:
        return service.completion_work(parse_completion(body, service.options.limits))

    return await _generate(request, read, CompletionFormat)


async def _generate(
    request: Request, read: Callable[[bytes], Work], kind: type[ReplyFormat]
) -> Response:
    service: Service = request.app.state.service
    try:
        body = await request.body()
    except ClientDisconnect:
        return Response(status_code=_CLIENT_GONE)
    work = await asyncio.to_thread(read, body) if len(body) > _LONG_BODY else read(body)
    reply = kind(work.options, service.models.tokenizer)
    job = Job(service.engine, work.requests, work.alone, service.options.seconds)
    meter = service.metrics.request(work.model, [len(r.prompt_ids) for r in work.requests])
    request.state.metered = True
    generation = _Generation(service, work, reply, job, meter)
    _start(generation)
    if work.stream:
        patience = service.options.patience
        return EventStream(generation.events(), patience=patience, close=generation.gone)
    try:
        content = await while_connected(request.receive, generation.whole())
    except ClientGoneError:
        return Response(status_code=_CLIENT_GONE)
    finally:
        generation.gone()
    return Response(content, media_type="application/json")


def _start(generation: _Generation) -> None:
    try:
        generation.job.start()
    except CrossroadsError as error:
        refusal = from_error(error)
        if isinstance(error, RequestError):
            refusal = invalid_request(str(error), generation.work.field)
        generation.meter.refused(Refusal.of(refusal.status))
        raise refusal from error
