"""Looking at a dataset: every token is there, with what the files say of it, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from safetensors.torch import load_file

from crossroads.artifacts import read_json, save_tensors, write_json
from crossroads.cli.main import run as run_cli
from crossroads.dataset import CARD, LABELS, TOKENS, UNJUDGED, LabelledDataset
from crossroads.errors import DataError
from crossroads.labelling.inspect import LABEL_NAMES, DatasetView, ResponseView, percent
from crossroads.labelling.inspect_page import write_page
from crossroads.labelling.inspect_text import response_text
from crossroads.labelling.stored import CONTEXT, future, one_line, visible
from crossroads.labelling.verdicts import Verdicts
from crossroads.rates import R2R_BASE_RATES
from labelling import scripted_run

STYLES = {"": "identical", "n": "neutral", "d": "divergent", "u": "unjudged"}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_run.write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def copied(labelled: Path, tmp_path: Path) -> Path:
    return shutil.copytree(labelled, tmp_path / "copy")


@pytest.fixture
def imported(copied: Path) -> Path:
    """Return a dataset as one from elsewhere is: labels, the small model's outputs, no more."""
    for name in ("respond", "continue", "judges"):
        shutil.rmtree(copied / name)
    for name in ("problems.jsonl", TOKENS, "build.json"):
        (copied / name).unlink()
    for path in (copied / "compare").glob("*.safetensors"):
        kept = {k: v for k, v in load_file(path).items() if not k.startswith("large_")}
        save_tensors(path, kept, {})
    scripted_run.restamp(copied)
    card = read_json(copied / CARD, "card")
    for name in ("failures", "unfinished"):
        del card[name]
    write_json(copied / CARD, {**card, "large": None})
    return copied


def all_responses(folder: Path) -> list[ResponseView]:
    view = DatasetView(folder)
    return view.responses(view.rows)


