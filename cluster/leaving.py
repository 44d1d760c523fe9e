"""Nodes that Ray announces as going away: pre-empted machines, pods that are deleted, `ray drain-node`.

Ray places nothing new on such a node, and leaves what runs there alone until the node ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Set

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_LOOK_TIMEOUT_S = 2.0

Look = Callable[[], Set[str]]  # the ids of the nodes that are going away now; blocks; OSError: nobody answers


class LeavingNodes:
    """What is known of them. `watch` has to run for anything to be learnt."""

    def __init__(self) -> None:
        self._ids: Set[str] = frozenset()
        self._is_news = asyncio.Condition()

    async def wait_for(self, node_ids: Set[str | None]) -> None:
        """Returns once one of these is going away."""
        async with self._is_news:
            await self._is_news.wait_for(lambda: not self._ids.isdisjoint(node_ids))

    async def watch(self, look: Look, look_every_s: float = _LOOK_EVERY_S) -> None:
        """Until cancelled. While nobody answers, as when Ray's head is away, what was known stays."""
        while True:
            try:
                ids = await asyncio.to_thread(look)
            except OSError as error:
                log.info("Ray does not say which of its nodes are going away: %s", error)
                ids = self._ids
            if ids != self._ids:
                async with self._is_news:
                    self._ids = ids
                    self._is_news.notify_all()
            await asyncio.sleep(look_every_s)


def draining_nodes() -> Look:
    """Asks the Ray that this process is connected to.

    By Ray's own client, which its command line and its Serve use too: there is no public call.
    """
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    client = GcsClient(address=ray.get_runtime_context().gcs_address)

    def look() -> Set[str]:
        try:
            return frozenset(client.get_draining_nodes(timeout=_LOOK_TIMEOUT_S))
        except ray.exceptions.RayError as error:
            raise OSError(str(error)) from error

    return look
