"""A language model behind an OpenAI-compatible endpoint as the judge.

The event loop runs in a thread of its own: requests go on while the caller is busy with the
judgements it was given, and while the next case is being made.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import math
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from crossroads.artifacts import canonical_hash
from crossroads.errors import ConfigError, EngineError
from crossroads.labelling.judges.base import Judgement, Verdict, failed
from crossroads.labelling.judges.prompt import PROMPT_VERSION, messages
from crossroads.labelling.judges.replies import FIELD, Replies, Reply, read_reply
from crossroads.labelling.records import Case, Span

INSTALL = 'pip install "crossroads-lm[judges]"'

_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {FIELD: {"type": "integer", "enum": [0, 1]}},
            "required": [FIELD],
            "additionalProperties": False,
        },
    },
}
_LOGPROBS = {"logprobs": True, "top_logprobs": 5}
_NO_KEY = "none"  # the client insists on a key, a local server on none
_STRIKES = 8  # unanswered cases in a row, after which the endpoint counts as down
_LONGEST_WAIT = 60.0  # seconds that a server may ask us to stay away
_QUOTED = 120  # characters of a server's own words in a reason


@dataclass(frozen=True, slots=True)
class LLMJudge:
    """Divergent if the model at `url` answers that a continuation changes the course.

    The model writes one digit at temperature 0. Where the server tells log-probabilities, the
    probability is P(1) / (P(0) + P(1)) at that digit, a digit outside the top five counting as 0.
    Of several continuations each is asked about, and the mean probability (of digits, where the
    server tells no more) decides at 0.5. A model that thinks before it answers does not fit.

    url: the endpoint, usually ending in /v1; model: the name that it serves.
    concurrency: requests in flight. timeout: seconds for one request; retries: further tries
    after a timeout, an overload or a server's error, the first after `backoff` seconds, each
    later one after twice as long.
    structured: ask for JSON by schema instead of a bare digit. logprobs: ask for them; a server
    that refuses the field is asked without.
    key_env: the environment variable that holds the key; the key itself is kept nowhere.
    cache: a folder for replies; an equal request is never sent twice, in this run or a later one.
    """

    url: str = ""
    model: str = ""
    concurrency: int = 16
    timeout: float = 60.0
    retries: int = 3
    structured: bool = False
    logprobs: bool = True
    key_env: str = "OPENAI_API_KEY"
    backoff: float = 1.0
    cache: Path | None = None
    name: str = field(default="llm", init=False)
    needs_continuations: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, before anything is asked.

        Raises:
            ConfigError: a setting is missing or out of range.
            EngineError: the client library is not installed.
        """
        _check_url(self.url)
        if not isinstance(self.model, str) or not self.model:
            raise ConfigError(
                f"the llm judge needs model=NAME as the endpoint calls it, got {self.model!r}"
            )
        for name, least in (("concurrency", 1), ("retries", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(
                    f"the llm judge's {name} must be a whole number from {least} on, got {value!r}"
                )
        if not 0 < self.timeout < math.inf:
            raise ConfigError(f"the llm judge's timeout must be above 0 s, got {self.timeout}")
        if not 0 <= self.backoff < math.inf:
            raise ConfigError(f"the llm judge's backoff cannot be {self.backoff} s")
        for name in ("structured", "logprobs"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"the llm judge's {name} must be true or false")
        _import_openai()

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the verdicts and probabilities depend on; nothing secret."""
        return {
            "url": self.url,
            "model": self.model,
            "structured": self.structured,
            "logprobs": self.logprobs,
            "prompt": PROMPT_VERSION,
        }

    def judge(self, cases: Iterable[Case]) -> Iterator[Judgement]:
        """Yield judgements as they are ready; closing the iterator drops what is in flight.

        Raises:
            EngineError: the endpoint is down, overloaded, refuses the key or lacks the model.
            DataError: the file of cached replies is damaged.
        """
        exchange = _Exchange(self)
        flying: set[Future[Judgement]] = set()
        with _event_loop(exchange.close) as loop:
            for case in cases:
                flying.add(asyncio.run_coroutine_threadsafe(exchange.judgement(case), loop))
                yield from _finished(flying, block=len(flying) >= self.concurrency)
            while flying:
                yield from _finished(flying, block=True)

    def request(self, case: Case, continuation: Span) -> dict[str, Any]:
        """Return the body of the request about one continuation."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [asdict(message) for message in messages(case, continuation)],
            "temperature": 0,
            "max_tokens": 32 if self.structured else 8,
        }
        if self.structured:
            body["response_format"] = _FORMAT
        return {**body, **_LOGPROBS} if self.logprobs else body


def _check_url(url: str) -> None:
    if not url:
        raise ConfigError("the llm judge needs url=http://HOST:PORT/v1, an OpenAI-style endpoint")
    try:
        parts = urlsplit(str(url))
        whole = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # reading it checks it
    except ValueError:
        whole = False
    if not whole:
        raise ConfigError(f"the llm judge's url must be http(s)://HOST[:PORT]/PATH, got {url!r}")
    if parts.username or parts.password or parts.query:
        # The url is stored with the labels, and both are places where people put keys.
        raise ConfigError(
            "the llm judge's url must have no user, password or query; put the key in the "
            "environment variable that key_env names"
        )


def _import_openai() -> Any:
    try:
        import openai  # noqa: PLC0415  optional, and slow to import
    except ImportError as error:
        raise EngineError(f"openai is not installed; run: {INSTALL}") from error
    return openai


@contextmanager
def _event_loop(
    last: Callable[[], Coroutine[Any, Any, None]],
) -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a thread of its own for the length of the block, and `last` in it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="llm-judge", daemon=True)

    def stop() -> None:
        if not loop.is_closed():
            atexit.unregister(stop)
            asyncio.run_coroutine_threadsafe(last(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    thread.start()
    # A generator that nobody closed is closed when the interpreter ends, too late: its thread
    # runs no more by then, and waiting for it would hang.
    atexit.register(stop)
    try:
        yield loop
    finally:
        stop()


def _finished(flying: set[Future[Judgement]], *, block: bool) -> Iterator[Judgement]:
    """Yield one judgement if there is one, and wait for it if `block`.

    One, not all: the place it leaves is filled before the caller is given the next.
    """
    done = wait(flying, timeout=None if block else 0, return_when=FIRST_COMPLETED).done
    if done:
        future = done.pop()
        flying.remove(future)
        yield future.result()


class _NoReplyError(Exception):
    """A request that failed; `again` if another try may help, `down` if nobody listens."""

    def __init__(
        self, reason: str, *, again: bool = False, down: bool = False, pause: float = 0.0
    ) -> None:
        """Remember why, and for how many seconds the server wants to be left alone."""
        super().__init__(reason)
        self.again = again
        self.down = down
        self.pause = pause


class _Exchange:
    """One run of a judge; but for the constructor, all of it happens in the event loop."""

    def __init__(self, judge: LLMJudge) -> None:
        """Read the cached replies and make a client; nothing is sent."""
        self._judge = judge
        self._openai = _import_openai()
        self._replies = Replies(judge.cache, judge.url, judge.model)
        self._asking: dict[str, asyncio.Task[Reply]] = {}
        self._logprobs = judge.logprobs
        self._strikes = 0
        self._key = os.environ.get(judge.key_env) or _NO_KEY
        # Time and tries are counted here: the client's own timeout is one per read, and a server
        # that sends a byte now and then would never run into it.
        self._client = self._openai.AsyncOpenAI(
            base_url=judge.url, api_key=self._key, timeout=None, max_retries=0
        )

    async def close(self) -> None:
        """Cancel what is in flight and close the client's connections."""
        loop = asyncio.get_running_loop()
        others = asyncio.all_tasks(loop) - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()
        await loop.shutdown_asyncgens()
        await loop.shutdown_default_executor()

    async def judgement(self, case: Case) -> Judgement:
        """Return the verdict on one case, asking about its continuations one after another."""
        if not case.continuations:
            return failed(case, "no continuation to compare the reference with")
        shares: list[float] = []
        for span in case.continuations:
            try:
                reply = await self._reply(self._judge.request(case, span))
            except _NoReplyError as error:
                return self._failed(case, error)
            digit = reply.digit(self._judge.structured)
            if digit is None:
                return failed(case, f"answered {self._quoted(reply.text or '')!r}")
            if len(case.continuations) == 1:
                return Judgement(case.id, Verdict(digit == 1, reply.probability, str(digit)))
            shares.append(digit if reply.probability is None else reply.probability)
        mean = sum(shares) / len(shares)
        return Judgement(case.id, Verdict(mean >= 0.5, mean, f"mean of {len(shares)}"))

    def _failed(self, case: Case, error: _NoReplyError) -> Judgement:
        """Return the failure, unless it is one too many.

        Raises:
            EngineError: so many cases in a row were not answered that the endpoint must be down.
        """
        if error.again:
            self._strikes += 1
        if self._strikes >= _STRIKES:
            raise EngineError(
                f"the judge at {self._judge.url} left {_STRIKES} cases in a row unanswered "
                f"({error}); see whether it is overloaded and run the same command again"
            )
        return failed(case, str(error))

    async def _reply(self, request: dict[str, Any]) -> Reply:
        """Return the reply to a request: a cached one, one on its way, or a new one."""
        # The request as the settings mean it: a server that refuses logprobs refuses them
        # tomorrow too, and another run shall find these replies.
        key = canonical_hash(request)
        if found := self._replies.get(key):
            return found
        if key not in self._asking:
            task = asyncio.ensure_future(self._ask(key, request))
            task.add_done_callback(lambda _: self._asking.pop(key))
            self._asking[key] = task
        return await self._asking[key]

    async def _ask(self, key: str, request: dict[str, Any]) -> Reply:
        """Send a request until it is answered, and keep a readable answer."""
        tries = 0
        while True:
            try:
                completion = await self._send(request)
                break
            except _NoReplyError as error:
                if not error.again:
                    raise
                if tries == self._judge.retries:
                    raise self._given_up(error) from error
                await asyncio.sleep(max(self._judge.backoff * 2**tries, error.pause))
                tries += 1
        self._strikes = 0
        reply = read_reply(completion)
        if reply.digit(self._judge.structured) is not None:
            self._replies.keep(key, reply)
        return reply

    def _given_up(self, error: _NoReplyError) -> Exception:
        if error.down:
            return EngineError(
                f"the judge at {self._judge.url} does not answer ({error}); start it and run the "
                "same command again"
            )
        return _NoReplyError(f"{error}, {self._judge.retries + 1} tries", again=True)

    async def _send(self, request: dict[str, Any]) -> Any:
        """Send one request once (twice if it is refused for its logprobs) and return the reply.

        Raises:
            _NoReplyError: no reply, or one that says no.
            EngineError: the key or the model is refused, and would be for every case.
        """
        openai = self._openai
        if not self._logprobs:
            request = {name: request[name] for name in request if name not in _LOGPROBS}
        try:
            async with asyncio.timeout(self._judge.timeout):
                return await self._client.chat.completions.create(**request)
        except (TimeoutError, openai.APITimeoutError) as error:
            reason = f"no reply within {self._judge.timeout:g} s"
            raise _NoReplyError(reason, again=True) from error
        except openai.APIConnectionError as error:
            # The class of the HTTP library that openai uses; it has changed that library once.
            down = type(error.__cause__).__name__ == "ConnectError"
            reason = self._quoted(str(error.__cause__ or error))
            raise _NoReplyError(reason, again=True, down=down) from error
        except openai.APIStatusError as error:
            if not self._refuses_logprobs(error, request):
                raise self._refusal(error) from error
        except json.JSONDecodeError as error:
            return error.doc  # an answer all the same, though not one that can be read
        self._logprobs = False
        return await self._send(request)

    def _refuses_logprobs(self, error: Any, request: Mapping[str, Any]) -> bool:
        return "logprobs" in request and error.status_code == 400 and "logprobs" in _body(error)

    def _refusal(self, error: Any) -> Exception:
        """Return what an HTTP status means: for this request, or for all of them."""
        status, url, model = error.status_code, self._judge.url, self._judge.model
        said = f"HTTP {status}: {self._quoted(_body(error))}"
        if status in (401, 403):
            return EngineError(
                f"the judge at {url} refuses the key for {model!r} (HTTP {status}); put a valid "
                f"one in the environment variable {self._judge.key_env}"
            )
        if status == 404:
            return EngineError(
                f"the judge at {url} has no model {model!r}, or is at another path ({said}); "
                "check model and url, which usually ends in /v1"
            )
        again = status in (408, 409, 429) or status >= 500
        return _NoReplyError(said, again=again, pause=_pause(error))

    def _quoted(self, text: str) -> str:
        """Return a server's words in one short line, without the key if it repeats that."""
        line = " ".join(text.split())
        if self._key != _NO_KEY:
            line = line.replace(self._key, "***")
        return line if len(line) <= _QUOTED else f"{line[:_QUOTED]}..."


def _body(error: Any) -> str:
    text: str = error.response.text
    return text


def _pause(error: Any) -> float:
    """Return for how long the server asks to be left alone; it may name a date, which is none."""
    try:
        seconds = float(error.response.headers.get("retry-after", 0))
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_WAIT) if math.isfinite(seconds) else 0.0