class Page(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.traces: list[list[tuple[str, str]]] = []
        self.scripts: list[str] = []
        self.words = ""
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += attrs
        given = dict(attrs)
        if given.get("class") == "trace":
            self.traces.append([])
            self._in = "trace"
        elif self._in == "trace" and tag == "span":
            self.traces[-1].append((given.get("class") or "", ""))
        elif tag in ("script", "style"):
            self._in = tag
            if tag == "script":
                self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("p", "script", "style"):
            self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "trace":
            style, text = self.traces[-1][-1]
            self.traces[-1][-1] = (style, text + data)
        elif self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.words += data


def page_of(folder: Path, path: Path, responses: list[ResponseView] | None = None) -> str:
    shown = all_responses(folder) if responses is None else responses
    write_page(path, DatasetView(folder).summary(), shown)
    return path.read_text(encoding="utf-8")


def test_every_token_is_there_with_its_label(labelled: Path) -> None:
    dataset = LabelledDataset.open(labelled)
    pieces = scripted_run.scripted_pair().tokenizer.pieces()
    labels = dataset.labels()
    for row, response in zip(dataset.responses, all_responses(labelled), strict=True):
        comparison = dataset.comparison(row)
        texts = [(pieces[i] or b"").decode() for i in comparison.real_N.tolist()]
        assert [token.text for token in response.tokens] == texts
        assert [token.position for token in response.tokens] == list(range(row.positions))
        names = [LABEL_NAMES[value] for value in labels.of(row).label_N.tolist()]
        assert [token.label for token in response.tokens] == names
        assert response.counts == Counter(names)
        at = [token.position for token in response.mismatches]
        assert at == comparison.mismatch_N.nonzero()[:, 0].tolist()


def test_the_labels_of_the_run_have_every_kind(labelled: Path) -> None:
    counts = sum((response.counts for response in all_responses(labelled)), Counter())
    assert min(counts[name] for name in LABEL_NAMES.values()) > 0


def test_probabilities_are_both_models_own(labelled: Path) -> None:
    dataset = LabelledDataset.open(labelled)
    comparison = dataset.comparison(dataset.responses[0])
    assert comparison.large is not None
    for i, token in enumerate(all_responses(labelled)[0].tokens):
        for model in (token.small, token.large):
            shares = [alternative.probability for alternative in model]
            assert len(shares) == 5
            assert shares == sorted(shares, reverse=True)
            assert sum(shares) <= 1.001
        assert token.proposal == token.small[0].text
        assert token.entropy == pytest.approx(float(comparison.step.entropy_N[i]))
        expected = float(comparison.large.logprob_real_N[i].exp())
        assert token.p_large_real == pytest.approx(expected)
        # Greedy responses: what the large model wrote is what it finds likeliest.
        assert token.large[0].text == token.text
        assert token.large[0].probability == pytest.approx(expected, rel=2e-3)


def test_a_mismatch_shows_what_the_judges_saw_and_said(labelled: Path) -> None:
    cases = scripted_run.cases(labelled)
    logs = {
        path.name.split("-")[0]: Verdicts(path) for path in sorted((labelled / "judges").iterdir())
    }
    found = [
        token.mismatch
        for response in all_responses(labelled)
        for token in response.mismatches
        if token.mismatch is not None
    ]
    assert {mismatch.case for mismatch in found} == set(cases)
    for mismatch in found:
        seen = cases[mismatch.case]
        assert mismatch.context == seen.context[-CONTEXT:]
        assert mismatch.reference == seen.reference.text
        assert list(mismatch.continuations) == [span.text for span in seen.continuations]
        said = {verdict.judge: verdict.verdict for verdict in mismatch.verdicts}
        assert said == {judge: log.get(mismatch.case) for judge, log in logs.items()}


def test_the_summary_says_what_the_card_says(labelled: Path) -> None:
    card = LabelledDataset.open(labelled).card
    summary = DatasetView(labelled).summary()
    *rates, published = summary.rates
    groups = [row.group for row in rates]
    assert groups[:4] == ["all", "split train", "split calibration", "split test"]
    assert set(groups[4:]) == {"domain d0", "domain d1"}
    for row in rates:
        known = card["base_rates"][row.group]
        assert (row.positions, row.divergent) == (known["positions"], known["divergent"])
        assert (row.unjudged, row.identical) == (known["unjudged"], known["identical"])
    assert (published.identical, published.divergent) == (
        R2R_BASE_RATES["identical"],
        R2R_BASE_RATES["divergent"],
    )
    assert summary.unfinished == len(card["unfinished"]) > 0
    assert summary.problems == summary.responses == len(card["responses"])
    assert summary.missing == ()
    assert len(summary.judges) == 2


def test_failures_are_grouped_by_reason_whatever_its_numbers(labelled: Path) -> None:
    failures = LabelledDataset.open(labelled).card["failures"]
    assert len({failure["reason"] for failure in failures}) > 1
    [group] = DatasetView(labelled).summary().failures
    assert (group.stage, group.count) == ("judge", len(failures))
    assert group.reason == "position \u2026 is | odd"


def test_the_first_shown_has_a_divergent_token(copied: Path) -> None:
    view = DatasetView(copied)
    stored = load_file(copied / LABELS)
    first, second = view.rows[:2]
    stored["label"][: first.positions].clamp_(max=1)
    stored["label"][second.start] = 2
    save_tensors(copied / LABELS, stored, {})
    scripted_run.restamp(copied)
    assert DatasetView(copied).first_divergent() == second
    stored["label"].fill_(0)
    save_tensors(copied / LABELS, stored, {})
    scripted_run.restamp(copied)
    assert DatasetView(copied).first_divergent() == first


def test_an_unknown_problem_or_sample_is_named_with_what_there_is(labelled: Path) -> None:
    view = DatasetView(labelled)
    known = view.rows[-1].problem_id
    assert view.find(known) == view.rows[-1]
    with pytest.raises(DataError, match=f"nearest of its .* ids is '{known}'"):
        view.find(f"{known}x")
    with pytest.raises(DataError, match="no sample 3; it has 0"):
        view.find(known, 3)


def test_a_dataset_from_elsewhere_shows_what_there_is_and_says_what_is_missing(
    imported: Path, tmp_path: Path
) -> None:
    summary = DatasetView(imported).summary()
    missing = "\n".join(summary.missing)
    for name in (TOKENS, "problems.jsonl", "continuations.jsonl", "verdicts.jsonl"):
        assert name in missing
    dataset = LabelledDataset.open(imported)
    response = all_responses(imported)[0]
    ids = dataset.comparison(dataset.responses[0]).real_N.tolist()
    assert [token.text for token in response.tokens] == [f"\u27e8{i}\u27e9" for i in ids]
    for token in response.mismatches:
        assert (token.large, token.p_large_real) == ((), None)
        assert token.mismatch is not None
        assert (token.mismatch.continuations, token.mismatch.verdicts) == ((), ())
    page = Page(page_of(imported, tmp_path / "page.html"))
    assert len(page.traces) == summary.responses
    for sentence in summary.missing:
        assert sentence in page.words


def test_reading_writes_nothing_even_into_a_run_that_goes_on(copied: Path) -> None:
    before = all_responses(copied)
    for log in ("continue/continuations.jsonl", "respond/responses.jsonl"):
        with (copied / log).open("a") as file:
            file.write('{"key": "half')
    files = scripted_run.state(copied)
    assert all_responses(copied) == before
    assert scripted_run.state(copied) == files


def test_controls_never_reach_a_terminal_and_breaks_are_seen() -> None:
    assert (
        visible("a\x1b[31m\r\n\n  b\t\x00\x9b")
        == "a\ufffd[31m\ufffd\u21b5\n\u21b5\n  b\t\ufffd\ufffd"
    )
    assert one_line("a\n\nb") == "a\u21b5\u21b5b"
    assert future("") == "(the answer ends)"


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "\u2013"), (1.0, "100 %"), (0.126, "13 %"), (0.0234, "2 %"), (0.00061, "0.06 %")],
)
def test_small_probabilities_keep_a_digit(share: float | None, text: str) -> None:
    assert percent(share) == text


