"""Every loss: finite, one number, the right way down; and the formulas against plain arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossroads.errors import ConfigError
from crossroads.training.losses import LOSSES, PER_BATCH, Loss, LossConfig, build_loss

POSITIVES, NEGATIVES = 20.0, 180.0
BY_ROW = ("bce", "BCEWithLogitsLoss", "FocalLoss", "DPOLoss")
PAIRS = ("ranking", "high_recall")
# At alpha = 1, R2R's default, negatives do not count; a middle one shows both sides.
OVER_DEFAULTS = {"FocalLoss": {"alpha": 0.4}}
LOGITS = st.one_of(st.floats(-30, 30), st.sampled_from([0.0, -1e4, 1e4, -1e2, 1e2, 1e30, -1e30]))
LAW = settings(deadline=None, max_examples=40)
every_loss = pytest.mark.parametrize("name", list(LOSSES))


def built(name: str, **values: float | None) -> Loss:
    config = LossConfig(name, OVER_DEFAULTS.get(name, {}) | values)
    return build_loss(config, POSITIVES, NEGATIVES)


@st.composite
def batches(draw: st.DrawFn, *, soft: bool = False) -> tuple[Tensor, Tensor]:
    """Draw logits and targets."""
    target = st.floats(0, 1) if soft else st.sampled_from([0.0, 1.0])
    rows = draw(st.lists(st.tuples(LOGITS, target), min_size=1, max_size=12))
    logits, targets = zip(*rows, strict=True)
    return torch.tensor(logits, dtype=torch.float64), torch.tensor(targets, dtype=torch.float64)


def gradient(loss: Loss, logits_n: Tensor, *others: Tensor) -> Tensor:
    leaf_n = logits_n.clone().requires_grad_()
    loss(leaf_n, *others).backward()
    assert leaf_n.grad is not None
    return leaf_n.grad


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


@every_loss
@LAW
@given(data=st.data())
def test_the_mean_and_its_gradient_are_finite(name: str, data: st.DataObject) -> None:
    logits_n, targets_n = data.draw(batches(soft=True))
    for dtype in (torch.float32, torch.float64):
        some_n, aims_n = logits_n.to(dtype), targets_n.to(dtype)
        value = built(name)(some_n, aims_n)
        assert value.shape == ()
        assert value.dtype == dtype
        assert math.isfinite(value)
        assert value >= -1e-6
        assert bool(torch.isfinite(gradient(built(name), some_n, aims_n)).all())


@every_loss
@LAW
@given(data=st.data())
def test_positives_are_pulled_up_and_negatives_down(name: str, data: st.DataObject) -> None:
    logits_n, targets_n = data.draw(batches())
    slope_n = gradient(built(name), logits_n, targets_n)
    assert bool((slope_n[targets_n == 1] <= 0).all())
    assert bool((slope_n[targets_n == 0] >= 0).all())


@every_loss
def test_undecided_rows_of_both_kinds_are_moved(name: str) -> None:
    slope_n = gradient(built(name), torch.zeros(2), torch.tensor([1.0, 0.0]))
    assert slope_n[0] < 0 < slope_n[1]


@every_loss
@LAW
@given(data=st.data())
def test_the_order_of_rows_means_nothing(name: str, data: st.DataObject) -> None:
    logits_n, targets_n = data.draw(batches())
    order = torch.tensor(data.draw(st.permutations(range(len(logits_n)))))
    torch.testing.assert_close(
        built(name)(logits_n[order], targets_n[order]), built(name)(logits_n, targets_n)
    )


@every_loss
@LAW
@given(data=st.data())
def test_equal_weights_change_nothing_and_a_weight_of_zero_has_no_pull(
    name: str, data: st.DataObject
) -> None:
    logits_n, targets_n = data.draw(batches(soft=True))
    torch.testing.assert_close(
        built(name)(logits_n, targets_n, torch.full_like(logits_n, 3.0)),
        built(name)(logits_n, targets_n),
    )
    kept_n = torch.arange(len(logits_n)) % 2
    slope_n = gradient(built(name), logits_n, targets_n, kept_n.double())
    assert bool((slope_n[kept_n == 0] == 0).all())


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "DPOLoss"])
@LAW
@given(st.lists(st.sampled_from([0.05, 0.95]), min_size=2, max_size=8), st.floats(0.5, 5))
def test_soft_labels_are_better_met_than_missed(name: str, soft: list[float], size: float) -> None:
    """DPOLoss weighs the classes against each other; a test below has its soft labels."""
    targets_n = torch.tensor(soft)
    agreeing_n = size * (2 * targets_n - 1).sign()
    loss = built(name, alpha=0.5) if name == "FocalLoss" else built(name)
    assert loss(agreeing_n, targets_n) < loss(-agreeing_n, targets_n)


# Losses by row


@pytest.mark.parametrize("name", BY_ROW)
@LAW
@given(data=st.data())
def test_a_loss_by_row_is_the_mean_of_its_rows(name: str, data: st.DataObject) -> None:
    logits_n, targets_n = data.draw(batches(soft=True))
    loss = built(name)
    rows = [loss(logits_n[i : i + 1], targets_n[i : i + 1]) for i in range(len(logits_n))]
    torch.testing.assert_close(loss(logits_n, targets_n), torch.stack(rows).mean())


@pytest.mark.parametrize("name", BY_ROW)
@LAW
@given(data=st.data())
def test_a_weight_of_two_is_the_row_twice(name: str, data: st.DataObject) -> None:
    logits_n, targets_n = data.draw(batches())
    size = len(logits_n)
    counts_n = torch.tensor(data.draw(st.lists(st.integers(1, 3), min_size=size, max_size=size)))
    weighted = built(name)(logits_n, targets_n, counts_n.double())
    repeated = built(name)(
        logits_n.repeat_interleave(counts_n), targets_n.repeat_interleave(counts_n)
    )
    torch.testing.assert_close(weighted, repeated)


@pytest.mark.parametrize("name", ["bce", "BCEWithLogitsLoss", "DPOLoss"])
@LAW
@given(st.floats(-8, 8), st.floats(0, 1))
def test_a_soft_label_mixes_the_hard_ones(name: str, logit: float, target: float) -> None:
    loss, logits_n = built(name), one(logit)
    mixed = target * loss(logits_n, one(1.0)) + (1 - target) * loss(logits_n, one(0.0))
    torch.testing.assert_close(loss(logits_n, one(target)), mixed)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def entropy(logit: float, target: float, weight: float = 1.0) -> float:
    p = sigmoid(logit)
    return -weight * target * math.log(p) - (1 - target) * math.log(1 - p)


@LAW
@given(st.floats(-8, 8), st.floats(0, 1), st.floats(0, 50))
def test_cross_entropy_and_r2rs_weight(logit: float, target: float, weight: float) -> None:
    plain = built("bce", positive_weight=weight)(one(logit), one(target))
    assert float(plain) == pytest.approx(entropy(logit, target, weight), rel=1e-5, abs=1e-9)
    theirs = built("BCEWithLogitsLoss", recall_factor=weight)(one(logit), one(target))
    wanted = entropy(logit, target, NEGATIVES / POSITIVES * weight)
    assert float(theirs) == pytest.approx(wanted, rel=1e-5, abs=1e-9)


@LAW
@given(st.floats(-8, 8))
def test_no_recall_factor_or_no_positive_is_no_weight(logit: float) -> None:
    logits_n, targets_n = torch.tensor([logit, logit]), torch.tensor([0.0, 1.0])
    wanted = built("bce")(logits_n, targets_n)
    assert torch.equal(built("BCEWithLogitsLoss", recall_factor=None)(logits_n, targets_n), wanted)
    without = build_loss(LossConfig("BCEWithLogitsLoss"), 0.0, NEGATIVES)
    assert torch.equal(without(logits_n, targets_n), wanted)


@LAW
@given(st.floats(-8, 8), st.sampled_from([0.0, 1.0]), st.floats(0, 1), st.floats(0, 5))
def test_focal(logit: float, target: float, alpha: float, gamma: float) -> None:
    p_t = sigmoid(logit) if target else 1 - sigmoid(logit)
    weight = alpha if target else 1 - alpha
    got = built("FocalLoss", alpha=alpha, gamma=gamma)(one(logit), one(target))
    wanted = weight * (1 - p_t) ** gamma * -math.log(p_t)
    assert float(got) == pytest.approx(wanted, rel=1e-6, abs=1e-12)


@LAW
@given(st.floats(-8, 8))
def test_focal_at_r2rs_defaults_ignores_negatives(logit: float) -> None:
    loss = build_loss(LossConfig("FocalLoss"), POSITIVES, NEGATIVES)
    assert float(loss(one(logit), one(0.0))) == 0
    wanted = (1 - sigmoid(logit)) ** 2 * entropy(logit, 1)
    assert float(loss(one(logit), one(1.0))) == pytest.approx(wanted, rel=1e-6)


@LAW
@given(st.floats(-8, 8), st.booleans(), st.floats(0.1, 3))
def test_dpo(logit: float, positive: bool, beta: float) -> None:
    """A row's action is right or wrong; its share among the training rows is the reference."""
    share = POSITIVES / (POSITIVES + NEGATIVES)
    right, reference = (sigmoid(logit), share) if positive else (1 - sigmoid(logit), 1 - share)
    u = beta * math.log(right + 1e-10) / reference
    u -= beta * math.log(1 - right + 1e-10) / (1 - reference)
    wanted = -math.log(sigmoid(u) + 1e-10)
    got = built("DPOLoss", beta=beta)(one(logit), one(float(positive)))
    assert float(got) == pytest.approx(wanted, rel=1e-6, abs=1e-8)


