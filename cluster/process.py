"""One actor process as the launching process sees it: start, call, watch, kill; Ray's errors become ours here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.errors import WorkerFailed

log = logging.getLogger(__name__)

_NUM_LOG_LINES = 12


class WorkerProcess:
    """A running actor. It is never restarted by Ray: what must happen when it dies is for the cell to decide."""

    def __init__(
        self,
        name: str,
        actor: type,
        *args: object,
        resources: Mapping[str, float] | None = None,  # beyond those of `strategy`
        strategy: object = "DEFAULT",
        log_dir: Path | None = None,
    ) -> None:
        self.name = name
        self.process_id: int | None = None  # known once `start` has run, as is the next
        self.node_id: str | None = None  # of Ray's node that it runs on
        self._log_dir = log_dir
        self._actor, self._args = actor, args
        self._resources, self._strategy = dict(resources or {}), strategy
        self._handle: Any = None
        self._is_killed = False

    async def start(self, timeout_s: float) -> None:
        """Returns when the process runs, wherever Ray has room for it."""
        await asyncio.to_thread(self._create)
        self.process_id, self.node_id = await self.call("identity", timeout_s=timeout_s)
        log.info("%s is process %d", self.name, self.process_id)

    def _create(self) -> None:
        """Blocks for as long as Ray's head is away."""
        import ray

        named = dict(self._resources)
        self._handle = (
            ray.remote(self._actor)
            .options(
                num_cpus=0,
                num_gpus=named.pop("GPU", 0.0),
                resources=named,
                scheduling_strategy=self._strategy,
                max_restarts=0,
            )
            .remote(*self._args)
        )
        if self._is_killed:  # meanwhile
            ray.kill(self._handle, no_restart=True)

    async def call(self, method: str, *args: object, timeout_s: float | None) -> Any:
        """The actor's answer. Raises WorkerFailed, with the reason, when it dies, raises, or takes longer."""
        import ray

        answer = asyncio.wrap_future(getattr(self._handle, method).remote(*args).future())
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            reason = f"did not answer {method} within {timeout_s:g} s"
        except ray.exceptions.RayTaskError as error:
            reason = f"{type(error.cause).__name__}: {error.cause}"
        except ray.exceptions.RayError as error:
            reason = _plain_reason(error)
        raise WorkerFailed(f"{self.name} failed: {reason}{self._last_words()}")

    async def watch(self, method: str = "wait", *args: object) -> str:
        """Returns why it ended, once it has ended."""
        try:
            await self.call(method, *args, timeout_s=None)
        except WorkerFailed as error:
            return error.message
        return f"{self.name} ended"

    def kill(self) -> None:
        import ray

        self._is_killed = True
        if self._handle is not None:
            ray.kill(self._handle, no_restart=True)

    def _last_words(self) -> str:
        """The end of what the process wrote, for an error message."""
        if self._log_dir is None or self.process_id is None:
            return ""
        lines: list[str] = []
        for file in sorted(self._log_dir.glob(f"worker-*-{self.process_id}.err")):
            lines += file.read_text(encoding="utf-8", errors="replace").splitlines()
        lines = [line for line in lines if line.strip() and not line.startswith(":")][-_NUM_LOG_LINES:]
        return "\nIts last lines:\n  " + "\n  ".join(lines) if lines else ""


def _plain_reason(error: Exception) -> str:
    """The one sentence that matters in Ray's account of a death: the last one that is no field."""
    sentences = [line for line in str(error).strip().splitlines() if not line.startswith("\t")]
    last_line = sentences[-1].partition(" Some common causes")[0]
    return f"its process ended: {last_line.rpartition('Worker exit detail: ')[2]}"
