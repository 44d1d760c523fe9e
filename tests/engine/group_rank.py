"""One rank of a group in a process of its own, for `test_group.py`: it says what it does on stdout, line by line.

    python group_rank.py RANK ADDRESS FOLDER CACHE_DIR

Rank 0 reads commands from stdin; the follower follows. A line "lost" is GroupLost, with the seconds it took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

from workers.engine.batch import Row
from workers.engine.checkpoint import prepare_checkpoint
from workers.engine.runner import Engine
from workers.target.group import Group, GroupLost

TIMEOUT_S = 3.0


def say(event: str, value: object = None) -> None:
    sys.stdout.write(json.dumps([event, value]) + "\n")
    sys.stdout.flush()


def lead(group: Group, engine: Engine) -> None:
    """Carry out the commands of stdin: rows to forward, a path to accept, or one of the group's own."""
    for line in sys.stdin:
        command, argument = json.loads(line)
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


def main(rank: int, address: str, folder: str, cache_dir: str) -> None:
    torch.set_num_threads(1)
    checkpoint = prepare_checkpoint(folder, tensor_parallel=2, cache_dir=Path(cache_dir))
    group = Group.join(rank, 2, address, timeout_s=TIMEOUT_S, start_timeout_s=60)
    # Unequal budgets: the group must settle on what both have.
    engine = Engine(checkpoint, tensor_parallel=2, block_size=4, kv_cache_bytes=(2 + rank) << 16, group=group)
    say("ready", [engine.num_blocks, engine.spec.num_kv_heads, os.getpid()])
    begin = time.monotonic()
    try:
        if rank == 0:
            lead(group, engine)
        else:
            group.follow(engine)
    except GroupLost:
        say("lost", time.monotonic() - begin)
    finally:
        group.leave()
    say("left")


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
