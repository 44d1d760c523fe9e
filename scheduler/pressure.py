"""What is asked of a cell's target groups, and what they have. Part of the core: no I/O."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from scheduler.request import Request
from scheduler.target_group import TargetGroup


@dataclass(frozen=True, slots=True)
class Pressure:
    num_groups: int  # that are there, and stay
    num_places: int  # of one of them
    num_blocks: int  # KV blocks of one of them, in the mean; 0 while none is there
    num_running: int  # requests, on whatever group
    num_waiting: int  # for a place or KV blocks, and for nothing else
    num_blocks_needed: int  # that all of these can come to need
    waited_s: float  # for so long one has been waiting, this or another, without a break
    preempted_s: float  # so long ago one gave way to a more urgent one; infinite: never

    @property
    def demand(self) -> float:
        """Target groups that all these requests would fill: with their places or their blocks, whichever is more."""
        places = (self.num_running + self.num_waiting) / self.num_places
        return max(places, self.num_blocks_needed / self.num_blocks) if self.num_blocks else places


def pressure_of(
    groups: Sequence[TargetGroup],
    running: Collection[Request],
    waiting: Collection[Request],
    waited_s: float,
    preempted_s: float,
    num_places: int,
) -> Pressure:
    """`groups`: those that stay; a block is taken to be as large as the first one's."""
    needed = sum(groups[0].capacity.blocks_of(each) for each in (*running, *waiting)) if groups else 0
    return Pressure(
        num_groups=len(groups),
        num_places=num_places,
        num_blocks=sum(group.capacity.num_blocks for group in groups) // max(len(groups), 1),
        num_running=len(running),
        num_waiting=len(waiting),
        num_blocks_needed=needed,
        waited_s=waited_s,
        preempted_s=preempted_s,
    )
