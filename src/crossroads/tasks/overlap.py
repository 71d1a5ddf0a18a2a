"""Texts that say the same: duplicates within a collection, and questions of evaluation sets in it.

Both work on words. A word is a run of letters and digits, or a mathematical sign: `4 - 3` and
`4 + 3` are different problems, `well-known` and `Well known!` are the same text.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from crossroads.errors import ConfigError
from crossroads.types import Problem

# Shingles and n-grams that more problems than this share are boilerplate, not a copy.
_COMMON = 10
_COMMON_SHARE = 0.01

# Chinese and Japanese put no spaces between words, so that each of their characters counts as one.
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff"
# Hyphen, star and slash join words or set text in bold; beside a digit or alone between spaces
# they calculate.
_WORD = re.compile(
    rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[+=<>^%\u00b1\u00d7\u00f7\u2200-\u22ff]"
    r"|(?<=\d)[-*/]|[-*/](?=\s?\d)|(?<=[ \t])[-*/](?=[ \t])"
)
_BLANK_LINES = re.compile(r"\n\s*\n")


def problem_text(problem: Problem) -> str:
    """Return what a problem asks: the contents of its messages, a blank line between them."""
    return "\n\n".join(message.content for message in problem.messages)


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """Which texts are the same.

    Every group is sorted and has at least two ids, and the groups are sorted. `exact`: equal
    after normalisation. `near`: linked by pairs whose similarity reaches the threshold, exact
    copies included. `group_of` names the first id of each id's group, its own if it has none.
    """

    exact: tuple[tuple[str, ...], ...]
    near: tuple[tuple[str, ...], ...]
    group_of: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Contaminated:
    """A problem that holds a question of a benchmark; `shared` are the words in common."""

    problem_id: str
    benchmark: str
    kind: Literal["exact", "ngram"]
    shared: str


def duplicate_groups(
    texts_by_id: Mapping[str, str], *, threshold: float = 0.8, shingle_words: int = 5
) -> DuplicateReport:
    """Return the groups of texts that are equal or nearly so; the input's order does not matter.

    Two texts are nearly equal when the Jaccard index of their shingles (runs of `shingle_words`
    words) is at least `threshold`. Shingles that more than max(10, 1 %) of the different texts
    share are left out: they are a template or an instruction. A text of common shingles only, or
    shorter than a shingle, has exact duplicates only.

    Raises:
        ConfigError: a threshold outside (0, 1], or shingles of no words.
    """
    if not 0 < threshold <= 1 or shingle_words < 1:
        raise ConfigError(
            "duplicates need a threshold above 0 and at most 1 and shingles of at least one word, "
            f"got {threshold} and {shingle_words}"
        )
    copies: dict[str, list[str]] = defaultdict(list)
    for text_id, text in sorted(texts_by_id.items()):
        copies[_normal(text)].append(text_id)
    groups = _Groups(ids[0] for ids in copies.values())
    shingles = {ids[0]: _ngrams(text, shingle_words) for text, ids in copies.items()}
    for one, other in _near_pairs(_ranked(shingles), threshold, groups):
        groups.join(one, other)
    copies_of = {ids[0]: ids for ids in copies.values()}
    near = [
        tuple(sorted(text_id for member in members for text_id in copies_of[member]))
        for members in groups.members()
        if len(members) > 1
    ]
    group_of = {
        text_id: groups.root(ids[0]) for ids in copies.values() for text_id in ids
    }  # the root of a group is its smallest id
    exact = sorted(tuple(ids) for ids in copies.values() if len(ids) > 1)
    return DuplicateReport(tuple(exact), tuple(sorted(near)), dict(sorted(group_of.items())))


def contamination(
    texts_by_id: Mapping[str, str], benchmark_texts: Mapping[str, Sequence[str]], n: int = 13
) -> tuple[Contaminated, ...]:
    """Return the problems that hold a question of a benchmark, sorted by id and benchmark.

    A problem holds a question when both are equal after normalisation, or when they share a run
    of `n` words (13: Brown et al. 2020, arXiv 2005.14165, appendix C). Runs in more than 10
    different texts of either side are boilerplate and left out. A question shorter than `n` words
    is looked for whole, as the problem or as neighbouring paragraphs of it, so that an instruction
    set around it does not hide it.
    """
    index = {name: _index(texts, n) for name, texts in sorted(benchmark_texts.items())}
    seen = _seen_in_problems(texts_by_id.values(), index.values(), n)
    found = []
    for problem_id, text in sorted(texts_by_id.items()):
        whole, parts = _normal(text), _short_parts(text, n)
        ngrams = list(_runs(whole, n))
        for name, (questions, runs) in index.items():
            exact = next((part for part in (whole, *parts) if part in questions), None)
            shared = next((run for run in ngrams if run in runs and seen[run] <= _COMMON), None)
            if exact is not None:
                found.append(Contaminated(problem_id, name, "exact", exact))
            elif shared is not None:
                found.append(Contaminated(problem_id, name, "ngram", shared))
    return tuple(found)


def _normal(text: str) -> str:
    """Return the words of a text with one space between; a text without words stays as it is."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_WORD.findall(folded)) or " ".join(folded.split())


