"""A grid is fitted once and measured from scores alone; its numbers are what they say they are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.dataset import LabelledDataset
from crossroads.errors import ConfigError, CrossroadsError, DataError, RouterError
from crossroads.training import ablate as ablate_module
from crossroads.training import grid as grid_module
from crossroads.training import trainer as trainer_module
from crossroads.training.ablate import (
    AblationConfig,
    Row,
    ablate,
    open_corpus,
    parse_inputs,
    rows_of,
    table,
    usual_inputs,
)
from crossroads.training.config import FitConfig
from crossroads.training.grid import (
    AUROC,
    AVERAGE_PRECISION,
    RECALLS,
    Bench,
    Cell,
    Grid,
)
from crossroads.training.grid_tables import ablation_tables, markdown, terminal
from crossroads.training.learning_curve import (
    LAW_POINTS,
    CurveConfig,
    Law,
    law_start,
    learning_curve,
    problem_counts,
)
from crossroads.training.recipes import recipe
from crossroads.training.rows import Corpus
from crossroads.training.threshold import operating_point, threshold_for_recall
from crossroads.training.trainer import Trainer
from crossroads.types import SilentProgress, Split

CONFIG = FitConfig(inputs=("entropy", "margin"), epochs=2, batch_size=256)
SMALL = AblationConfig(
    recipes=("distribution",),
    objectives=("divergent",),
    inputs=("entropy", "entropy+margin"),
    seeds=2,
    changes={"epochs": 1},
)


class KilledError(Exception):
    """Stands for a SIGKILL: nothing after it runs."""


@pytest.fixture(scope="module")
def corpus(dataset: LabelledDataset) -> Corpus:
    return Corpus.open([dataset], ("entropy", "margin", "top_probability", "hidden"))


def cells(count: int = 2) -> list[Cell]:
    return [Cell(f"c{n}", dataclasses.replace(CONFIG, seed=n)) for n in range(count)]


# Numbers


@given(st.integers(0, 1000), st.integers(2, 30))
@settings(max_examples=15, deadline=None)
def test_a_draw_of_problems_is_their_rows_repeated(corpus: Corpus, seed: int, levels: int) -> None:
    """Scores have ties; every number of a draw is that of the rows as often as they were drawn."""
    bench = Bench.of(corpus, "mismatch", seed, resamples=3)
    generator = np.random.default_rng(seed)
    parts = [corpus.split(split) for split in (Split.CALIBRATION, Split.TEST)]
    calibration, test = (
        (generator.integers(0, levels, len(rows)) / levels).astype(np.float32) for rows in parts
    )
    measured = bench.measure([(calibration, test)])
    cuts = [threshold_for_recall(calibration, bench.calibration_N, recall) for recall in RECALLS]
    for draw, weight_C in enumerate(bench.weights_RC):
        times = weight_C[bench.problem_N].astype(int)
        scores, positive = np.repeat(test, times), np.repeat(bench.test_N, times)
        ranked = measured.ranking_KRM[0, draw]
        for number, recall in enumerate(RECALLS):
            own = operating_point(scores, positive, threshold_for_recall(scores, positive, recall))
            assert ranked[number] == pytest.approx(own.positive_rate)
            fixed = operating_point(scores, positive, cuts[number])
            got = measured.calibrated_KRT2[0, draw, number]
            assert got.tolist() == pytest.approx([fixed.recall, fixed.positive_rate])
        ours, theirs = scores[positive][:, None], scores[~positive][None]
        assert ranked[AUROC] == pytest.approx(((ours > theirs) + (ours == theirs) / 2).mean())
        heights = np.unique(scores)[::-1]
        caught = np.array([(positive & (scores >= height)).sum() for height in heights])
        sent = np.array([(scores >= height).sum() for height in heights])
        steps = np.diff(np.concatenate([[0], caught])) / positive.sum()
        assert ranked[AVERAGE_PRECISION] == pytest.approx((steps * caught / sent).sum())


def test_a_ratio_is_paired_and_a_spread_holds_its_seeds(corpus: Corpus) -> None:
    bench = Bench.of(corpus, "divergent", resamples=100)
    test, calibration = (corpus.split(s) for s in (Split.TEST, Split.CALIBRATION))
    generator = np.random.default_rng(0)

    def noisy(amount: float) -> tuple[np.ndarray, np.ndarray]:
        parts = [
            (rows.positive("divergent") + amount * generator.random(len(rows))).astype(np.float32)
            for rows in (calibration, test)
        ]
        return parts[0], parts[1]

    good, poor = bench.measure([noisy(0.5)]), bench.measure([noisy(4.0), noisy(4.0)])
    for number in range(len(RECALLS)):
        same = good.ratio(good, number)
        assert same == {"value": 1.0, "interval": {"low": 1.0, "high": 1.0}}
        better = good.ratio(poor, number)
        assert better["interval"]["high"] < 1
        assert better["value"] == pytest.approx(good.rates(number)[0] / poor.rates(number)[0])
    values = poor.values()
    for at in values["at"]:
        rate = at["positive_rate"]
        assert rate["least"] <= rate["mean"] <= rate["most"]
        assert rate["interval"]["low"] <= rate["mean"] <= rate["interval"]["high"]
        assert at["calibrated"]["recall"]["mean"] <= 1
    assert good.values()["auroc"]["mean"] == 1.0
    assert good.values()["auroc"]["deviation"] is None


# Cells


def test_a_cell_is_fitted_once_whatever_its_name(corpus: Corpus, tmp_path: Path) -> None:
    grid, progress = Grid(corpus, tmp_path), SilentProgress()
    one, other = cells()
    twin = dataclasses.replace(one, name="the same")
    everything = len(corpus.split(Split.TRAIN).problem_ids)
    whole = dataclasses.replace(one, problems=everything)
    grid.fit([one, twin, other, whole], progress)
    assert progress.stages == {"2 routers train": 2.0 * CONFIG.epochs}
    assert grid.key(one) == grid.key(twin) == grid.key(whole) != grid.key(other)
    assert grid.key(dataclasses.replace(one, problems=5)) != grid.key(one)
    again = SilentProgress()
    Grid(corpus, tmp_path).fit([one, twin, other, whole], again)
    assert again.stages == {}
    for split in (Split.CALIBRATION, Split.TEST):
        assert grid.scores(one, split).dtype == np.float32
        assert len(grid.scores(one, split)) == len(corpus.split(split))
    names = sorted(path.name for path in (tmp_path / "cells" / grid.key(one)).iterdir())
    assert names == ["calibration.npy", "cell.json", "test.npy"]


def content(folder: Path) -> dict[str, object]:
    """Return what a folder of cells holds, apart from timings."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".json":
            found[str(path.relative_to(folder))] = json.loads(path.read_text()) | {"seconds": 0}
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def test_killed_anywhere_it_ends_the_same(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [*cells(), Cell("part", CONFIG, problems=12)]
    Grid(corpus, tmp_path / "a").fit(wanted, SilentProgress())
    monkeypatch.setattr(trainer_module, "_SAVE_SECONDS", -1.0)
    update, save = Trainer._update, grid_module._save_scores
    generator, left = np.random.default_rng(0), {"steps": 3, "kills": 6}

    def mortal(call):
        def wrapper(*arguments):
            left["steps"] -= 1
            if left["kills"] and left["steps"] <= 0:
                left.update(kills=left["kills"] - 1, steps=int(generator.integers(1, 12)))
                raise KilledError
            return call(*arguments)

        return wrapper

    monkeypatch.setattr(Trainer, "_update", mortal(update))
    monkeypatch.setattr(grid_module, "_save_scores", mortal(save))
    while True:
        try:
            Grid(corpus, tmp_path / "b").fit(wanted, SilentProgress())
            break
        except KilledError:
            continue
    assert left["kills"] == 0
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_damaged_scores_are_one_sentence(corpus: Corpus, tmp_path: Path) -> None:
    grid, (cell, _) = Grid(corpus, tmp_path), cells()
    grid.fit([cell], SilentProgress())
    path = tmp_path / "cells" / grid.key(cell) / "test.npy"
    np.save(path, np.zeros(3, np.float32))
    with pytest.raises(DataError, match="are of other rows; delete"):
        grid.scores(cell, Split.TEST)
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="are damaged; delete"):
        grid.scores(cell, Split.TEST)