def test_a_long_context_is_shown_from_its_end_on(copied: Path) -> None:
    scripted_run.set_texts(copied, {str(i): f" word{i}" for i in range(64)})
    lengths = set()
    for response in all_responses(copied):
        for token in response.mismatches:
            assert token.mismatch is not None
            before = "".join(found.text for found in response.tokens[: token.position])
            assert token.mismatch.context == before[-CONTEXT:]
            lengths.add(len(token.mismatch.context))
    assert max(lengths) == CONTEXT > min(lengths)


def with_words(folder: Path) -> list[ResponseView]:
    """Give every token a word of its own, so that marks cannot be mistaken for text."""
    texts = {str(i): f" w{i}" for i in range(1, 64)}
    scripted_run.set_texts(folder, {**texts, "5": "\n", "6": "\ufffd", "7": ""})
    return all_responses(folder)


MARKS = {
    "divergent": re.compile(r"\[\[(.*?)\|(.*?)\]\](\n?)"),
    "neutral": re.compile(r"(?<!\[)\[([^\[]*?)\|([^\[]*?)\](\n?)"),
    "unjudged": re.compile(r"\?([^?]*?)\|([^?]*?)\?(\n?)"),
}


def test_without_colours_marks_tell_the_labels_and_both_tokens(copied: Path) -> None:
    for response in with_words(copied):
        shown = response_text(response, colours=False)
        assert shown.spans == []
        plain = shown.plain
        for label, mark in MARKS.items():
            expected = [
                (one_line(token.text), one_line(token.proposal))
                for token in response.tokens
                if token.label == label
            ]
            assert [found[:2] for found in mark.findall(plain)] == expected
            plain = mark.sub(r"\1\3", plain)
        assert plain == "".join(visible(token.text) for token in response.tokens)


def test_with_colours_the_text_is_as_it_was_and_every_label_has_its_own(copied: Path) -> None:
    styles = {"neutral": "yellow", "divergent": "bold red underline", "unjudged": "bright_black"}
    for response in with_words(copied):
        shown = response_text(response, colours=True)
        assert shown.plain == "".join(visible(token.text) for token in response.tokens)
        counts = Counter(str(span.style) for span in shown.spans)
        assert counts == Counter(
            {styles[name]: n for name, n in response.counts.items() if name in styles}
        )


