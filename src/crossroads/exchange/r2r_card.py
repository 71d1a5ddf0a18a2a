"""The README of an export: what the columns mean, whose labels these are, what is not known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crossroads.dataset import LabelledDataset
from crossroads.provenance import provenance
from crossroads.rates import R2R_BASE_RATES, base_rates

_SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written. rows: by split, every response's last row without a prediction included.

    scored: positions with mask 1. unjudged: positions that the judge left open, mask 0.
    without_prompt: responses whose first row has -1 for the prompt's last token.
    """

    kind: str
    rows: Mapping[str, int]
    responses: int
    scored: int
    unjudged: int
    without_prompt: int


def card_text(dataset: LabelledDataset, report: ExportReport, schema: Any) -> str:
    """Return the README with its YAML front matter; `schema` is the pyarrow schema."""
    parts = (
        _front_matter(report, schema),
        _COLUMNS_TEXT,
        _models(dataset, report),
        _rates(dataset, report),
        _warnings(dataset, report),
        _provenance(dataset),
    )
    return "\n".join(parts)


def _front_matter(report: ExportReport, schema: Any) -> str:
    lines = [
        "---",
        "license: other",
        "pretty_name: token labels of a small and a large language model",
        "tags:",
        "- token-level-routing",
        "- r2r",
        "- crossroads",
        "size_categories:",
        f"- {_size(sum(report.rows.values()))}",
    ]
    if report.kind == "parquet":
        lines += ["configs:", "- config_name: default", "  data_files:"]
        for split in report.rows:
            lines += [f"  - split: {split}", f"    path: data/{split}-*"]
    lines += ["dataset_info:", "  features:", *(_feature(field) for field in schema)]
    lines += ["  splits:"]
    for split, rows in report.rows.items():
        lines += [f"  - name: {split}", f"    num_examples: {rows}"]
    return "\n".join([*lines, "---", ""])


def _feature(field: Any) -> str:
    kind = str(field.type)
    if kind.startswith("list<"):
        return f"  - name: {field.name}\n    list: {_dtype(str(field.type.value_type))}"
    return f"  - name: {field.name}\n    dtype: {_dtype(kind)}"


def _dtype(kind: str) -> str:
    return {"float": "float32"}.get(kind, kind)


def _size(rows: int) -> str:
    """Return the hub's name for a number of rows."""
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B"]
    for at, limit in enumerate(_SIZES):
        if rows < limit:
            return f"n<{names[0]}" if at == 0 else f"{names[at - 1]}<n<{names[at]}"
    return f"n>{names[-1]}"


_COLUMNS_TEXT = """\
# Token labels in R2R's column format

One row per input position. `real_token` is the token at this position; every other column is about
the token *after* it, so `mismatch` is about the `real_token` of the next row. A response of N
tokens is N + 1 rows.

| column | meaning |
|---|---|
| `data_id` | the response, counted over all splits |
| `token_id` | index of the row's token, prompt included |
| `real_token` | the token there; in a response's first row the prompt's last token, -1 if unknown |
| `small_token` | what the small model proposes after it, its likeliest token |
| `mismatch` | 1 where the proposal is not the next row's `real_token` |
| `divergent` | 1 where the judge found that the proposal leads to another meaning; 0 otherwise; \
-1 where there is no verdict |
| `mask` | 1 where the row is scored; use no other rows |
| `small_logits`, `small_indices` | the small model's largest logits there, descending, and their \
tokens |
| `small_last_hidden_states` | its last hidden state there, after the final norm |
| `problem_id`, `sample`, `domain`, `split` | where the response comes from |
| `divergent_probability` | the judge's probability of divergence; nan where it gives none |

A response's last row has mask 0, no prediction (-1 and zeros), and the last token: without it the
row above could not be checked. Prompts are not included.
"""


def _models(dataset: LabelledDataset, report: ExportReport) -> str:
    card, small = dataset.card, dataset.small
    judges = {"judges": card["judges"], "combine": card["combine"]}
    text = json.dumps(judges, indent=2, ensure_ascii=False)
    return f"""\
## Models and judges

| role | model | fingerprint |
|---|---|---|
| small | {_cell(small.name)} ({_cell(small.engine)}, hidden size {small.hidden_size}, \
vocabulary {small.vocab_size}) | `{small.fingerprint}` |
| large | {_cell(card["large"]["name"])} | `{card["large"]["fingerprint"]}` |

{report.responses} responses of the large model. Who judged them, with all settings:

```json
{text}
```
"""


def _rates(dataset: LabelledDataset, report: ExportReport) -> str:
    rows = [row for row in dataset.responses if row.split in report.rows]
    lines = [
        f"| {_cell(name)} | {rates.positions} | {rates.unjudged} | {100 * rates.identical:.2f} | "
        f"{100 * rates.neutral:.2f} | {100 * rates.divergent:.2f} |"
        for name, rates in base_rates(rows, dataset.labels()).items()
    ]
    paper = " | ".join(f"{100 * share:.0f}" for share in R2R_BASE_RATES.values())
    return "\n".join(
        [
            "## Base rates",
            "",
            "Shares of the judged positions. A mismatch is neutral or divergent.",
            "",
            "| | positions | unjudged | identical % | neutral % | divergent % |",
            "|---|---:|---:|---:|---:|---:|",
            *lines,
            f"| the R2R paper, another pair | | | {paper} |",
            "",
        ]
    )


def _warnings(dataset: LabelledDataset, report: ExportReport) -> str:
    approximate = dataset.card.get("approximate", [])
    points = [
        f"{report.unjudged} of {report.scored + report.unjudged} positions have no verdict "
        "(divergent -1, mask 0). They are mismatches, so dropping them lowers both rates.",
        "Labels are a judge's opinion at mismatches; what it cannot see is not in them.",
        f"{report.without_prompt} of {report.responses} responses lack their prompt's last token "
        "(real_token -1 in their first row).",
        "Logits and hidden states went through half precision.",
    ]
    if approximate:
        points.append(f"Approximate in the dataset this was made from: {', '.join(approximate)}.")
    return "\n".join(["## What to know before training", "", *(f"- {p}" for p in points), ""])


def _provenance(dataset: LabelledDataset) -> str:
    both = {"labelled": dataset.card["provenance"], "exported": provenance()}
    text = json.dumps(both, indent=2, ensure_ascii=False)
    return f"## Provenance\n\n```json\n{text}\n```\n"


def _cell(text: str) -> str:
    """Return text that cannot break a table."""
    return " ".join(text.split()).replace("|", "\\|")
