"""What is being verified, as the deployment itself describes it."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.conformance.asking import AUTO
from outrider import AsyncClient
from outrider.errors import ServerUnavailable
from outrider.types import ModelInfo, ServerInfo, Speculation

ALL_DRAFTERS = "all"
_SERVING = ("ready", "degraded")
_DRAFTING = ("ready", "late")


@dataclass(frozen=True, slots=True)
class Deployment:
    """`is_strict`: equal tokens are promised, so that rounding excuses nothing."""

    model: ModelInfo
    server: ServerInfo
    is_strict: bool

    @property
    def drafters(self) -> tuple[str, ...]:
        """Names of those that draft; several workers may host a drafter of one name."""
        return tuple(dict.fromkeys(worker.name for worker in self.server.drafters if worker.state in _DRAFTING))

    @property
    def ways(self) -> dict[str, Speculation]:
        """How drafts are asked for, by name: all drafters together and, where there are several, each alone."""
        alone = {name: Speculation(mode="auto", drafters=[name]) for name in self.drafters}
        return {ALL_DRAFTERS: AUTO} | (alone if len(alone) > 1 else {})


async def describe(client: AsyncClient, *, is_strict: bool) -> Deployment:
    """Equal tokens are promised in float32; `is_strict` demands them of another dtype too.

    Raises ServerUnavailable where nobody serves, and what else the client raises.
    """
    server = await client.server_info()
    if server.state not in _SERVING:
        raise ServerUnavailable(f"the server is {server.state}: it can be verified once it is ready")
    model = await client.model_info()
    return Deployment(model, server, is_strict or model.dtype == "float32")
