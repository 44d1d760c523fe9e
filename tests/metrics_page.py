"""docs/metrics.md as a table: the one place where all series are listed, for tests that hold others to it."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
_SUFFIXES = {
    "gauge": ("",),
    "counter": ("_total",),
    "summary": ("_count", "_sum"),
    "histogram": ("_bucket", "_count", "_sum"),
}


def documented_series() -> dict[str, str]:
    """Every series' type, by its name."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    series = {f"outrider:{name}": kind for name, kind in rows}
    assert len(series) == len(rows), "a series is listed twice"
    return series


def unknown_names(query: str) -> set[str]:
    """What a text in PromQL reads of ours that is not there."""
    known = {name + suffix for name, kind in documented_series().items() for suffix in _SUFFIXES[kind]}
    return set(re.findall(r"outrider:\w+", query)) - known
