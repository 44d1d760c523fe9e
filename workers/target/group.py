"""The ranks that share one model: rank 0 decides, the others do the same at the same time.

    rank 0     broadcast(batch) ── forward        tick() while idle          stop()
    ranks > 0  follow: wait ────── forward        wait again                 return

A message is its length, then its values: positive for a batch, 0 for a tick, -1 for the end. Both travel through
gloo on the CPU, also where the model's own sums go through NCCL. Nobody waits longer than `timeout_s` for a peer: a
rank whose peer is gone, or silent for so long, raises GroupLost and is of no more use; the group starts again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from outrider.errors import ServerUnavailable
from workers.engine.device import group_backend, resolve_device
from workers.engine.runner import Engine

_TICK = 0
_STOP = -1
_log = logging.getLogger(__name__)


class GroupLost(ServerUnavailable):
    """A rank of the group died, or did not answer in time. The group has to be started anew."""


class Group:
    """This process's membership. A process is in one group at most; a target of one rank needs none."""

    def __init__(self, rank: int, size: int, timeout_s: float) -> None:
        self.rank = rank
        self.size = size
        self.timeout_s = timeout_s

    @classmethod
    def join(
        cls,
        rank: int,
        size: int,
        address: str,
        *,
        device: str = "cpu",
        timeout_s: float = 30.0,
        start_timeout_s: float = 600.0,
    ) -> Group:
        """Meet the other ranks at `address`, "host:port", where rank 0 listens.

        `start_timeout_s` bounds the meeting and the loading of the model, for which ranks may come late;
        `timeout_s` bounds every wait after that. Raises GroupLost when the ranks don't meet; the process can't
        join another group then, since torch.distributed keeps count of the failure, and has to end.
        """
        group = cls(rank, size, timeout_s)
        with group.guard():
            dist.init_process_group(
                group_backend(resolve_device(device, rank)),
                init_method=f"tcp://{address}",
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=start_timeout_s),
            )
        _log.info("joined the group at %s as rank %d of %d", address, rank, size)
        return group

    def loaded(self, num_blocks: int) -> int:
        """Called once the model is loaded: the number of KV blocks that every rank has room for.

        From here on a pass or a message that takes longer than `timeout_s` means that the group is lost.
        """
        smallest = torch.tensor([num_blocks])
        with self.guard():
            dist.all_reduce(smallest, dist.ReduceOp.MIN)
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self.timeout_s))
        return int(smallest.item())

    def broadcast(
        self,
        batch: Tensor,  # [num_values] i64, not empty
    ) -> None:
        """Rank 0: send a batch to the followers, which then execute it."""
        with self.guard():
            self._send(len(batch))
            dist.broadcast(batch, src=0)

    def tick(self) -> None:
        """Rank 0: say that it lives. Due several times in `timeout_s` while there is no batch to send."""
        with self.guard():
            self._send(_TICK)

    def stop(self) -> None:
        """Rank 0: let the followers return."""
        with self.guard():
            self._send(_STOP)

    def follow(self, engine: Engine, stop: threading.Event | None = None) -> None:
        """Ranks > 0: execute what rank 0 broadcasts until it says stop, or until `stop` is set and a message comes.

        Raises GroupLost when rank 0 is gone, or silent for `timeout_s`.
        """
        while stop is None or not stop.is_set():
            length = torch.empty(1, dtype=torch.int64)
            with self.guard():
                dist.broadcast(length, src=0)
            num_values = int(length.item())
            if num_values == _STOP:
                return
            if num_values != _TICK:
                batch = torch.empty(num_values, dtype=torch.int64)
                with self.guard():
                    dist.broadcast(batch, src=0)
                engine.execute(batch)

    def leave(self) -> None:
        """Give the process's membership back; harmless when it has been."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """What torch.distributed raises inside becomes GroupLost. gloo knows only RuntimeError, so its text decides."""
        try:
            yield
        except RuntimeError as err:
            if isinstance(err, dist.DistError) or "gloo" in str(err):
                raise GroupLost(f"rank {self.rank} of {self.size} lost its group: {err}") from err
            raise

    def _send(self, length: int) -> None:
        dist.broadcast(torch.tensor([length]), src=0)