def test_a_cell_sees_its_part_only(corpus: Corpus, tmp_path: Path) -> None:
    grid = Grid(corpus, tmp_path)
    few, more = (Cell("c", CONFIG, problems=count) for count in (6, 14))
    grid.fit([few, more], SilentProgress())
    for cell in (few, more):
        seen = corpus.split(Split.TRAIN).of_problems(cell.problems or 0, CONFIG.seed)
        assert grid.record(cell)["train"]["tokens"] == len(seen)
        assert grid.record(cell)["train"]["problems"] == cell.problems


def test_what_cannot_work_is_refused_before_a_fit(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid_module, "fit", None)  # a fit would be a TypeError
    grid = Grid(corpus, tmp_path)
    wrong = dataclasses.replace(CONFIG, network={"widht": 3})
    with pytest.raises(RouterError, match="widht"):
        grid.check([Cell("good", CONFIG), Cell("wrong", wrong)])
    nothing = corpus.split(Split.TEST).take(~corpus.split(Split.TEST).positive("divergent"))
    split = Corpus.split
    monkeypatch.setattr(
        Corpus, "split", lambda self, which: nothing if which is Split.TEST else split(self, which)
    )
    with pytest.raises(DataError, match=r"the test split has .* 0 divergent tokens"):
        grid.check(cells())