def test_dpo_needs_both_kinds() -> None:
    for positives, negatives in ((0.0, NEGATIVES), (POSITIVES, 0.0)):
        with pytest.raises(ConfigError, match="needs positives and negatives"):
            build_loss(LossConfig("DPOLoss"), positives, negatives)


# Pairs


@pytest.mark.parametrize("name", PAIRS)
@LAW
@given(batches(), st.floats(0.05, 1), st.floats(-1, 2))
def test_pairs(name: str, batch: tuple[Tensor, Tensor], share: float, margin: float) -> None:
    """The mean over pairs of the extreme rows; the cross-entropy where there is no pair."""
    logits_n, targets_n = batch
    ups = sorted(logits_n[targets_n == 1].tolist())
    downs = sorted(logits_n[targets_n == 0].tolist(), reverse=True)
    downs = downs[: math.ceil(share * len(downs))]
    values = {"hardest": share, "margin": margin, "bce": 0.0}
    if name == "high_recall":
        values["lowest"] = share
        ups = ups[: math.ceil(share * len(ups))]
    got = built(name, **values)(logits_n, targets_n)
    if not ups or not downs:
        assert torch.equal(got, built("bce")(logits_n, targets_n))
        return
    gaps = torch.tensor([margin + down - up for up in ups for down in downs], dtype=torch.float64)
    torch.testing.assert_close(got, torch.nn.functional.softplus(gaps).mean())


