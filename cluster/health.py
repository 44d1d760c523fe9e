"""Waiting for a server's own word that it is ready: grpc.health.v1, as any other prober would ask."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.errors import WorkerFailed
from outrider.rpc import link_options
from outrider.tls import CellChannels


async def wait_until_serving(name: str, address: str, channels: CellChannels, timeout_s: float) -> None:
    """Returns when the server at `address` reports SERVING. Raises WorkerFailed when it does not within `timeout_s`."""
    last = "nothing"
    async with await channels.open(address, link_options()) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=timeout_s, wait_for_ready=True
        )
        try:
            async for answer in watch:
                last = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
        except grpc.aio.AioRpcError as error:
            last = f"{last}, then {error.code().name} ({error.details()})"
    raise WorkerFailed(f"{name} at {address} is not healthy after {timeout_s:g} s: it reported {last}")