# Ablation


def test_an_ablation_end_to_end(
    dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = ablate([dataset], tmp_path, SMALL, SilentProgress())
    names = [row["name"] for row in result["rows"]]
    assert names == [
        "distribution: entropy",
        "distribution: entropy + margin",
        *("entropy", "margin", "max-probability", "random"),
    ]
    by_name = {row["name"]: row for row in result["rows"]}
    for at in by_name["entropy"]["at"]:
        assert at["ratios"]["heuristic"]["value"] >= 1 - 1e-12  # none beats the best of them
    for number in range(len(RECALLS)):
        best = by_name["random"]["at"][number]["ratios"]["heuristic"]["against"]
        rates = {n: by_name[n]["at"][number]["positive_rate"]["mean"] for n in names[2:]}
        assert rates[best] == min(rates.values())
    # A router on entropy alone, if it learned to rise, ranks as entropy does.
    page = (tmp_path / "ablation.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert page.count("<svg") == 2
    assert "distribution: entropy + margin" in page
    text = (tmp_path / "ablation.md").read_text()
    assert text == markdown(ablation_tables(result))
    assert "| **" in text  # what calibration prefers
    for shown in ablation_tables(result):
        assert terminal(shown).row_count == len(result["rows"])
        assert all(len(row) == len(shown.header) for row in shown.rows)
    monkeypatch.setattr(grid_module, "fit", None)  # measured again from scores alone
    again = ablate([dataset], tmp_path, SMALL, SilentProgress())
    assert again["rows"] == result["rows"]
    assert json.loads((tmp_path / "ablation.json").read_text())["rows"] == again["rows"]


def test_the_anchor_is_r2rs_recipe_with_its_inputs(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Grid(corpus, tmp_path)
    one, other = cells()
    rows = [Row("default", "x", (one,)), Row("r2r", "all", (other,))]
    grid.fit([one, other], SilentProgress())
    monkeypatch.setattr(ablate_module, "recipe", lambda name: CONFIG)
    found = {row["name"]: row for row in table([grid], rows)["rows"]}
    anchored = found["r2r: all"]["at"][0]["ratios"]["r2r"]
    assert (anchored["against"], anchored["value"]) == ("r2r", 1.0)
    ours, theirs = (found[n]["at"][0] for n in ("default: x", "r2r: all"))
    expected = ours["positive_rate"]["mean"] / theirs["positive_rate"]["mean"]
    assert ours["ratios"]["r2r"]["value"] == pytest.approx(expected)


def test_the_usual_inputs_are_alone_in_pairs_and_together() -> None:
    big = [frozenset(parse_inputs(text, "r2r")) for text in usual_inputs("r2r")]
    alone = [frozenset({name}) for name in ("hidden", "token_embedding", "top_logits")]
    assert len(big) == len(set(big)) == 7
    assert set(alone) < set(big)
    assert frozenset.union(*alone) in big
    for name in ("default", "distribution"):
        rows = rows_of(AblationConfig(recipes=(name,), objectives=("divergent",), seeds=1))
        sets = [frozenset(row.config.inputs) for row in rows]
        assert len(set(sets)) == len(sets)
        assert frozenset(recipe(name).inputs) in sets
        assert {frozenset({"hidden"}), frozenset({"top_logprobs"})} < set(sets)


def test_rows_differ_by_seed_and_can_be_chosen() -> None:
    config = AblationConfig(recipes=("default",), seeds=3, only=("hidden+token divergent",))
    (row,) = rows_of(config)
    assert [cell.config.seed for cell in row.cells] == [0, 1, 2]
    assert row.config.inputs == ("hidden", "token_embedding")


def test_a_change_may_be_one_recipes_own() -> None:
    changes = {"epochs": 3, "network": {"depth": 1}, "default": {"network": {"width": 8}}}
    rows = rows_of(AblationConfig(("default", "distribution"), changes=changes, seeds=1))
    for row in rows:
        assert (row.config.epochs, row.config.network["depth"]) == (3, 1)
        assert (row.config.network.get("width") == 8) == (row.recipe == "default")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"recipes": ("defalt",)}, "did you mean 'default'"),
        ({"inputs": ("hiden",)}, "unknown input 'hiden'; did you mean 'hidden'"),
        ({"seeds": 0}, "at least one seed"),
        ({"folds": 2}, "folds must be 1 .* or at least 3, got 2"),
        ({"changes": {"inputs": ("hidden",)}}, "cannot change 'inputs'"),
        ({"changes": {"r2r": {"seed": 3}}}, "cannot change 'seed'"),
        ({"changes": {"epoch": 2}}, "did you mean 'epochs'"),
        ({"only": ("nothing",)}, "no row's name contains 'nothing'; the rows are 'default"),
    ],
)
def test_bad_ablations_are_named(bad: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rows_of(AblationConfig(**{"recipes": ("default",), **bad}))  # type: ignore[arg-type]


# Learning curve


@given(st.floats(0, 0.2), st.floats(0.005, 0.05), st.floats(0.1, 0.6))
@settings(max_examples=40, deadline=None)
def test_a_law_is_found_again(asymptote: float, gain: float, exponent: float) -> None:
    tokens = np.geomspace(1e3, 1e5, 6)
    rates = asymptote + gain * (tokens / tokens[-1]) ** -exponent
    law = Law.fit(tokens, np.stack([rates, rates * 1.1]))
    np.testing.assert_allclose([law.at(t)[0] for t in tokens], rates, rtol=0.02, atol=1e-4)
    assert law.at(4e5)[0] == pytest.approx(asymptote + gain * 4**-exponent, abs=0.02 * gain + 1e-4)


def test_an_uncertain_point_bends_the_law_little() -> None:
    tokens = np.geomspace(1e3, 1e5, 6)
    truth = 0.1 + 0.1 * (tokens / tokens[-1]) ** -0.3
    noise = np.random.default_rng(0).normal(size=(400, 6)) * [0.1, *[0.004] * 5]
    noise[0] = [0.3, 0, 0, 0, 0, 0]
    law = Law.fit(tokens, truth + noise)
    assert law.at(1e5)[0] == pytest.approx(truth[-1], abs=0.003)
    alone = Law.fit(tokens, (truth + noise)[:1])
    assert abs(alone.at(1e5)[0] - truth[-1]) > 0.01


def test_a_law_starts_where_the_router_has_learnt_something() -> None:
    rates = np.array([0.6, 0.26, 0.21, 0.22, 0.2, 0.19])
    assert law_start(rates, 0.212) == 2
    assert law_start(rates, 0.1) == len(rates) - LAW_POINTS  # never: the last ones
    assert law_start(rates, 0.9) == 0
    assert law_start(rates[:3], 0.1) == 0


@given(st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_a_law_never_falls_below_nothing_nor_rises(seed: int) -> None:
    generator = np.random.default_rng(seed)
    steep = 0.5 - 0.1 * np.arange(5)
    law = Law.fit(np.geomspace(1e3, 1e5, 5), np.stack([steep, *generator.random((20, 5))]))
    assert (law.asymptote_R >= 0).all()
    assert (law.gain_R >= 0).all()
    assert np.isfinite(law.at(1e7)).all()


def test_tokens_for_a_goal_turn_the_law_around() -> None:
    flat, down = np.full(5, 0.3), 0.1 + 0.2 * np.geomspace(1, 100, 5) ** -0.5
    law = Law.fit(np.geomspace(1e3, 1e5, 5), np.stack([down, flat, flat[::-1]]))
    goal = law.at(3e5)
    assert law.tokens_for(goal)[0] == pytest.approx(3e5, rel=1e-6)
    assert np.isinf(law.tokens_for(np.full(3, 0.05))).all()
    rising = Law.fit(np.array([1e3, 1e4, 1e5]), np.array([[0.1, 0.2, 0.3]]))
    assert (rising.gain_R, rising.asymptote_R) == (0.0, pytest.approx(0.2))


def test_parts_grow_from_the_least_to_all(corpus: Corpus) -> None:
    train = corpus.split(Split.TRAIN)
    counts = problem_counts(train, CurveConfig(("distribution",), points=5, least_tokens=200))
    assert counts == sorted(set(counts))
    assert counts[-1] == len(train.problem_ids)
    assert counts[0] >= 2
    with pytest.raises(DataError, match=r"too few for a curve from 10000000 tokens on"):
        problem_counts(train, CurveConfig(("distribution",), least_tokens=10_000_000))


def test_a_learning_curve_end_to_end(dataset: LabelledDataset, tmp_path: Path) -> None:
    config = CurveConfig(
        ("distribution",), points=4, inputs="entropy+margin", seeds=2, same_steps=True,
        least_tokens=300, changes={"epochs": 1},
    )  # fmt: skip
    result = learning_curve([dataset], tmp_path, config, SilentProgress())
    (curve,) = result["curves"]
    tokens = [point["tokens"] for point in curve["points"]]
    assert tokens == sorted(tokens)
    assert tokens[-1] == result["counts"]["train"]["tokens"]
    for law in curve["laws"]:
        assert law["reference"] == tokens[-1]
        for ahead in law["ahead"]:
            assert ahead["interval"]["low"] <= ahead["interval"]["high"]
            assert 0 <= ahead["value"] <= 1
        for goal in law["goals"]:
            assert 0 <= goal["never"] <= 1
    assert [law["recall"] for law in curve["laws"]] == [0.8, 0.95]
    page = (tmp_path / "learning-curve.html").read_text()
    assert page.count("<svg") == 2
    assert "never, % of draws" in (tmp_path / "learning-curve.md").read_text()
    grid = Grid(open_corpus([dataset], [config.base("distribution")], tmp_path, SilentProgress()),
                tmp_path)  # fmt: skip
    record = json.loads(
        (tmp_path / "cells" / curve["points"][0]["keys"][0] / "cell.json").read_text()
    )
    batch = record["config"]["batch_size"]
    steps = record["config"]["epochs"] * -(-record["train"]["tokens"] // batch)
    assert steps >= -(-len(grid.corpus.split(Split.TRAIN)) // batch)


# Command line


def test_both_verbs_print_their_tables(dataset: LabelledDataset, tmp_path: Path) -> None:
    from crossroads.cli.main import cli

    common = ["--recipe", "distribution", "--objective", "divergent", "--seeds", "1"]
    common += ["--epochs", "1", "--set", "batch_size=512"]
    done = CliRunner().invoke(
        cli,
        ["ablate", str(dataset.folder), str(tmp_path), *common, "--inputs", "entropy+margin"],
    )
    assert done.exit_code == 0, done.output
    assert "positive_rate at equal recall" in done.output
    done = CliRunner().invoke(
        cli, ["learning-curve", str(dataset.folder), str(tmp_path), *common, "--points", "2",
              "--least-tokens", "300", "--inputs", "entropy+margin"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "problems" in done.output
    assert CliRunner().invoke(cli, ["ablate", str(dataset.folder)]).exit_code == 2
    nowhere = CliRunner().invoke(cli, ["learning-curve", str(tmp_path / "no"), str(tmp_path)])
    assert isinstance(nowhere.exception, CrossroadsError)