def test_the_page_has_every_token_with_its_label(copied: Path, tmp_path: Path) -> None:
    responses = with_words(copied)
    page = Page(page_of(copied, tmp_path / "page.html"))
    assert len(page.traces) == len(responses)
    *data, _script = page.scripts
    for response, trace, text in zip(responses, page.traces, data, strict=True):
        assert [(STYLES[style], shown) for style, shown in trace] == [
            (token.label, visible(token.text)) for token in response.tokens
        ]
        details = json.loads(text)
        assert [found.get("p") for found in details] == [
            None if token.mismatch is None else one_line(token.proposal)
            for token in response.tokens
        ]
        for found, token in zip(details, response.tokens, strict=True):
            assert found["s"][0][1] == pytest.approx(token.small[0].probability, abs=1e-4)
            assert found["g"][0][0] == one_line(token.text)


def test_the_page_has_both_futures_and_every_verdict(labelled: Path, tmp_path: Path) -> None:
    response = all_responses(labelled)[0]
    page = Page(page_of(labelled, tmp_path / "page.html", [response]))
    for token in response.mismatches:
        assert token.mismatch is not None
        for text in (token.mismatch.reference, *token.mismatch.continuations):
            assert future(text) in page.words
        for verdict in token.mismatch.verdicts:
            assert verdict.verdict.reason in page.words
    assert f"The first 1 of {len(DatasetView(labelled).rows)}" not in page.words
    assert "One of " in page.words


def test_the_page_loads_nothing_and_runs_nothing_of_what_models_or_problems_wrote(
    copied: Path, tmp_path: Path
) -> None:
    scripted_run.set_texts(copied, {"1": scripted_run.HOSTILE, "2": "</p><img src=x>", "3": "]]>"})
    responses = all_responses(copied)
    text = page_of(copied, tmp_path / "page.html")
    page = Page(text)
    assert page.elements["script"] == len(responses) + 1
    assert not {"img", "link", "iframe", "object", "b", "base"} & set(page.elements)
    assert not {"src", "href", "srcset", "action", "style"} & {name for name, _ in page.attributes}
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "url(" not in text
    assert "@import" not in text
    assert "http:" not in text.replace("http-equiv", "")
    assert "https:" not in text
    assert page.words.count(scripted_run.HOSTILE) >= len(responses)  # the prompts, as text
    assert page.traces == Page(page_of(copied, tmp_path / "again.html")).traces
    assert text == (tmp_path / "again.html").read_text(encoding="utf-8")


def test_the_command_shows_the_dataset_and_a_response(
    labelled: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(["inspect", str(labelled)]) == 0
    shown = capfd.readouterr().out
    assert "R2R, as published" in shown
    assert f"problem {DatasetView(labelled).first_divergent().problem_id}" in shown
    assert "[[" in shown
    assert "\x1b" not in shown


def test_the_command_shows_one_problem_alone(
    labelled: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    problem = DatasetView(labelled).rows[-1].problem_id
    assert run_cli(["inspect", str(labelled), "--problem", problem]) == 0
    shown = capfd.readouterr().out
    assert f"problem {problem}, sample 0" in shown
    assert "R2R" not in shown
    assert run_cli(["inspect", str(labelled), "--problem", "nobody"]) == 2


def test_the_page_of_the_command_has_so_many_responses_from_the_first_on(
    labelled: Path, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    rows = DatasetView(labelled).rows
    assert run_cli(["inspect", str(labelled), "--html", str(path), "--count", "2"]) == 0
    page = Page(path.read_text(encoding="utf-8"))
    assert [len(trace) for trace in page.traces] == [row.positions for row in rows[:2]]
    assert f"The first 2 of {len(rows)} responses" in page.words
    problem = rows[-1].problem_id
    assert run_cli(["inspect", str(labelled), "--html", str(path), "--problem", problem]) == 0
    [trace] = Page(path.read_text(encoding="utf-8")).traces
    assert len(trace) == rows[-1].positions


def test_unjudged_is_a_label_of_its_own() -> None:
    assert LABEL_NAMES[UNJUDGED] == "unjudged"
    assert len(set(LABEL_NAMES.values())) == 4
