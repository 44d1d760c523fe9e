"""Kubernetes' probe of the scheduler where its own can't ask: that one knows no TLS.

python -m cluster.probe CONFIG: ends with 0 where the scheduler of the cell, on this machine, says SERVING. It asks as
any process of the cell would, with the files of [tls], and loads as little as it can, since it runs every few seconds.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.config import load_config
from cluster.server_configs import cell_tls
from outrider.rpc import link_options
from outrider.tls import CellChannels

_TIMEOUT_S = 4.0


async def is_serving(config: Path) -> bool:
    """Raises grpc.aio.AioRpcError where nobody answers."""
    cell = load_config(config, {})
    port = cell.scheduler.listen.rpartition(":")[2]
    async with await CellChannels(cell_tls(cell)).open(f"127.0.0.1:{port}", link_options()) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        answer = await check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(is_serving(Path(sys.argv[1]))) else 1)
