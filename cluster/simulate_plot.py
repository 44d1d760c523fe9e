"""The plot of a sweep. matplotlib comes with the development extra, and is loaded here only."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from cluster.errors import ConfigError
from scheduler.simulation.sweep import Row


def check_plotting(path: Path) -> None:
    """Before anything is run. Raises ConfigError."""
    if not path.parent.is_dir():
        raise ConfigError(f"--plot is {str(path)!r}: there is no folder {str(path.parent)!r}")
    if find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib, which is not installed: pip install matplotlib")


def draw(title: str, rows: Sequence[Row], path: Path) -> None:
    """Goodput and bubble of each strategy over the load; one pair of panels for each round trip and number of drafters.

    Raises ConfigError where the file can't be written.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    places = sorted({row.point[1:] for row in rows})
    figure, axes = pyplot.subplots(2, len(places), figsize=(6 * len(places), 8), squeeze=False, sharex=True)
    for place, (above, below) in zip(places, axes.T, strict=True):
        for column in dict.fromkeys(row.column for row in rows):
            there = [row for row in rows if row.point[1:] == place and row.column == column]
            users = [row.point[0] for row in there]
            above.plot(users, [row.report.goodput_tokens_per_s for row in there], marker="o", label=column)
            below.plot(users, [100 * row.report.bubble for row in there], marker="o", label=column)
        above.set(title=f"{title}: rtt {place[0]:g} ms, {place[1]} drafters", ylabel="tokens a second", yscale="log")
        below.set(xlabel="users", ylabel="bubble, %", xscale="log")
        above.legend()
    figure.tight_layout()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot is {str(path)!r}: {error}") from error
    finally:
        pyplot.close(figure)
