"""What `outriderd distill` does once its flags are read: progress, a table, and a way on after Ctrl-C."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from workers.training import distill as training
from workers.training.evaluate import CHAIN_LEN, Acceptance
from workers.training.gguf_file import write_gguf

EXIT_INTERRUPTED = 130


def run(config: training.DistillConfig, gguf: Path | None) -> int:
    """Returns the exit code. Raises OutriderError for what can't be done."""
    screen = Console(stderr=True, highlight=False, quiet=os.environ.get("RANK", "0") != "0")
    try:
        with _Bars(screen) as bars:
            found = training.distill(config, bars.show)
        if gguf is not None and found:
            write_gguf(config.output, gguf)
    except KeyboardInterrupt:
        screen.print(f"Interrupted. The same command goes on from {config.work}.", soft_wrap=True)
        return EXIT_INTERRUPTED
    if found:
        screen.print(_table(found))
        screen.print(f"The draft model is in {config.output}. Use it: --drafter model:{config.output}", soft_wrap=True)
    return 0


class _Bars:
    """One bar a stage."""

    def __init__(self, screen: Console) -> None:
        columns = (TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[detail]}"), console=screen)
        self._stages: dict[str, TaskID] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, progress: training.Progress) -> None:
        if progress.stage not in self._stages:
            self._stages[progress.stage] = self._progress.add_task(progress.stage, detail="")
        self._progress.update(
            self._stages[progress.stage],
            total=round(progress.total),
            completed=round(min(progress.done, progress.total)),
            detail=progress.detail,
        )


def _table(found: list[Acceptance]) -> Table:
    depths = [f"token {depth}" for depth in range(1, CHAIN_LEN + 1)]
    table = Table("temperature", *depths, "tokens a pass", title="accepted of a chain, on held-out prompts")
    for each in found:
        shares = [f"{share:.3f}" for share in each.by_depth]
        table.add_row(f"{each.temperature:g}", *shares, f"{each.tokens_per_pass:.2f}")
    return table
