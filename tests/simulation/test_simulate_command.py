"""`outriderd simulate SCENARIO`: what it reads, prints and draws."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.errors import ConfigError
from cluster.simulate_load import bundled, load_scenario, parse_axes
from tests.client.command import in_terminal, run_piped
from tests.simulation.small_scenario import small_scenario


def test_every_bundled_scenario_can_be_read() -> None:
    assert {load_scenario(name).name for name in bundled()} == set(bundled())
    assert len(bundled()) == 4


def test_a_key_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('name = "bad"\n[target]\nmax_pass_token = 5\n')
    with pytest.raises(ConfigError, match=r"target\.max_pass_token is unknown: did you mean 'max_pass_tokens'"):
        load_scenario(str(path))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("rtt=1", "must be one of"), ("rtt-ms=fast", "must be numbers"), ("drafters=0", "at least 1")],
)
def test_an_axis_that_makes_no_sense_is_refused_with_the_way_out(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_axes([text])


def test_the_command_compares_strategies_on_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(_toml())
    args = ["simulate", str(path), "--compare", "plain,outrider", "--sweep", "concurrency=1,2", "--duration", "2"]
    result = CliRunner().invoke(app, [*args, "--processes", "1", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [(row["concurrency"], row["strategy"]) for row in rows] == [
        (1, "plain"),
        (1, "outrider"),
        (2, "plain"),
        (2, "outrider"),
    ]
    assert rows[1]["gain"] > 1.3


def test_the_table_is_whole_in_a_pipe_and_in_a_narrow_terminal(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(_toml())
    command = (sys.executable, "-c", "from cluster.cli import app; app()")
    args = ["simulate", str(path), "--compare", "plain,outrider", "--duration", "2", "--processes", "1"]
    piped = run_piped(*args, command=command, COLUMNS="80")
    heads, plain, outrider = piped.stdout.splitlines()[1:]
    assert "$ a million" in heads
    assert "…" not in piped.stdout
    with in_terminal(*args, command=command, COLUMNS="80", NO_COLOR="1") as terminal:
        assert terminal.exit_code() == 0
    assert "…" not in terminal.shown
    shown = terminal.shown.split()
    assert [word for word in (plain + outrider).split() if word not in shown] == []


def test_the_command_wants_a_scenario_or_faults() -> None:
    result = CliRunner().invoke(app, ["simulate"])
    assert result.exit_code == 1
    assert "70b-trained" in result.stderr


def test_a_plot_without_a_folder_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["simulate", "70b-trained", "--plot", str(tmp_path / "gone" / "x.png")])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "there is no folder" in result.stderr


def test_a_plot_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from cluster.simulate_plot import draw
    from scheduler.simulation.sweep import jobs

    scenario = small_scenario(load={"duration_s": 0.5, "warm_up_s": 0.1})
    rows = [job.run() for job in jobs(scenario, ["plain"], {"concurrency": [1, 2], "rtt-ms": [0, 1]})]
    draw("small", rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def _toml() -> str:
    """The small scenario as a file."""
    values = small_scenario().model_dump(exclude_none=True)
    lines = [f"name = {json.dumps(values.pop('name'))}", f"seed = {values.pop('seed')}"]
    drafters = values.pop("drafters")
    for name, section in values.items():
        lines += [f"[{name}]", *(f"{key} = {_inline(value)}" for key, value in section.items())]
    for section in drafters:
        lines += ["[[drafters]]", *(f"{key} = {_inline(value)}" for key, value in section.items())]
    return "\n".join(lines)


def _inline(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_inline(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)
