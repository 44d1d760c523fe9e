"""Room for a request, and who gives way to it. Part of the core: no I/O.

Only what is less urgent gives way, so a request never comes to preempt the one that preempted it; and each of those
preempted was needed, so none of them could start again there at once. KV blocks are reserved
(`Request.blocks_reserved`): a running request never lacks one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from scheduler.request import Request


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a target group has, of which the requests that run there hold a part."""

    num_places: int
    num_blocks: int
    block_size: int

    def blocks_of(self, request: Request) -> int:
        return request.blocks_reserved(self.block_size)


def who_gives_way(request: Request, running: Collection[Request], capacity: Capacity) -> list[Request] | None:
    """Those whose places and blocks `request` needs, to be preempted in this order: none, if there is room for it.
    None: it has to wait. `running`: on that target group, in order of start.

    The least urgent ones, and of these the last to start: they lose least.
    """
    latest_first = [*running][::-1]
    below = [each for each in latest_first if each.new.service_class > request.new.service_class]
    below = [each for each in below if not each.is_paid_for]
    num_places = capacity.num_places - len(running)
    if num_places < 1 and not below:
        return None
    num_blocks = capacity.num_blocks - sum(map(capacity.blocks_of, running)) - capacity.blocks_of(request)
    given: list[Request] = []
    for each in sorted(below, key=lambda each: -each.new.service_class):
        if num_places >= 1 and num_blocks >= 0:
            break
        given.append(each)
        num_places += 1
        num_blocks += capacity.blocks_of(each)
    if num_places < 1 or num_blocks < 0:
        return None
    for each in given[-2::-1]:  # without the last one there was too little
        if num_places >= 2 and num_blocks >= capacity.blocks_of(each):
            given.remove(each)
            num_places -= 1
            num_blocks -= capacity.blocks_of(each)
    return given