@pytest.mark.parametrize("name", PAIRS)
@LAW
@given(batches(), st.floats(-5, 5))
def test_differences_have_no_origin_and_the_entropy_gives_it(
    name: str, batch: tuple[Tensor, Tensor], shift: float
) -> None:
    both_kinds_2 = torch.tensor([0.0, 1.0], dtype=torch.float64)
    logits_n, targets_n = (torch.cat([values, both_kinds_2]) for values in batch)
    logits_n = logits_n.clamp(-30, 30)
    # The whole of both kinds: among equals, rounding could choose others after a shift.
    everyone = {"hardest": 1.0} | ({"lowest": 1.0} if name == "high_recall" else {})
    ranked, both = built(name, bce=0.0, **everyone), built(name, bce=0.3, **everyone)
    torch.testing.assert_close(ranked(logits_n + shift, targets_n), ranked(logits_n, targets_n))
    torch.testing.assert_close(
        both(logits_n, targets_n),
        0.3 * built("bce")(logits_n, targets_n) + 0.7 * ranked(logits_n, targets_n),
    )


def test_only_the_lowest_positives_and_the_hardest_negatives_are_pulled() -> None:
    logits_n = torch.tensor([5.0, 1.0, -2.0, 0.0, -4.0])
    targets_n = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    loss = built("high_recall", lowest=0.3, hardest=0.5, bce=0.0)
    slope_n = gradient(loss, logits_n, targets_n)
    assert slope_n[[0, 1, 4]].tolist() == [0, 0, 0]
    assert slope_n[2] < 0 < slope_n[3]


def test_pairs_of_many_rows_are_formed_in_parts_that_count_by_their_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_n = torch.randn(20_000, generator=generator)
    targets_n = (torch.rand(20_000, generator=generator) < 0.1).float()
    parts = [
        len(some) * built("ranking")(some, aims)
        for some, aims in zip(logits_n.split(8192), targets_n.split(8192), strict=True)
    ]
    torch.testing.assert_close(
        built("ranking")(logits_n, targets_n), torch.stack(parts).sum() / 20_000
    )


@LAW
@given(batches(), st.integers(1, 5))
def test_with_per_batch_the_last_part_counts_as_a_whole_one(
    batch: tuple[Tensor, Tensor], rows: int
) -> None:
    logits_n, targets_n = batch
    means = [
        built("bce")(some, aims)
        for some, aims in zip(logits_n.split(rows), targets_n.split(rows), strict=True)
    ]
    got = built("bce", **{PER_BATCH: rows})(logits_n, targets_n)
    torch.testing.assert_close(got, torch.stack(means).mean())


# Refused


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (LossConfig("FocalLos"), "unknown loss 'FocalLos'; did you mean 'FocalLoss'"),
        (LossConfig("zzz"), "known: bce, ranking"),
        (LossConfig("FocalLoss", {"gama": 1}), "has no setting 'gama'; did you mean 'gamma'"),
        (LossConfig("bce", {"beta": 1}), "has no setting 'beta'; known: positive_weight"),
        (LossConfig("bce", {"positives": 1}), "has no setting 'positives'"),
        (LossConfig("bce", {"positive_weight": -1}), "positive_weight must be in"),
        (LossConfig("bce", {"positive_weight": None}), "positive_weight must be a number"),
        (LossConfig("bce", {"positive_weight": math.nan}), "positive_weight must be a number"),
        (LossConfig("BCEWithLogitsLoss", {"recall_factor": -1}), "recall_factor must be in"),
        (LossConfig("FocalLoss", {"alpha": 1.5}), r"alpha must be in \[0, 1\]"),
        (LossConfig("DPOLoss", {"beta": "1"}), "beta must be a number"),
        (LossConfig("ranking", {"hardest": 0.0}), r"hardest must be in \(0, 1\]"),
        (LossConfig("ranking", {"bce": True}), "bce must be a number"),
        (LossConfig("bce", {PER_BATCH: 0}), "per_batch must be >= 1"),
    ],
)
def test_what_makes_no_loss_is_refused(config: LossConfig, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_loss(config, POSITIVES, NEGATIVES)
