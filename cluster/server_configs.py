"""What each server of a cell is told, from the cell's config: the same whether Ray runs it or this process does.

`host`: the address under which the cell's other machines reach the one that the server runs on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.config import CellConfig, DrafterSection
from outrider.tls import CellTls

if TYPE_CHECKING:
    from scheduler.server import SchedulerConfig
    from workers.draft.server import DrafterConfig
    from workers.target.server import TargetConfig


def cell_tls(config: CellConfig) -> CellTls | None:
    section = config.tls
    if section is None:
        return None
    return CellTls(
        certificate=section.certificate,
        key=section.key,
        ca=section.ca,
        name=section.name,
        requires_client_certificate=section.require_client_certificate,
    )


def scheduler_config(config: CellConfig, listen: str) -> SchedulerConfig:
    from scheduler.server import SchedulerConfig

    section = config.scheduler
    return SchedulerConfig(
        listen=listen,
        metrics_port=section.metrics_port,
        num_target_groups=config.target.max_groups,
        max_running_requests=section.max_running_requests,
        max_queued_requests=section.max_queued_requests,
        max_nodes=section.max_nodes,
        draft_wait_s=section.draft_wait_s,
        pass_timeout_s=section.pass_timeout_s,
        allow_lossy=section.allow_lossy,
        tls=cell_tls(config),
        tokens_file=config.auth.tokens_file if config.auth is not None else None,
    )


def target_config(config: CellConfig, threads: int, host: str, group_address: str | None) -> TargetConfig:
    """What every rank of the group is told."""
    from workers.target.server import TargetConfig

    section = config.target
    assert section.model is not None
    return TargetConfig(
        model=section.model,
        tensor_parallel=section.tensor_parallel,
        dtype=section.dtype,
        device=section.device,
        listen=f"{host}:0",
        kv_cache_bytes=section.kv_cache_bytes,
        compiled=section.compiled,
        exact=section.exact,
        threads=threads,
        cache_dir=config.cache_dir,
        group_address=group_address,
        profile_s=section.profile_s,
        tls=cell_tls(config),
    )


def drafter_config(config: CellConfig, section: DrafterSection, threads: int, host: str) -> DrafterConfig:
    from workers.draft.server import DrafterConfig

    return DrafterConfig(
        name=section.name,
        drafters=(section.spec,),
        dtype=section.dtype,
        device=section.device,
        listen=f"{host}:0",
        threads=threads,
        kv_cache_bytes=section.kv_cache_bytes,
        compiled=section.compiled,
        cache_dir=config.cache_dir,
        tls=cell_tls(config),
    )
