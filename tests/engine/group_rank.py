"""One rank of a group in a process of its own, for `test_group.py`: it says what it does over a pipe.

Rank 0 takes commands from the pipe; the follower follows. An event "lost" is GroupLost, with the seconds it took.
"""

from __future__ import annotations

import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from workers.engine.batch import Row
from workers.engine.checkpoint import prepare_checkpoint
from workers.engine.runner import Engine
from workers.target.group import Group, GroupLost

TIMEOUT_S = 3.0


def lead(group: Group, engine: Engine, pipe: Connection) -> None:
    """Carry out the test's commands: rows to forward, a path to accept, or one of the group's own."""

    def say(event: str, value: object = None) -> None:
        pipe.send((event, value))

    while True:
        command, argument = pipe.recv()
        if command == "forward":
            for row in argument:
                if not engine.is_open(row["key"]):
                    engine.open(row["key"])
            results = engine.forward([Row(**row) for row in argument])
            say("logits", [None if logits is None else logits.tolist() for logits in results])
        elif command == "accept":
            engine.accept(*argument)
            say("accepted")
        elif command == "reuse":  # [key, tokens]: of a new request
            engine.open(argument[0])
            say("found", engine.reuse(*argument))
        elif command == "close":
            engine.close(argument)
            say("closed")
        elif command == "tick":
            group.tick()
            say("ticked")
        elif command == "stop":
            group.stop()
            return


def main(rank: int, address: str, folder: Path, cache_dir: Path, pipe: Connection) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    checkpoint = prepare_checkpoint(str(folder), tensor_parallel=2, cache_dir=cache_dir)
    group = Group.join(rank, 2, address, timeout_s=TIMEOUT_S, start_timeout_s=60)
    # Unequal budgets: the group must settle on what both have.
    engine = Engine(checkpoint, tensor_parallel=2, block_size=4, kv_cache_bytes=(2 + rank) << 16, group=group)
    pipe.send(("ready", (engine.num_blocks, engine.spec.num_kv_heads)))
    begin = time.monotonic()
    try:
        if rank == 0:
            lead(group, engine, pipe)
        else:
            group.follow(engine)
    except GroupLost:
        pipe.send(("lost", time.monotonic() - begin))
    finally:
        group.leave()
    pipe.send(("left", None))


def join_alone(address: str, pipe: Connection) -> None:
    """Join a group that nobody else joins. In a process of its own: torch.distributed is of no more use here then."""
    try:
        Group.join(0, 2, address, start_timeout_s=0.5)
    except GroupLost as err:
        pipe.send(str(err))
