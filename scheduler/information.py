"""What the scheduler says of itself: the model it serves, its limits, its load and its workers."""

from __future__ import annotations

from dataclasses import dataclass

from outrider.rpc import MAX_MESSAGE_BYTES
from outrider.v1 import inference_pb2 as pb
from scheduler.driver import Driver
from scheduler.links import DrafterLink, TargetLink
from scheduler.target_group import TargetGroup


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    max_queued_requests: int
    max_nodes: int  # draft nodes of one request in one pass
    allows_lossy: bool = False


def model_info(driver: Driver) -> pb.GetModelInfoResponse:
    """Raises ServerUnavailable until a target has been there."""
    model = driver.served_model()
    return pb.GetModelInfoResponse(
        model=model.description.model,
        vocab_size=model.description.vocabulary.size,
        max_context=model.description.max_context,
        end_token_ids=model.description.end_token_ids,
        dtype=model.description.dtype,
        has_chat_template=model.tokenizer.has_chat_template,
    )


def server_info(driver: Driver, limits: ServiceLimits, version: str, *, is_draining: bool) -> pb.GetServerInfoResponse:
    groups = driver.core.groups
    targets = [_target_info(link, groups.get(link.address)) for link in driver.target_links]
    drafters = [info for link in driver.drafter_links for info in _drafter_infos(driver, link)]
    totals = driver.core.totals
    return pb.GetServerInfoResponse(
        version=version,
        state=pb.SERVER_STATE_DRAINING if is_draining else _state(driver, [*targets, *drafters]),
        limits=pb.Limits(
            max_running_requests=groups.num_places,
            max_queued_requests=limits.max_queued_requests,
            max_message_bytes=MAX_MESSAGE_BYTES,
            max_nodes_per_pass=limits.max_nodes,
        ),
        load=pb.Load(
            num_running_requests=driver.core.num_running,
            num_queued_requests=driver.core.num_queued,
            num_free_kv_blocks=groups.num_free_kv_blocks,
            num_passes=totals.num_passes,
            busy_s=totals.busy_s,
            bubble_s=totals.bubble_s,
            num_kv_blocks=groups.num_kv_blocks,
        ),
        targets=targets,
        drafters=drafters,
    )


def _state(driver: Driver, workers: list[pb.WorkerInfo]) -> pb.ServerState:
    if driver.model is None:
        return pb.SERVER_STATE_STARTING
    if not driver.core.has_target:
        return pb.SERVER_STATE_NOT_READY
    usable = (pb.WORKER_STATE_READY, pb.WORKER_STATE_LATE, pb.WORKER_STATE_STARVED, pb.WORKER_STATE_LEAVING)
    return pb.SERVER_STATE_READY if all(w.state in usable for w in workers) else pb.SERVER_STATE_DEGRADED


def _target_info(link: TargetLink, group: TargetGroup | None) -> pb.WorkerInfo:
    """`group`: what the core has of it; None while it is not there."""
    description = link.description
    return pb.WorkerInfo(
        address=link.address,
        num_running_requests=len(group.running) if group else 0,
        num_free_kv_blocks=group.num_free_kv_blocks if group else 0,
        num_kv_blocks=group.facts.num_kv_blocks if group else 0,
        name=description.name if description else link.address,
        kind="target",
        model=description.model if description else "",
        state=pb.WORKER_STATE_LEAVING if group is not None and group.is_leaving else link.state,
        detail=link.detail,
        num_ranks=description.num_ranks if description else 0,
    )


def _drafter_infos(driver: Driver, link: DrafterLink) -> list[pb.WorkerInfo]:
    """One for each drafter that the worker hosts; one for the worker while it has not said what it hosts."""
    if link.description is None:
        name = address = link.address
        return [pb.WorkerInfo(name=name, address=address, kind="drafter", state=link.state, detail=link.detail)]
    return [
        pb.WorkerInfo(
            name=drafter.name,
            address=link.address,
            kind=drafter.kind,
            model=drafter.model,
            state=driver.worker_state(link, drafter.name),
            detail=link.detail,
            num_ranks=1,
            num_verdicts=driver.core.health(link.address, drafter.name).num_verdicts,
            acceptance=driver.core.health(link.address, drafter.name).acceptance,
        )
        for drafter in link.description.drafters
    ]
