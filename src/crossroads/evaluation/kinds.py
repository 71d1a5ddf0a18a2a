"""What a system is compared as."""

from __future__ import annotations

from enum import StrEnum


class SystemKind(StrEnum):
    """How reports draw and compare a system. ROUTER is a trained one, BASELINE a heuristic."""

    SMALL = "small"
    LARGE = "large"
    BASELINE = "baseline"
    ROUTER = "router"
    ORACLE = "oracle"
