"""The laws of R2R's format that a reader can check, row by row.

Shapes: T rows of a sequence, K stored top entries, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from crossroads.exchange.findings import Finding, counts_on, descending
from crossroads.exchange.r2r_columns import NOT_JUDGED
from crossroads.exchange.r2r_source import SequenceRows

LARGEST_HALF = 65504.0
"""Hidden states are stored in half precision; a larger one would become infinite."""


def r2r_findings(rows: SequenceRows) -> dict[str, Finding]:
    """Return what each of R2R_LAWS finds in one sequence."""
    finite_T = _finite(rows)
    # A row that is not whole or not finite is one violation, not one of every later check.
    usable_T = rows.read_T & rows.whole_T & finite_T
    return {
        "sequence": _together(rows),
        "token_id": counts_on(rows.token_T),
        "mask": _mask(rows),
        "lists": Finding(
            ~rows.whole_T, len(rows), lambda _: "another", lambda _: "that of the first row"
        ),
        "finite": Finding(
            rows.read_T & rows.whole_T & ~finite_T,
            int((rows.read_T & rows.whole_T).sum()),
            lambda _: "nan, infinity or above 65504",
            lambda _: "finite numbers",
        ),
        "sorted": descending(rows.logits_TK, usable_T),
        "proposal": _proposal(rows, usable_T),
        "mismatch": _mismatch(rows),
        "divergent": _divergent(rows),
    }


R2R_LAWS: Mapping[str, str] = {
    "sequence": "the rows of a data_id stand together",
    "token_id": "token_id counts on by one within a data_id",
    "mask": "mask is 0 or 1",
    "lists": "every row's lists have one length",
    "finite": "logits and hidden states are finite, in half precision too",
    "sorted": "small_logits are descending",
    "proposal": "small_token has the largest of small_logits, by small_indices",
    "mismatch": "mismatch is 1 exactly where small_token is not the next row's real_token",
    "divergent": "divergent is -1, 0 or 1, and 1 only where mismatch is 1",
}


def _together(rows: SequenceRows) -> Finding:
    wrong_T = np.zeros(len(rows), bool)
    wrong_T[0] = rows.again
    return Finding(
        wrong_T, 1, lambda _: "rows of other sequences before it", lambda _: "one run of rows"
    )


def _mask(rows: SequenceRows) -> Finding:
    wrong_T = (rows.mask_T != 0) & (rows.mask_T != 1)
    return Finding(wrong_T, len(rows), lambda row: int(rows.mask_T[row]), lambda _: "0 or 1")


def _finite(rows: SequenceRows) -> np.ndarray:
    finite_T: np.ndarray = np.isfinite(rows.logits_TK).all(axis=1)
    # False for nan, too.
    finite_T &= (np.abs(rows.hidden_TH) <= LARGEST_HALF).all(axis=1)
    return finite_T


def _proposal(rows: SequenceRows, usable_T: np.ndarray) -> Finding:
    # In bfloat16 the largest logits are often equal; argmax and topk then need not agree.
    largest_TK = rows.logits_TK >= rows.logits_TK[:, :1]
    is_small_TK = rows.indices_TK == rows.small_T[:, None]
    return Finding(
        usable_T & ~(largest_TK & is_small_TK).any(axis=1),
        int(usable_T.sum()),
        lambda row: f"small_token {rows.small_T[row]}",
        lambda row: f"{rows.indices_TK[row, 0]}, the first of small_indices",
    )


def _mismatch(rows: SequenceRows) -> Finding:
    next_T = np.zeros(len(rows), bool)
    next_T[:-1] = np.diff(rows.token_T) == 1
    differs_T = np.ones(len(rows), np.int64)
    differs_T[:-1] = rows.small_T[:-1] != rows.real_T[1:]
    checked_T = rows.read_T & next_T
    return Finding(
        checked_T & (rows.mismatch_T != differs_T),
        int(checked_T.sum()),
        lambda row: f"mismatch {rows.mismatch_T[row]}",
        lambda row: (
            f"{differs_T[row]} (small_token {rows.small_T[row]}, next real_token "
            f"{rows.real_T[row + 1]})"
        ),
    )


def _divergent(rows: SequenceRows) -> Finding:
    known_T = np.isin(rows.divergent_T, (NOT_JUDGED, 0, 1))
    wrong_T = ~known_T | ((rows.divergent_T == 1) & (rows.mismatch_T != 1))
    return Finding(
        rows.read_T & wrong_T,
        int(rows.read_T.sum()),
        lambda row: f"divergent {rows.divergent_T[row]} with mismatch {rows.mismatch_T[row]}",
        lambda _: "divergent only where mismatch is 1",
    )
