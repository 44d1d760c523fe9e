"""Two real processes share one tiny model through gloo."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine import group_rank
from tests.ports import free_address

EVENT_TIMEOUT_S = 60.0
TIMEOUT_S = 3.0  # the group's own, in group_rank.py

LogitsOf = Callable[[Path, Sequence[int]], Tensor]


# Ranks are forked from a process that has loaded torch and transformers and done nothing yet: loading takes 6 s of CPU.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([group_rank.__name__])


class RankProcess:
    """A process of `group_rank.py`, its events in a queue."""

    def __init__(self, rank: int, address: str, folder: Path, cache_dir: Path) -> None:
        self._pipe, its_pipe = processes.Pipe()
        arguments = (rank, address, folder, cache_dir, its_pipe)
        self.process = processes.Process(target=group_rank.main, args=arguments, daemon=True)
        self.process.start()
        its_pipe.close()
        self._events: queue.Queue[Any] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def expect(self, event: str) -> Any:
        """The value of the next event, which must be this one."""
        name, value = self._events.get(timeout=EVENT_TIMEOUT_S)
        assert name == event, (name, value)
        return value

    def send(self, command: str, argument: object = None) -> None:
        self._pipe.send((command, argument))

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self._reader.join()
        self._pipe.close()

    def _read(self) -> None:
        while True:
            try:
                self._events.put(self._pipe.recv())
            except (EOFError, ConnectionResetError):
                self._events.put(("ended", None))
                return


@pytest.fixture
def ranks(tiny_llama: Path, tmp_path: Path) -> Iterator[list[RankProcess]]:
    """Rank 0 and its follower, loaded: nine heads padded to twelve, two KV heads each."""
    address = free_address()
    both = [RankProcess(rank, address, tiny_llama, tmp_path) for rank in range(2)]
    try:
        described = [rank.expect("ready") for rank in both]
        assert described[0] == described[1] == ((2 << 16) // (4 * 2 * 2 * 2 * 8 * 4), 2)
        yield both
    finally:
        for rank in both:
            rank.end()


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
    assert follower.process.pid is not None
    os.kill(follower.process.pid, signal.SIGSTOP)
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


def test_ranks_that_do_not_meet_are_lost() -> None:
    ours, its_pipe = processes.Pipe()
    alone = processes.Process(target=group_rank.join_alone, args=(free_address(), its_pipe), daemon=True)
    alone.start()
    assert ours.poll(EVENT_TIMEOUT_S)
    assert "rank 0 of 2" in ours.recv()
    alone.join(EVENT_TIMEOUT_S)
    assert alone.exitcode == 0
