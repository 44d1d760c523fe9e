"""Requests of chosen classes, tenants and sizes."""

from __future__ import annotations

from outrider.v1 import inference_pb2 as pb
from outrider.v1.worker_pb2 import OpenRequest
from scheduler.events import NewRequest

INTERACTIVE, STANDARD, BATCH = pb.SERVICE_CLASS_INTERACTIVE, pb.SERVICE_CLASS_STANDARD, pb.SERVICE_CLASS_BATCH


def asked(
    number: int,
    service_class: pb.ServiceClass = STANDARD,
    tenant: str = "",
    *,
    prompt: int = 4,
    max_tokens: int = 4,
    leader: int | None = None,
) -> NewRequest:
    """One whose answer has max_tokens tokens, and for which nobody drafts."""
    return NewRequest(
        number=number,
        prompt=[1] * prompt,
        max_tokens=max_tokens,
        end_token_ids=frozenset(),
        stop_token_ids=frozenset(),
        opening=OpenRequest(sampling=pb.SamplingParams(seed=number)),
        speculates=False,
        drafters=frozenset(),
        max_nodes=0,
        deadline_s=None,
        leader=leader,
        service_class=service_class,
        tenant=tenant,
    )
