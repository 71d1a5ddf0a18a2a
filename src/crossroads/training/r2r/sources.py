"""From the data paths of R2R's config to labelled datasets: found, checked, imported once.

A path is R2R's format (parquet, or a folder of `save_to_disk`), here or on the hub, or a dataset
folder of ours. Whatever can be refused is refused before anything large is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossroads.artifacts import canonical_hash, read_json
from crossroads.dataset import CARD, LabelledDataset
from crossroads.errors import ConfigError, CrossroadsError, DataError
from crossroads.exchange.folders import atomic_folder
from crossroads.exchange.r2r_columns import INTEGERS, import_datasets
from crossroads.exchange.r2r_import import import_r2r
from crossroads.exchange.r2r_source import open_r2r
from crossroads.models.base import CausalLM
from crossroads.models.pairs import load_model
from crossroads.training.r2r.config import R2RConfig
from crossroads.training.r2r.values import check_path
from crossroads.types import Progress

_PREFIXED = ("token", "logits", "indices", "last_hidden_states")
_OWN_PREFIX = "small_"


@dataclass(frozen=True, slots=True)
class Source:
    """One data path, found. path: the data; a dataset of ours where `own`. splits: whether its
    problems come with splits. ids: whether problems have names that hold in other sources too.
    """  # noqa: D205

    text: str
    where: str
    path: Path
    own: bool
    splits: bool
    ids: bool


@dataclass(frozen=True, slots=True)
class Opened:
    """A source and the dataset that it is, or was imported to."""

    source: Source
    dataset: LabelledDataset


def open_sources(
    config: R2RConfig, roles: Sequence[str], folder: Path, progress: Progress
) -> dict[str, list[Opened]]:
    """Return the opened sources of `data.train` and, if it is a role, `data.test`.

    Effects: R2R's data is imported into `folder`, each path once.

    Raises:
        ConfigError: a path that is not there, widths other than the config's, a model that is
            needed and is not there. DataError: data that cannot be read or breaks R2R's format.
    """
    found = {role: _find(config, role, folder) for role in roles}
    everything = [source for sources in found.values() for source in sources]
    for source in everything:
        _check_widths(config, source)
    with _small_model(config, everything, progress) as small:
        return {
            role: [
                Opened(source, _dataset(config, source, small, folder, progress))
                for source in sources
            ]
            for role, sources in found.items()
        }


# Finding


def _find(config: R2RConfig, role: str, folder: Path) -> list[Source]:
    data = config.data(role)
    sources = []
    for number, text in enumerate(data.paths):
        where = f"data.{role}.path[{number}]"
        path = _locate(check_path(text, where), text, where, config, folder)
        if (path / CARD).exists():
            sources.append(Source(text, where, path, own=True, splits=True, ids=True))
            continue
        if data.input_prefix != _OWN_PREFIX:
            path = _renamed(path, data.input_prefix, folder)
        try:
            extras = open_r2r(path).extras
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        sources.append(Source(text, where, path, False, "split" in extras, "problem_id" in extras))
    return sources


def _locate(
    parts: Mapping[str, str], text: str, where: str, config: R2RConfig, folder: Path
) -> Path:
    if "local" in parts:
        path = Path(parts["local"])
        if not path.exists():
            raise ConfigError(f"{where}: there is no {path}")
        return path
    path, split = Path(parts["path"]), parts["split"]
    if path.is_dir() and set(parts) == {"path", "split"} and split.isidentifier():
        return _local_split(path, split, folder, where)
    return _fetched(parts, text, where, config, folder)


def _local_split(path: Path, split: str, folder: Path, where: str) -> Path:
    """Return the part of a local folder that `datasets` would take for a split."""
    if (path / "dataset_dict.json").exists():
        if not (path / split).is_dir():
            raise ConfigError(f"{where}: {path} has no split {split!r}")
        return path / split
    files = sorted({*path.rglob(f"{split}.parquet"), *path.rglob(f"{split}-*.parquet")})
    files += [f for f in sorted(path.glob(f"{split}/*.parquet")) if f not in files]
    if not files:
        raise ConfigError(f"{where}: {path} has no parquet files of a split {split!r}")
    if len(files) == 1:
        return files[0]
    # Links: the files of one split may lie among others, and an import reads a whole folder.
    links = folder / f"{split}-{canonical_hash([str(f.resolve()) for f in files])[:12]}"
    if not links.exists():
        with atomic_folder(links) as temporary:
            for file in files:
                (temporary / file.name).symlink_to(file.resolve())
    return links


def _fetched(
    parts: Mapping[str, str], text: str, where: str, config: R2RConfig, folder: Path
) -> Path:
    """Return a parquet copy of what the package `datasets` loads; its first row is looked at first.

    Effects: `datasets` downloads into its own cache.
    """
    target = folder / f"fetched-{canonical_hash(dict(parts))[:12]}"
    if target.exists():
        return target
    datasets = import_datasets()
    try:
        # A slice such as train[:10%] cannot be streamed.
        first = {**parts, "split": parts["split"].partition("[")[0]}
        row = next(iter(datasets.load_dataset(**first, streaming=True)))
        _check_row(config, row, where)
        loaded = datasets.load_dataset(**parts)
        with atomic_folder(target) as temporary:
            loaded.to_parquet(str(temporary / "data.parquet"))
    except CrossroadsError:
        raise
    except Exception as error:  # the hub's errors have no common root
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{where}: {text} cannot be loaded ({first_line}); download it and give local:FOLDER"
        ) from error
    return target


def _check_row(config: R2RConfig, row: Mapping[str, Any], where: str) -> None:
    """Refuse columns that are missing or of another width, by the first row."""
    prefix = config.data("train" if ".train." in where else "test").input_prefix
    wanted = [n for n in INTEGERS if n != "small_token"] + [f"{prefix}{n}" for n in _PREFIXED]
    missing = [name for name in wanted if name not in row]
    if missing:
        raise DataError(f"{where} has no column {missing[0]!r}; it has {', '.join(sorted(row))}")
    _check_sizes(
        config, where, len(row[f"{prefix}last_hidden_states"]), len(row[f"{prefix}logits"])
    )


def _renamed(path: Path, prefix: str, folder: Path) -> Path:
    """Return a parquet copy with the columns of `prefix` under the names that an import reads."""
    target = folder / f"renamed-{canonical_hash([str(path.resolve()), prefix])[:12]}"
    if target.exists():
        return target
    datasets = import_datasets()
    if (path / "state.json").exists():
        loaded = datasets.load_from_disk(str(path))
    else:
        files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
        loaded = datasets.Dataset.from_parquet([str(file) for file in files])
    missing = [name for name in _PREFIXED if f"{prefix}{name}" not in loaded.column_names]
    if missing:
        raise DataError(
            f"{path} has no column {prefix}{missing[0]!s} as input_prefix {prefix!r} asks for"
        )
    loaded = loaded.remove_columns(
        [f"{_OWN_PREFIX}{n}" for n in _PREFIXED if f"{_OWN_PREFIX}{n}" in loaded.column_names]
    ).rename_columns({f"{prefix}{name}": f"{_OWN_PREFIX}{name}" for name in _PREFIXED})
    with atomic_folder(target) as temporary:
        loaded.to_parquet(str(temporary / "data.parquet"))
    return target


# Checking


def _check_widths(config: R2RConfig, source: Source) -> None:
    if source.own:
        # Only the card: the files' hashes are compared when the dataset is opened.
        card = read_json(source.path / CARD, "dataset card")
        _check_sizes(config, source.where, int(card["small"]["hidden_size"]), None)
        return
    opened = open_r2r(source.path)
    _check_sizes(config, source.where, opened.hidden_size, opened.top_k)


def _check_sizes(config: R2RConfig, where: str, hidden_size: int, logits: int | None) -> None:
    given = config.hidden_size
    if given is not None and given != hidden_size:
        raise DataError(
            f"{where} has hidden states of size {hidden_size}, and "
            f"model.init_args.hidden_states_size is {given}; give the data of that model, or --set "
            f"model.init_args.hidden_states_size={hidden_size}"
        )
    wanted = config.logits_size
    if logits is not None and wanted is not None and wanted != logits:
        raise DataError(
            f"{where} has {logits} logits a row, and model.init_args.logits_size is {wanted}; "
            f"--set model.init_args.logits_size={logits}"
        )


# Importing


@contextlib.contextmanager
def _small_model(
    config: R2RConfig, sources: Sequence[Source], progress: Progress
) -> Iterator[CausalLM | str]:
    """Yield the model whose token embeddings an import needs; a name where none does."""
    if config.small is None or all(source.own for source in sources):
        yield "unknown"
        return
    try:
        loaded = load_model(config.small, progress=progress)
    except CrossroadsError as error:
        raise ConfigError(
            f"R2R's data has no token embeddings, and the small model that has them cannot be "
            f"loaded ({error}); --set crossroads.small=MODEL, or choose a model_type without token "
            "(R2R itself goes on with random embeddings)"
        ) from error
    try:
        yield loaded.model
    finally:
        loaded.close()


def _dataset(
    config: R2RConfig, source: Source, small: CausalLM | str, folder: Path, progress: Progress
) -> LabelledDataset:
    if source.own:
        return LabelledDataset.open(source.path)
    misaligned = bool(config.get("crossroads.allow_misaligned", False))
    name = small if isinstance(small, str) else small.info.fingerprint
    key = canonical_hash([source.text, str(source.path.resolve()), name, misaligned])[:12]
    out = folder / f"imported-{key}"
    if not (out / CARD).exists():
        try:
            import_r2r(
                source.path, out, small=small, seed=config.seed, allow_misaligned=misaligned,
                progress=progress,
            )  # fmt: skip
        except DataError as error:
            text = str(error).replace(
                "--allow-misaligned", "--set crossroads.allow_misaligned=true"
            )
            raise DataError(f"{source.where}: {text}") from error
    return LabelledDataset.open(out)
