"""The scheduler process: driver, public service, health and reflection behind one port."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from outrider import __version__
from outrider.errors import InternalError
from outrider.guard import Guard
from outrider.rpc import DEFAULT_PORT, server_options
from outrider.tls import CellChannels, CellTls, add_port
from outrider.v1 import inference_pb2 as pb
from scheduler.core import CoreConfig
from scheduler.drafting import RUN_AHEAD
from scheduler.driver import Driver
from scheduler.gate import Gate
from scheduler.information import ServiceLimits
from scheduler.metrics_server import MetricsServer
from scheduler.policy.worth import Lack, Worth
from scheduler.pressure import Pressure
from scheduler.service import SERVICE_NAME, InferenceService

log = logging.getLogger(__name__)

HEALTH_PERIOD_S = 0.2
_COLLECT_AFTER = 200_000  # objects
_CLOSE_S = 1.0  # for what was said last to arrive
# Beyond what can run or wait: information, health, and requests about to be refused. gRPC itself refuses what is more,
# and gives no hint.
_SPARE_CALLS = 2048


def spare_collector() -> None:
    """For a process that is a scheduler and nothing else: what is loaded now is never collected, and the rest rarely.

    Draft trees are many small objects, and Python's own thresholds had its collector take half of the process's time
    at 256 requests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """`listen`: host:port of the public service; port 0 takes a free one.

    `metrics_port`: on the same host, for Prometheus; 0 takes a free one, None: not served.
    """

    listen: str = f"127.0.0.1:{DEFAULT_PORT}"
    metrics_port: int | None = None
    num_target_groups: int = 1  # that the cell has at most; with more, calls may be refused without a hint
    max_running_requests: int = 32  # of each target group
    max_queued_requests: int = 256
    max_nodes: int = 8
    draft_wait_s: float | None = None
    run_ahead: int = RUN_AHEAD
    pass_timeout_s: float = 60.0
    allow_lossy: bool = False  # acceptance rules that change the law of the answers
    tls: CellTls | None = None  # None: nothing is encrypted
    tokens_file: Path | None = None  # None: whoever reaches the service may ask


class SchedulerServer:
    """start → set_workers (any number of times) → stop. The public service answers from start on, UNAVAILABLE
    until a target is there."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self._driver: Driver | None = None
        self._service: InferenceService | None = None
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._metrics: MetricsServer | None = None
        self.metrics_address: str | None = None  # host:port, where they are served
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> str:
        """Serve; returns host:port. Raises InternalError when the address can't be had, InvalidRequest for certificates
        or a tokens file that are no good."""
        config = self._config
        core = CoreConfig(
            max_running_requests=config.max_running_requests,
            pass_timeout_s=config.pass_timeout_s,
            draft_wait_s=config.draft_wait_s,
            run_ahead=config.run_ahead,
        )
        limits = ServiceLimits(config.max_queued_requests, config.max_nodes, config.allow_lossy)
        self._driver = Driver(core, config.max_queued_requests, CellChannels(config.tls))
        self._service = InferenceService(self._driver, limits, __version__)
        gate = Gate(config.tokens_file) if config.tokens_file is not None else None
        self._server = self._grpc_server(self._service, gate)
        try:
            needs_certificate = config.tls is not None and config.tls.requires_client_certificate
            port = add_port(self._server, config.listen, config.tls, requires_certificate=needs_certificate)
        except RuntimeError as err:
            raise InternalError(f"scheduler.listen is {config.listen!r}: it can't be bound; is it in use?") from err
        await self._server.start()
        self._tasks.append(asyncio.create_task(self._keep_health(self._driver)))
        if gate is not None:
            self._tasks.append(asyncio.create_task(gate.keep_fresh()))
        host = config.listen.rpartition(":")[0]
        if config.metrics_port is not None:
            metrics = MetricsServer(self._driver, config.tls)
            self.metrics_address = await metrics.start(host, config.metrics_port)
            self._metrics = metrics
        log.info("scheduler serves at %s:%d", host, port)
        return f"{host}:{port}"

    def _grpc_server(self, service: InferenceService, gate: Gate | None) -> grpc.aio.Server:
        config = self._config
        num_running = config.num_target_groups * config.max_running_requests
        server = grpc.aio.server(
            interceptors=[Guard(gate.enter)] if gate is not None else [],
            options=server_options(),
            maximum_concurrent_rpcs=num_running + config.max_queued_requests + _SPARE_CALLS,
        )
        server.add_generic_rpc_handlers((service.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server

    async def set_workers(self, targets: Sequence[str], drafters: Sequence[str], num_missing: int = 0) -> None:
        """Use exactly these workers, given as host:port. Call again whenever one is restarted elsewhere.

        `num_missing`: target groups that are to come, or to come back: what only they have room for waits.
        """
        assert self._driver is not None, "start() comes first"
        await self._driver.set_workers(targets, drafters, num_missing)

    async def drain_worker(self, address: str, limit_s: float) -> None:
        """Give a drafter no new order, a target group no new request. Returns when no request is on it any more, or
        after `limit_s`; then leave it out of `set_workers`."""
        assert self._driver is not None, "start() comes first"
        await self._driver.drain_worker(address, limit_s)

    def worth(self, num_drafters: Mapping[str, int], most: int) -> dict[str, Worth | Lack]:
        """What drafters are worth, by name, if there were so many; looked at up to `most` of them."""
        assert self._driver is not None, "start() comes first"
        return self._driver.core.worth(num_drafters, most, self._driver.now_s)

    def pressure(self) -> Pressure:
        """What is asked of the target groups, and what they have."""
        assert self._driver is not None, "start() comes first"
        return self._driver.core.pressure(self._driver.now_s)

    def show_scaling(self, scaling: pb.Scaling) -> None:
        """Whoever asks for information is shown this, too."""
        assert self._service is not None, "start() comes first"
        self._service.scaling = scaling

    async def wait_failed(self) -> None:
        """Returns never; raises what broke the scheduler."""
        assert self._driver is not None, "start() comes first"
        await self._driver.wait_failed()

    async def stop(self, grace_s: float = 5.0) -> None:
        """Drain: refuse new requests, let the admitted ones end within `grace_s`, end the rest with UNAVAILABLE, and
        close. Idempotent."""
        if self._server is None or self._driver is None or self._service is None:
            return
        server, self._server = self._server, None
        for task in self._tasks:
            task.cancel()
        await self._health.enter_graceful_shutdown()
        await self._service.drain(grace_s)
        if self._metrics is not None:
            await self._metrics.stop()
        await server.stop(_CLOSE_S)
        await self._driver.stop()

    async def _keep_health(self, driver: Driver) -> None:
        """SERVING while a target is there. A restart of the target is short: streams pause, and so does health."""
        while True:
            reply = health_pb2.HealthCheckResponse
            status = reply.SERVING if driver.core.has_target else reply.NOT_SERVING
            for name in ("", SERVICE_NAME):
                await self._health.set(name, status)
            await asyncio.sleep(HEALTH_PERIOD_S)
