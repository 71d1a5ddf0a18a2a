"""`crossroads diagnose`: where does a positive_rate come from?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.cli.options import FILE, FOLDER

if TYPE_CHECKING:
    from crossroads.diagnosis.evidence import Evidence
    from crossroads.diagnosis.reference import Reference
    from crossroads.diagnosis.result import Result
    from crossroads.types import Progress


@click.command()
@click.argument("run", required=False, type=FOLDER)
@click.option(
    "--data", "datasets", multiple=True, type=FOLDER,
    help="A labelled dataset; several may be given.",
)  # fmt: skip
@click.option(
    "--result", default=None,
    help="R2R's result JSON, or the numbers noted from one: "
    "positive_rate=0.3179,recall=0.95,threshold=0.3367.",
)  # fmt: skip
@click.option(
    "--reference", default=None,
    help="The number to compare with: positive_rate=0.124,recall=0.95. Also known: large_fraction "
    "in place of positive_rate, population=offline|live, divergent, neutral (its base rates), "
    "domain.NAME (shares of its tokens).",
)  # fmt: skip
@click.option(
    "--live", default=None, type=click.Path(path_type=Path),
    help="Traces of real generations: an evaluation's folder, or a trace file.",
)  # fmt: skip
@click.option("--html", default=None, type=FILE, help="Write it all as a page with plots.")
@click.option("--json", "json_path", default=None, type=FILE, help="Write it all as JSON.")
@click.option("--quick", is_flag=True, help="Train nothing; takes seconds instead of minutes.")
@click.option(
    "--seeds", default=3, show_default=True, type=click.IntRange(2),
    help="Trainings that show the seeds' spread.",
)  # fmt: skip
def diagnose(
    run: Path | None,
    datasets: tuple[Path, ...],
    result: str | None,
    reference: str | None,
    live: Path | None,
    html: Path | None,
    json_path: Path | None,
    quick: bool,
    seeds: int,
) -> None:
    """Find out why a positive_rate is what it is.

    RUN is a router's folder. Give what is at hand: each candidate cause is found, ruled out, or
    cannot be told, and says with what it could be.
    """
    from crossroads.artifacts import ensure_writable, write_json
    from crossroads.cli.console import RichProgress, console
    from crossroads.diagnosis.diagnose import diagnose as examine
    from crossroads.diagnosis.evidence import Options
    from crossroads.diagnosis.page import write_page
    from crossroads.diagnosis.text import terminal
    from crossroads.provenance import provenance

    for path in (html, json_path):
        if path is not None:
            ensure_writable(path.parent)
    with RichProgress() as progress:
        options = Options(quick=quick, seeds=seeds)
        evidence = _evidence(run, datasets, result, reference, live, options, progress)
        diagnosis = examine(evidence)
    console().print(terminal(diagnosis))
    facts = provenance()
    if json_path is not None:
        write_json(json_path, {**diagnosis.to_json(), "provenance": facts})
    if html is not None:
        write_page(html, diagnosis, facts)
        console().print(f"page in {html}", markup=False)


def _evidence(
    run: Path | None,
    datasets: tuple[Path, ...],
    result: str | None,
    reference: str | None,
    live: Path | None,
    options: Any,
    progress: Progress,
) -> Evidence:
    from crossroads.dataset import LabelledDataset
    from crossroads.diagnosis.evidence import Evidence
    from crossroads.diagnosis.live import read_live
    from crossroads.diagnosis.run import open_run
    from crossroads.diagnosis.tokens import Data

    given = None if reference is None else _reference(reference)
    numbers = None if result is None else _result(result)
    opened = None if run is None else open_run(run)
    traces = (
        None
        if live is None
        else read_live(live, None if opened is None else opened.loaded.router.name)
    )
    data = Data([LabelledDataset.open(path) for path in datasets], progress) if datasets else None
    return Evidence(
        reference=given, run=opened, result=numbers, data=data, live=traces, options=options
    )


def _reference(text: str) -> Reference:
    from crossroads.diagnosis.reference import read_reference

    return read_reference(_pairs(text, "--reference"))


def _result(text: str) -> Result:
    from crossroads.diagnosis.result import read_result, typed_result

    path = Path(text)
    if path.exists() or "=" not in text:
        return read_result(path)
    return typed_result(_pairs(text, "--result"))


def _pairs(text: str, option: str) -> dict[str, Any]:
    """Return `a=1,b=2` as a mapping; `a.b=1` is nested."""
    from crossroads.cli.settings import parse_settings
    from crossroads.errors import ConfigError

    parts = [part for part in text.split(",") if part.strip()]
    if not parts or any("=" not in part for part in parts):
        raise ConfigError(f"{option} takes NAME=VALUE,NAME=VALUE, got {text!r}")
    return parse_settings(parts)
