"""Where a short future ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.errors import ConfigError
from crossroads.labelling.sentences import Cutter, SentenceRule, cut

EOS = 0


class Words:
    """A tokenizer whose id i stands for the i-th piece; 0 ends a text."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces_of = dict(enumerate(pieces, start=1))

    def text_bytes(self, token_id: int) -> bytes:
        return self.pieces_of.get(token_id, "").encode()

    def decode(self, token_ids) -> str:
        return "".join(self.pieces_of.get(i, "") for i in token_ids)


def cut_text(pieces: list[str], rule: SentenceRule, eos: bool = False) -> tuple[str, bool]:
    ids = [*range(1, len(pieces) + 1), *([EOS] if eos else [])]
    span = cut(ids, rule, Words(pieces), {EOS})
    return span.text, span.complete


@pytest.mark.parametrize(
    ("pieces", "sentences", "expected"),
    [
        (["One", ".", " Two", ".", " Three"], 1, "One."),
        (["One", ".", " Two", ".", " Three"], 2, "One. Two."),
        (["Is it", "?", " Yes", "!\n", "No"], 2, "Is it? Yes!\n"),
        (["a line", "\n\n", "b", "\n", "c"], 2, "a line\n\nb\n"),
        (["x", ":\n", "y", ".", " z"], 1, "x:\ny."),
        (["f(", "(.", "a", ".", " b"], 1, "f((.a."),
        (["f", ").", " b"], 1, "f)."),
        (["see", " etc.", " and", ".", " b"], 1, "see etc. and."),
        (["完", "。", "了"], 1, "完。"),
    ],
)
def test_a_future_ends_after_so_many_sentences(pieces, sentences, expected) -> None:
    assert cut_text(pieces, SentenceRule(sentences)) == (expected, True)


def test_a_decimal_point_ends_nothing_unless_wanted() -> None:
    price = [" $", "12", ".", "50", " each", ".", " Then"]
    assert cut_text(price, SentenceRule(1)) == (" $12.50 each.", True)
    assert cut_text(price, SentenceRule(1, decimals=False)) == (" $12.", True)
    end = ["It is", " 12", ".", " Then", " 3", "."]
    assert cut_text(end, SentenceRule(1)) == ("It is 12.", True)
    assert cut_text([*end, "\n"], SentenceRule(2)) == ("It is 12. Then 3.", True)


def test_an_eos_ends_a_future_and_a_limit_cuts_it() -> None:
    assert cut_text(["so", " it", " ends"], SentenceRule(5), eos=True) == ("so it ends", True)
    assert cut_text(["so", " 12", "."], SentenceRule(1), eos=True) == ("so 12.", True)
    assert cut_text(["a", "b", "c", "d"], SentenceRule(2, max_tokens=3)) == ("abc", False)
    assert cut_text(["a", "b"], SentenceRule(2)) == ("ab", False)


PIECES = st.lists(
    st.sampled_from(["a", " b", ".", "\n", "1", "!", ":", "12", " 3.", "?\n", "(", ")."]),
    min_size=1, max_size=30,
)  # fmt: skip


@given(PIECES, st.integers(1, 3), st.integers(1, 12), st.booleans())
def test_what_follows_an_end_changes_nothing(pieces, sentences, most, decimals) -> None:
    rule = SentenceRule(sentences, most, decimals)
    tokenizer = Words(pieces)
    cutter, read = Cutter(rule, tokenizer, {EOS}), 0
    for token in range(1, len(pieces) + 1):
        read = token
        if cutter.add(token):
            break
    span = cutter.span()
    assert span == cut(range(1, read + 1), rule, tokenizer, {EOS})
    assert 1 <= len(span.token_ids) <= most
    assert span.token_ids == tuple(range(1, len(span.token_ids) + 1))
    assert read - len(span.token_ids) <= 1, "it looks one token ahead at most"


@given(PIECES, st.integers(1, 3))
def test_more_sentences_never_shorten(pieces, sentences) -> None:
    ids, tokenizer = range(1, len(pieces) + 1), Words(pieces)
    shorter = cut(ids, SentenceRule(sentences), tokenizer, {EOS})
    longer = cut(ids, SentenceRule(sentences + 1), tokenizer, {EOS})
    assert longer.token_ids[: len(shorter.token_ids)] == shorter.token_ids


@pytest.mark.parametrize("wrong", [{"sentences": 0}, {"max_tokens": 0}])
def test_a_rule_that_keeps_nothing_is_refused(wrong) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        SentenceRule(**wrong)