def _runs(normal: str, n: int) -> Iterator[str]:
    """Yield the runs of `n` words of a normalised text, in order."""
    words = normal.split(" ")
    return (" ".join(words[start : start + n]) for start in range(len(words) - n + 1))


def _ngrams(normal: str, n: int) -> set[str]:
    return set(_runs(normal, n))


class _Groups:
    """Disjoint sets (union-find); the root of a set is its smallest member."""

    def __init__(self, members: Iterable[str]) -> None:
        self._parent = {member: member for member in members}

    def root(self, member: str) -> str:
        """Return the smallest member of a member's set. Effects: shortens the way there."""
        while (parent := self._parent[member]) != member:
            self._parent[member] = self._parent[parent]
            member = parent
        return member

    def join(self, one: str, other: str) -> None:
        """Make one set of the sets of two members."""
        first, second = sorted((self.root(one), self.root(other)))
        self._parent[second] = first

    def members(self) -> list[list[str]]:
        """Return the sets."""
        sets: dict[str, list[str]] = defaultdict(list)
        for member in self._parent:
            sets[self.root(member)].append(member)
        return list(sets.values())


def _ranked(shingles: Mapping[str, set[str]]) -> dict[str, list[int]]:
    """Return each text's shingles as numbers, the rarest first, without the common ones."""
    counts = Counter(shingle for own in shingles.values() for shingle in own)
    limit = max(_COMMON, _COMMON_SHARE * len(shingles))
    rare = [shingle for shingle, count in counts.items() if count <= limit]
    rare.sort(key=lambda shingle: (counts[shingle], shingle))
    rank = {shingle: i for i, shingle in enumerate(rare)}
    return {
        text_id: sorted(rank[shingle] for shingle in own if shingle in rank)
        for text_id, own in shingles.items()
    }


def _near_pairs(
    ranked: Mapping[str, list[int]], threshold: float, groups: _Groups
) -> Iterator[tuple[str, str]]:
    """Yield pairs that reach the threshold and are not in one group yet.

    Prefix filtering (Bayardo et al. 2007, "Scaling up all pairs similarity search"): two sets as
    alike as that share one of their rarest few elements, so that only texts that meet in the
    index of those are compared.
    """
    sets = {text_id: frozenset(ranks) for text_id, ranks in ranked.items()}
    index: dict[int, list[str]] = defaultdict(list)
    for text_id, ranks in ranked.items():
        # Rounded: 0.55 * 100 is a hair above 55, and a prefix too short by one would miss pairs.
        prefix = ranks[: len(ranks) - math.ceil(round(threshold * len(ranks), 9)) + 1]
        for other in {other for rank in prefix for other in index[rank]}:
            if groups.root(other) == groups.root(text_id):
                continue
            if _jaccard(sets[text_id], sets[other]) >= threshold:
                yield text_id, other
        for rank in prefix:
            index[rank].append(text_id)


def _jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def _index(texts: Iterable[str], n: int) -> tuple[set[str], set[str]]:
    """Return a benchmark's normalised questions and the runs of words that are its own."""
    questions = {_normal(text) for text in texts} - {""}
    counts = Counter(run for question in questions for run in _ngrams(question, n))
    return questions, {run for run, count in counts.items() if count <= _COMMON}


def _seen_in_problems(
    texts: Iterable[str], index: Iterable[tuple[set[str], set[str]]], n: int
) -> Counter[str]:
    """Return in how many different problems each run of the benchmarks occurs."""
    wanted = set().union(*(runs for _, runs in index))
    distinct = {_normal(text) for text in texts}
    return Counter(run for text in distinct for run in _ngrams(text, n) & wanted)


def _short_parts(text: str, n: int) -> list[str]:
    """Return every run of neighbouring paragraphs that has fewer than `n` words, normalised."""
    paragraphs = [_normal(paragraph) for paragraph in _BLANK_LINES.split(text)]
    paragraphs = [paragraph for paragraph in paragraphs if paragraph]
    parts = []
    for start in range(len(paragraphs)):
        part = ""
        for paragraph in paragraphs[start:]:
            part = f"{part} {paragraph}".strip()
            if part.count(" ") + 1 >= n:
                break
            parts.append(part)
    return parts
