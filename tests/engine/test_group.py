"""Two real processes share one tiny model through gloo."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ports import free_address

REPOSITORY = Path(__file__).parents[2]
EVENT_TIMEOUT_S = 60.0
TIMEOUT_S = 3.0  # the group's own, in group_rank.py

LogitsOf = Callable[[Path, Sequence[int]], Tensor]


class RankProcess:
    """A process of `group_rank.py`, its events in a queue."""

    def __init__(self, rank: int, address: str, folder: Path, cache_dir: Path) -> None:
        command = [sys.executable, "-W", "error", str(Path(__file__).with_name("group_rank.py"))]
        path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "client")])
        self.process = subprocess.Popen(
            [*command, str(rank), address, str(folder), str(cache_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        self._events: queue.Queue[Any] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def expect(self, event: str) -> Any:
        """The value of the next event, which must be this one."""
        name, value = self._events.get(timeout=EVENT_TIMEOUT_S)
        assert name == event, (name, value)
        return value

    def send(self, command: str, argument: object = None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([command, argument]) + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self._reader.join()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._events.put(json.loads(line))
        self._events.put(("ended", self.process.wait()))


@pytest.fixture
def ranks(tiny_llama: Path, tmp_path: Path) -> Iterator[list[RankProcess]]:
    """Rank 0 and its follower, loaded: nine heads padded to twelve, two KV heads each."""
    address = free_address()
    processes = [RankProcess(rank, address, tiny_llama, tmp_path) for rank in range(2)]
    try:
        described = [process.expect("ready") for process in processes]
        assert described[0][:2] == described[1][:2] == [(2 << 16) // (4 * 2 * 2 * 2 * 8 * 4), 2]
        yield processes
    finally:
        for process in processes:
            process.end()


def test_two_ranks_give_the_logits_of_the_unpadded_model_also_after_accepted_walks(
    ranks: list[RankProcess], tiny_llama: Path, plain_logits: LogitsOf
) -> None:
    lead, follower = ranks
    prompt = [1, 2, 3, 4, 5]
    lead.send("tick")
    lead.expect("ticked")
    lead.send(
        "forward",
        [
            {"key": 1, "tokens": prompt, "node_tokens": [7, 8, 9], "node_parents": [-1, -1, 1]},
            {"key": 2, "tokens": [6, 7], "wants_logits": False},
        ],
    )
    first, nothing = lead.expect("logits")
    lead.send("accept", [1, [1, 2]])
    lead.expect("accepted")
    lead.send("forward", [{"key": 1, "tokens": [10]}, {"key": 2, "tokens": [11]}])
    second = lead.expect("logits")
    lead.send("stop")
    lead.expect("left")
    follower.expect("left")

    assert nothing is None
    expected = [
        (first[0], prompt),
        (first[1], [*prompt, 7]),
        (first[2], [*prompt, 8]),
        (first[3], [*prompt, 8, 9]),
        (second[0][0], [*prompt, 8, 9, 10]),
        (second[1][0], [6, 7, 11]),
    ]
    for logits, path in expected:
        torch.testing.assert_close(torch.tensor(logits), plain_logits(tiny_llama, path)[-1], atol=1e-4, rtol=0)


def test_two_ranks_give_the_models_logits_after_hits_of_the_prefix_cache_and_after_eviction(
    ranks: list[RankProcess], tiny_llama: Path, plain_logits: LogitsOf
) -> None:
    lead, _ = ranks
    prompt = [(7 * i) % 61 for i in range(14)]

    def forward(key: int, tokens: list[int]) -> torch.Tensor:
        lead.send("forward", [{"key": key, "tokens": tokens, "node_tokens": [5, 6], "node_parents": [-1, 0]}])
        return torch.tensor(lead.expect("logits")[0])

    def found(key: int) -> int:
        lead.send("reuse", [key, prompt])
        return int(lead.expect("found"))

    def close(*keys: int) -> None:
        for key in keys:
            lead.send("close", key)
            lead.expect("closed")

    given = [forward(1, prompt)]
    close(1)
    assert found(2) == 12  # three whole blocks of four
    given.append(forward(2, prompt[12:]))
    close(2)
    others = list(range(100, 108))
    for other in others:  # eight of 15 blocks: all but 8 of the pool's 128, and those are taken first
        lead.send("forward", [{"key": other, "tokens": [(other + i) % 61 for i in range(60)]}])
        lead.expect("logits")
    lead.send("forward", [{"key": 108, "tokens": [1] * 32}])
    lead.expect("logits")
    close(*others, 108)
    assert found(3) == 0
    given.append(forward(3, prompt))

    expected = torch.stack([plain_logits(tiny_llama, [*prompt, *path])[-1] for path in ([], [5], [5, 6])])
    for logits in given:
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
        assert logits.argmax(-1).tolist() == expected.argmax(-1).tolist()


def test_rank_0_is_told_when_its_follower_dies(ranks: list[RankProcess]) -> None:
    lead, follower = ranks
    follower.process.kill()
    follower.expect("ended")
    lead.send("forward", [{"key": 1, "tokens": [1, 2, 3]}])
    assert lead.expect("lost") < 2 * TIMEOUT_S
    lead.expect("left")


def test_rank_0_is_told_when_its_follower_hangs(ranks: list[RankProcess]) -> None:
    lead, follower = ranks
    follower.process.send_signal(signal.SIGSTOP)
    lead.send("forward", [{"key": 1, "tokens": [1, 2, 3]}])
    assert lead.expect("lost") < 2 * TIMEOUT_S
    lead.expect("left")


def test_the_follower_is_told_when_rank_0_dies(ranks: list[RankProcess]) -> None:
    lead, follower = ranks
    lead.process.kill()
    assert follower.expect("lost") < 2 * TIMEOUT_S
    follower.expect("left")


def test_the_follower_is_told_when_rank_0_falls_silent(ranks: list[RankProcess]) -> None:
    _, follower = ranks
    assert follower.expect("lost") == pytest.approx(TIMEOUT_S, abs=2.0)


_JOIN_ALONE = """
import sys
from workers.target.group import Group, GroupLost
try:
    Group.join(0, 2, sys.argv[1], start_timeout_s=0.5)
except GroupLost as err:
    print(err)
"""


def test_ranks_that_do_not_meet_are_lost() -> None:
    # In a process of its own: torch.distributed is of no more use in one that has failed to join.
    command = [sys.executable, "-c", _JOIN_ALONE, free_address()]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=EVENT_TIMEOUT_S, check=True)
    assert "rank 0 of 2" in done.stdout
