"""The cost profile: which points are measured, that nothing of it stays behind, and when it is measured anew.

No time is asserted; where the budget matters, the clock is the test's own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import save_tiny_llama
from workers.engine.batch import Row
from workers.engine.checkpoint import Checkpoint
from workers.engine.cost_profile import PassCost, Point, knee, measure, points_that_fit
from workers.engine.kept_profiles import cost_profile
from workers.engine.runner import Engine

BLOCK_SIZE = 16
BLOCK_BYTES = BLOCK_SIZE * 2 * 2 * 4 * 8 * 4  # layers, K and V, KV heads, head size, float32
NUM_BLOCKS = 128

MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def make_engine(tmp_path_factory: pytest.TempPathFactory) -> MakeEngine:
    def make(max_context: int = 2048, num_blocks: int = NUM_BLOCKS, block_size: int = BLOCK_SIZE) -> Engine:
        folder = save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", max_context=max_context)
        num_bytes = num_blocks * BLOCK_BYTES * block_size // BLOCK_SIZE
        return Engine(Checkpoint(folder, "tiny"), kv_cache_bytes=num_bytes, block_size=block_size)

    return make


@pytest.fixture(scope="module")
def engine(make_engine: MakeEngine) -> Engine:
    return make_engine()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """The rows of all forwards so far."""
    rows: list[Row] = []
    forward = Engine.forward

    def noted(self: Engine, asked: list[Row]) -> Any:
        rows.extend(asked)
        return forward(self, asked)

    monkeypatch.setattr(Engine, "forward", noted)
    return rows


def ticking() -> Callable[[], float]:
    """A clock by which every pass takes a second."""
    ticks = count()
    return lambda: float(next(ticks))


def points_of(costs: list[PassCost]) -> list[tuple[int, int]]:
    return [(cost.point.num_tokens, cost.point.context_len) for cost in costs]


def both(*sizes: int) -> list[tuple[int, int]]:
    return [(num_tokens, context_len) for num_tokens in sizes for context_len in (256, 1024)]


def test_powers_of_two_up_to_the_largest_pass_are_measured_over_both_contexts(engine: Engine) -> None:
    costs = measure(engine, points_that_fit(engine, 150), budget_s=1e9)

    assert points_of(costs) == both(1, 2, 4, 8, 16, 32, 64, 128)
    assert all(cost.pass_ms > 0 for cost in costs)


def test_every_pass_is_one_tree_of_that_many_tokens_with_all_its_logits(engine: Engine, passes: list[Row]) -> None:
    measure(engine, [Point(20, 256)], budget_s=1e9)

    assert {(row.num_tokens, row.num_logits, len(row.tokens)) for row in passes} == {(20, 20, 1)}


@pytest.mark.parametrize("block_size", [16, 24])  # both contexts end with a block, or within one
def test_the_engine_is_as_before_and_finds_nothing(make_engine: MakeEngine, block_size: int, passes: list[Row]) -> None:
    engine = make_engine(block_size=block_size)
    measure(engine, points_that_fit(engine, 64), budget_s=1e9)

    engine.check_integrity()
    assert engine.num_free_blocks == engine.num_blocks
    assert not any(engine.is_open(key) for key in range(4))
    engine.open(0)
    for row in passes:
        assert engine.reuse(0, [0] * 256 + list(row.tokens) + list(row.node_tokens)) == 0
    engine.close(0)


def test_a_pass_that_fails_leaves_the_engine_empty(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(Engine, "_execute", broken)
    with pytest.raises(RuntimeError, match="gone"):
        measure(engine, points_that_fit(engine, 4), budget_s=1e9)

    engine.check_integrity()
    assert engine.num_free_blocks == engine.num_blocks


def test_logits_after_a_profile_are_those_of_an_engine_without_one(make_engine: MakeEngine) -> None:
    plain, profiled = make_engine(), make_engine()
    measure(profiled, points_that_fit(profiled, 64), budget_s=1e9)
    logits = []
    for engine in (plain, profiled):
        engine.open(7)
        logits.append(engine.forward([Row(7, [5, 6, 7, *[0] * 300])])[0])
    assert logits[0] is not None
    assert logits[1] is not None
    assert torch.equal(logits[0], logits[1])


@pytest.mark.parametrize(
    ("max_context", "num_blocks", "expected"),
    [
        (256, 128, []),
        (257, 128, [(1, 256)]),
        (265, 128, [(1, 256), (2, 256), (4, 256), (8, 256), (16, 256)]),
        (1024, 128, [(1, 256), (2, 256), (4, 256), (8, 256), (16, 256)]),
        (2048, 17, []),
        (2048, 18, [(1, 256), (2, 256), (4, 256), (8, 256), (16, 256)]),
        (2048, 66, both(1, 2, 4, 8, 16)),
    ],
)
def test_only_points_that_the_model_and_the_pool_have_room_for_are_measured(
    make_engine: MakeEngine, max_context: int, num_blocks: int, expected: list[tuple[int, int]]
) -> None:
    engine = make_engine(max_context, num_blocks)
    points = points_that_fit(engine, 16)

    assert points_of(measure(engine, points, budget_s=1e9)) == expected


@pytest.mark.parametrize(
    ("budget_s", "num_points", "num_rounds"),
    [
        (0.5, 1, 1),  # the first point in any case
        (7, 1, 6),
        (8, 2, 3),
        (15, 2, 6),
        (16, 3, 4),
        (43, 9, 3),
        (44, 10, 3),
        (1000, 10, 7),
    ],
)
def test_points_that_the_budget_does_not_reach_are_not_there(
    engine: Engine, passes: list[Row], budget_s: float, num_points: int, num_rounds: int
) -> None:
    points = points_that_fit(engine, 16)

    costs = measure(engine, points, budget_s, clock=ticking())

    assert [cost.point for cost in costs] == points[:num_points]
    assert [cost.pass_ms for cost in costs] == [1000.0] * num_points
    sizes = [point.num_tokens for point in points[:num_points]]
    warm_up_and_first = [size for size in sizes for _ in range(2)]
    down_and_up = [size for number in range(1, num_rounds) for size in (sizes[::-1] if number % 2 else sizes)]
    assert [row.num_tokens for row in passes] == warm_up_and_first + down_and_up


def test_the_knee_is_the_most_tokens_that_cost_little_more_than_one() -> None:
    times = [(1, 256, 10.0), (1, 1024, 99.0), (2, 256, 10.5), (2, 1024, 99.0), (4, 256, 12.9), (8, 256, 13.0)]

    assert knee([PassCost(Point(n, context), ms) for n, context, ms in times]) == 4
    assert knee([PassCost(Point(1, 256), 10.0)]) == 1


class Starts:
    """Starts of a target, as far as its profile is concerned."""

    def __init__(self, engine: Engine, folder: Path, cache_dir: Path, passes: list[Row]) -> None:
        self.engine, self.cache_dir, self._passes = engine, cache_dir, passes
        self.checkpoint = Checkpoint(folder, "org/tiny")

    def profile(self, budget_s: float = 1e9, num_ranks: int = 1, max_pass_tokens: int = 2) -> list[PassCost]:
        return cost_profile(
            self.checkpoint,
            self.engine,
            num_ranks=num_ranks,
            max_pass_tokens=max_pass_tokens,
            budget_s=budget_s,
            cache_dir=self.cache_dir,
        )

    def measures(self, **changes: Any) -> bool:
        """Whether such a start runs any pass."""
        before = len(self._passes)
        self.profile(**changes)
        return len(self._passes) > before

    @property
    def files(self) -> list[Path]:
        return sorted((self.cache_dir / "profiles").iterdir())


@pytest.fixture
def starts(engine: Engine, tmp_path: Path, passes: list[Row]) -> Starts:
    folder = save_tiny_llama(tmp_path / "tiny", max_context=2048)
    return Starts(engine, folder, tmp_path / "cache", passes)


def test_a_second_start_reads_what_the_first_one_measured(starts: Starts) -> None:
    first = starts.profile()

    assert not starts.measures()
    assert starts.profile() == first
    assert points_of(first) == both(1, 2)
    assert [file.suffix for file in starts.files] == [".json"], "one file, and nothing unfinished"


def test_whatever_changes_the_time_has_a_profile_of_its_own(starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    starts.profile()
    assert starts.measures(num_ranks=2)
    assert starts.measures(max_pass_tokens=4)
    assert starts.measures(budget_s=1e8)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 99)
        assert starts.measures()
    with monkeypatch.context() as patch:
        patch.setattr("workers.engine.kept_profiles.device_name", lambda _: "another")
        assert starts.measures()
    with monkeypatch.context() as patch:
        patch.setattr("workers.engine.kept_profiles._code_hash", lambda: "another")
        assert starts.measures()
    with monkeypatch.context() as patch:
        patch.setattr(type(starts.engine), "is_compiled", True)
        assert starts.measures()
    assert not starts.measures()
    (starts.checkpoint.folder / "config.json").touch()
    assert starts.measures()
    assert len(starts.files) == 9


def test_without_a_budget_nothing_is_measured_and_nothing_kept(starts: Starts) -> None:
    assert not starts.measures(budget_s=0)
    assert starts.profile(budget_s=0) == []
    assert not starts.cache_dir.exists()


def changed(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda kept: kept | changes


DAMAGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no object": lambda kept: [1, 2],
    "of another target": lambda kept: kept | {"key": kept["key"] | {"model": "another"}},
    "without costs": lambda kept: {"key": kept["key"]},
    "no costs": changed(pass_costs=[]),
    "costs of other points": changed(pass_costs=[[3, 256, 1.0]]),
    "a cost cut short": changed(pass_costs=[[1, 256]]),
    "a cost that is none": changed(pass_costs=[[1, 256, None]]),
    "NaN": changed(pass_costs=[[1, 256, float("nan")]]),
    "negative": changed(pass_costs=[[1, 256, -1.0]]),
    "costs in no list": changed(pass_costs=3),
}


@pytest.mark.parametrize("damage", [*DAMAGED, "cut off", "no text", "empty"])
def test_a_damaged_file_is_measured_again_and_said_so(
    starts: Starts, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    starts.profile()
    (file,) = starts.files
    whole = file.read_bytes()
    if damage in DAMAGED:
        file.write_text(json.dumps(DAMAGED[damage](json.loads(whole))))
    else:
        file.write_bytes({"cut off": whole[:-9], "no text": b"\xff\x00", "empty": b""}[damage])

    with caplog.at_level(logging.WARNING, "workers.engine.kept_profiles"):
        assert starts.measures()

    assert str(file) in caplog.text
    assert not starts.measures(), "and the file is whole again"


def test_where_a_profile_cannot_be_kept_it_is_served_all_the_same(
    starts: Starts, caplog: pytest.LogCaptureFixture
) -> None:
    starts.cache_dir.write_text("not a folder")

    assert points_of(starts.profile()) == both(1, 2)

    assert "can't be kept" in caplog.text


def test_the_log_says_where_the_knee_is_once_it_was_measured(starts: Starts, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "workers.engine.kept_profiles"):
        starts.profile()
        starts.profile()

    lines = [record.getMessage() for record in caplog.records if record.name == "workers.engine.kept_profiles"]
    assert len(lines) == 1
    assert "cost less than 1.3 times one of a single token" in lines[0]
    assert "4 of 4 points" in lines[0]
