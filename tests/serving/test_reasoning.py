"""However a text is cut, the same thought and the same answer come out of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.models.scripted import ScriptedTokenizer
from crossroads.serving.reasoning import ReasoningSplitter, Split, opened_by_prompt, thinks

# Whole tags, halves of them, and what may stand around them.
texts = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</", "think", ">", "\n", " ", "a", "é", "</t"]),
    max_size=12,
).map("".join)


def split(pieces: Sequence[str], *, inside: bool = False) -> Split:
    splitter = ReasoningSplitter(inside=inside)
    parts = [*(splitter.feed(piece) for piece in pieces), splitter.end()]
    return Split("".join(p.reasoning for p in parts), "".join(p.content for p in parts))


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(ends)]


@given(texts, st.lists(st.integers(0, 99), max_size=8), st.booleans())
def test_cuts_change_nothing(text: str, places: list[int], inside: bool) -> None:
    assert split(cut(text, places), inside=inside) == split([text], inside=inside)
    assert split(list(text), inside=inside) == split([text], inside=inside)


@given(texts)
def test_a_text_without_an_opening_tag_is_the_answer(text: str) -> None:
    if not text.lstrip().startswith("<think>"):
        assert split(list(text)) == Split(content=text)


@given(texts)
def test_a_thought_that_is_never_closed_is_all_reasoning(text: str) -> None:
    if "</think>" not in text:
        assert split(list(text), inside=True) == Split(reasoning=text.removeprefix("\n"))


@given(texts, texts)
def test_the_first_closing_tag_ends_the_thought(thought: str, answer: str) -> None:
    thought, _, _ = thought.partition("</think>")
    expected = Split(thought.removeprefix("\n"), answer.removeprefix("\n"))
    assert split([f" \n<think>{thought}</think>{answer}"]) == expected
    assert split([f"{thought}</think>{answer}"], inside=True) == expected


@given(texts)
def test_nothing_is_held_back_but_what_may_become_a_tag(text: str) -> None:
    splitter = ReasoningSplitter(inside=True)
    told = "".join(splitter.feed(character).reasoning for character in text)
    if "</think>" not in text:
        rest = splitter.end().reasoning
        assert told + rest == text.removeprefix("\n")
        assert "</think>".startswith(rest)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nhm\n</think>\n\nYes.", Split("hm\n", "\nYes.")),
        ("\n <think></think>Yes.", Split("", "Yes.")),
        ("I say <think>hm</think>", Split("", "I say <think>hm</think>")),
        ("<think>a</think>b<think>c</think>d", Split("a", "b<think>c</think>d")),
        ("<think>a<think>b</think>c", Split("a<think>b", "c")),
        ("<think>a</thin", Split("a</thin", "")),
        ("  <thin", Split("", "  <thin")),
        ("", Split()),
    ],
)
def test_examples(text: str, expected: Split) -> None:
    assert split([text]) == expected


def test_an_answer_comes_at_once() -> None:
    splitter = ReasoningSplitter()
    assert splitter.feed("Y") == Split(content="Y")
    assert splitter.feed("<") == Split(content="<")


def test_the_end_tells_what_was_held_once() -> None:
    splitter = ReasoningSplitter()
    assert splitter.feed(" <thi") == Split()
    assert splitter.end() == Split(content=" <thi")
    assert splitter.end() == Split()


def test_tags_of_another_model() -> None:
    splitter = ReasoningSplitter("[T]", "[/T]")
    assert splitter.feed("[T]a[/T]b") == Split("a", "b")
    for tags in (("", "x"), (" a", "x"), ("a", "")):
        with pytest.raises(ValueError, match="tags"):
            ReasoningSplitter(*tags)


class _Thinking(ScriptedTokenizer):
    """Ids: 1 opens a thought, 2 closes it, 3 is white space, 4 a word, 5 padding."""

    def __init__(self, *pieces: bytes | None) -> None:
        super().__init__()
        self._pieces = pieces

    def pieces(self) -> Sequence[bytes | None]:
        return self._pieces


THINKING = _Thinking(b"<eos>", b"<think>", b"</think>", b"\n\n", b"word", None)


def test_a_model_thinks_if_both_tags_are_tokens() -> None:
    assert thinks(THINKING)
    assert not thinks(ScriptedTokenizer())
    assert not thinks(_Thinking(b"<think>"))
    assert not thinks(_Thinking(b"</think>"))
    assert not thinks(_Thinking(b"<think></think>"))


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ([4, 1], True),
        ([4, 1, 3, 3], True),
        ([4, 1, 3, 2, 3], False),
        ([1, 4], False),
        ([4, 1, 5], False),
        ([3], False),
        ([], False),
    ],
)
def test_the_prompt_opens_the_thought_with_its_last_word(prompt: list[int], opened: bool) -> None:
    assert opened_by_prompt(THINKING, prompt) is opened
