"""What a server can do, found out by asking it: once, when a model behind it is loaded.

What matters most is whether the server reads exactly the ids that it is sent. A server that writes
them out and splits the text anew, or puts a token of its own before them, answers well and to
another question. So the first prompt is a word spelled in single letters, which no tokenizer does:
a server that splits it anew counts fewer tokens, one that adds a token counts more. Where tokens
come back as text, an answer in one piece must also be the one that comes token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crossroads.errors import EngineError, RequestError, UnreachableError
from crossroads.models.base import Tokenizer
from crossroads.models.completions_wire import Completions, Dialect, LlamaCpp, TokenFinder, Told
from crossroads.models.event_loop import EventLoopThread
from crossroads.models.remote_client import ServerInfo, VllmClient
from crossroads.models.server_pool import Patience

_LADDER = (20, 5, 1)
"""How many likeliest tokens a server is asked for, until it tells some; OpenAI allows 5."""
_SPELLED = ("the", "THE")
_TIMES = 6
_TEXT = "One two three four five six seven eight nine ten eleven twelve"
_STEPS = 8
_FORM = (KeyError, TypeError, ValueError, IndexError, AttributeError)


@dataclass(frozen=True, slots=True)
class Found:
    """What servers can do.

    dialect: how to ask them; None: they are vLLM, which `remote.RemoteLM` asks. most_top: likeliest
    tokens that they tell by id. info: what they say of themselves.
    """

    dialect: Dialect | None
    most_top: int
    info: ServerInfo


def find_out(
    urls: Sequence[str],
    tokenizer: Tokenizer,
    eos_ids: Sequence[int],
    patience: Patience = Patience(),  # noqa: B008
) -> Found:
    """Return what the servers at these addresses can do; all of them must be of one kind.

    Raises:
        EngineError: one does not answer, cannot be given token ids, or reads other ones.
        ConfigError: an address that is none.
    """
    client = VllmClient(urls, patience=patience)
    thread = EventLoopThread("probe")
    try:
        return thread.wait(_of_all(client, tokenizer, eos_ids))
    finally:
        thread.close(client.close)


async def _of_all(client: VllmClient, tokenizer: Tokenizer, eos_ids: Sequence[int]) -> Found:
    info = await client.connect()
    finder = TokenFinder(tokenizer.pieces(), eos_ids)
    found = [
        await _Probe(client, number, info, tokenizer, finder).run()
        for number in range(len(client.urls))
    ]
    if len({(one.dialect, one.most_top) for one in found}) > 1:
        raise EngineError(f"the servers {', '.join(client.urls)} are not of one kind; make them so")
    return found[0]


@dataclass(frozen=True, slots=True)
class _Probe:
    client: VllmClient
    number: int
    info: ServerInfo
    tokenizer: Tokenizer
    finder: TokenFinder

    @property
    def url(self) -> str:
        return self.client.urls[self.number]

    async def run(self) -> Found:
        spelled = self._spelled()
        for dialect in (LlamaCpp(), Completions(), Completions(asks_top=False)):
            try:
                told = await self._ask(dialect, spelled, 0)
            except UnreachableError:
                raise
            except (EngineError, RequestError) as error:
                refusal = error
                continue
            if isinstance(dialect, Completions) and await self._is_vllm(dialect, spelled):
                return Found(None, 0, self.info)
            self._check_read(told, len(spelled))
            await self._check_text(dialect, told)
            return Found(dialect, await self._most_top(dialect, spelled), self.info)
        raise EngineError(
            f"{self.url} takes no token ids as a prompt ({refusal}); a large model by URL needs a "
            "server that does, such as llama.cpp's, SGLang or vLLM"
        )

    def _spelled(self) -> list[int]:
        """Return a word, again and again, in single letters."""
        for word in _SPELLED:
            ids = [self.finder.only(letter.encode()) for letter in word]
            if all(token_id is not None for token_id in ids):
                return [token_id for token_id in ids if token_id is not None] * _TIMES
        raise EngineError(
            f"the vocabulary of {self.info.model} has no single letters, so that nobody can tell "
            f"whether {self.url} reads the ids that it is sent; serve the model with vLLM"
        )

    async def _ask(self, dialect: Dialect, tokens: Sequence[int], top: int, count: int = 1) -> Told:
        """Return what the server tells of the next token.

        Raises:
            RequestError: it refuses. EngineError: it fails, or answers in another form.
        """
        body = dialect.body(self.info.model, tokens, top, count)
        reply = await self.client.ask_once(self.number, dialect.path, body)
        try:
            return dialect.told(reply)
        except _FORM as error:
            raise EngineError(f"{self.url}{dialect.path} answers in another form") from error

    async def _is_vllm(self, dialect: Completions, tokens: Sequence[int]) -> bool:
        body = {**dialect.body(self.info.model, tokens, 1), "prompt_logprobs": 1}
        try:
            reply = await self.client.ask_once(self.number, dialect.path, body)
        except (EngineError, RequestError):
            return False
        (choice,) = reply["choices"]
        return bool(choice.get("token_ids")) and bool(choice.get("prompt_logprobs"))

    def _check_read(self, told: Told, sent: int) -> None:
        if told.read is None:
            raise EngineError(
                f"{self.url} does not say how many tokens it read (usage.prompt_tokens), so that "
                "nobody can tell whether it reads the ids that it is sent; serve the model with "
                "another server"
            )
        if told.read != sent:
            raise EngineError(
                f"{self.url} was sent {sent} tokens and read {told.read}: it splits their text "
                "anew or adds tokens of its own; serve the model with a server that takes token "
                "ids as they are"
            )

    async def _check_text(self, dialect: Dialect, told: Told) -> None:
        """Compare an answer in one piece with the same one, token by token."""
        if told.token_id is not None:
            return
        tokens = self.tokenizer.encode(_TEXT)
        whole = (await self._ask(dialect, tokens, 0, _STEPS)).text
        written = b""
        for _ in range(_STEPS):
            one = await self._ask(dialect, tokens, 0)
            try:
                token_id = self.finder.find(one)
            except EngineError:
                break  # rows that come to such a token will say so
            if one.ended and not one.text:
                break
            written += one.piece or b""
            tokens = [*tokens, token_id]
        if not whole.encode().startswith(written):
            raise EngineError(
                f"{self.url} answers {whole!r} at once and {written.decode(errors='replace')!r} "
                "token by token, so its text does not tell its tokens; serve the model with a "
                "server that tells token ids, such as llama.cpp's or vLLM"
            )

    async def _most_top(self, dialect: Dialect, tokens: Sequence[int]) -> int:
        """Return how many likeliest tokens the server tells by id."""
        for top in _LADDER:
            try:
                told = await self._ask(dialect, tokens, top)
            except UnreachableError:
                raise
            except (EngineError, RequestError):
                continue
            return min(top, len(told.values or ()))
        return 0


def within(found: Found, context_length: int) -> int:
    """Return the context that both the caller and the servers have."""
    return min(context_length, found.info.context_length or context_length)
