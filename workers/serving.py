"""What every worker's gRPC server has: one address, the health service and reflection."""

from __future__ import annotations

from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]  # the stubs lack it
from grpc_reflection.v1alpha import reflection

from outrider.errors import InvalidRequest
from outrider.guard import members_only
from outrider.rpc import server_options
from outrider.tls import CellTls, add_port

ALL_SERVICES = ""  # health's own name for the server as a whole


class Endpoint:
    """One listening server with one service of ours. Its health is SERVING from start to stop, or until it fails.

    With `tls` only processes of the cell may call it.
    """

    def __init__(self, listen: str, service: str, tls: CellTls | None) -> None:
        self._listen = listen
        self._service = service
        self._tls = tls
        self._health = health_aio.HealthServicer()
        self._server: grpc.aio.Server | None = None

    async def start(self, register: Callable[[grpc.aio.Server], None]) -> str:
        """Listen, with what `register` adds to the server. Returns "host:port", with the port that was free for 0."""
        host, _, port = self._listen.rpartition(":")
        if not host or not port.isdecimal():
            raise InvalidRequest.of("listen", self._listen, 'it is "host:port"; port 0 takes a free one')
        guards = [members_only(self._tls.name)] if self._tls is not None else []
        server = grpc.aio.server(interceptors=guards, options=server_options(-1))
        register(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((self._service, HEALTH_SERVICE, reflection.SERVICE_NAME), server)
        try:
            bound_port = add_port(server, self._listen, self._tls)
        except RuntimeError as err:
            raise InvalidRequest.of("listen", self._listen, "this address can't be listened on, or is taken") from err
        await server.start()
        self._server = server
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return f"{host}:{bound_port}"

    async def fail(self) -> None:
        """Say NOT_SERVING to whoever asks, while the streams still end."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, end the others within grace_s. Harmless when it has been done, or never started."""
        server, self._server = self._server, None
        if server is not None:
            await self._health.enter_graceful_shutdown()
            await server.stop(grace_s)

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in (ALL_SERVICES, self._service):
            await self._health.set(service, status)
