"""What the benchmarks share: timing in turn, tables, and the model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

from cluster.config import DEFAULT_CACHE_DIR
from cluster.default_model import fetch_default_model
from workers.engine.checkpoint import Checkpoint, prepare_checkpoint


def checkpoint_of(model: str) -> Checkpoint:
    """Of a folder, GGUF file or hub name; the default model's, fetched at the first call, where that is empty."""
    return prepare_checkpoint(model or str(fetch_default_model(DEFAULT_CACHE_DIR.expanduser(), lambda line: None)))


def timed_ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def medians(works: dict[Any, Callable[[], object]], rounds: int) -> dict[Any, float]:
    """The median milliseconds of each, measured in turn; one more round comes first and does not count."""
    times: dict[Any, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            spent = timed_ms(work)
            if number:
                times[name].append(spent)
    return {name: statistics.median(each) for name, each in times.items()}


def show(title: str, rows: Iterable[tuple[object, ...]]) -> None:
    print(f"\n{title}")
    for row in rows:
        print("   ", "  ".join(f"{value:>10.2f}" if isinstance(value, float) else f"{value:>10}" for value in row))


def rounded(value: Any) -> Any:
    """Floats with three digits behind the point, in dictionaries and lists too."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 3) if isinstance(value, float) else value
