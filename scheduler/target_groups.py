"""All target groups of a cell that are there, each with a policy of its own. Part of the core: no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from scheduler.events import TargetFacts
from scheduler.policy.policy import Policy
from scheduler.policy.price import Price
from scheduler.policy.worth import Lack, Worth
from scheduler.preemption import Capacity
from scheduler.request import Request
from scheduler.target_group import TargetGroup


class TargetGroups:
    """`max_running_requests`: of each."""

    def __init__(self, policy: Policy, max_running_requests: int, pass_timeout_s: float) -> None:
        self._policy = policy
        self._spare_policies = [policy]  # of groups that were lost: the next one's learns on where it ended
        self._max_running_requests = max_running_requests
        self._pass_timeout_s = pass_timeout_s
        self._groups: dict[str, TargetGroup] = {}  # by address
        self.num_expected = 0  # those that are there, and those that are to come
        self.staying: tuple[TargetGroup, ...] = ()  # those on which requests may start; the oldest comes first

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[TargetGroup]:
        return iter([*self._groups.values()])

    def get(self, address: str | None) -> TargetGroup | None:
        return None if address is None else self._groups.get(address)

    def add(self, address: str, facts: TargetFacts) -> None:
        policy = self._spare_policies.pop() if self._spare_policies else self._policy.for_another()
        capacity = Capacity(self._max_running_requests, facts.num_kv_blocks, facts.block_size)
        self._groups[address] = TargetGroup(address, facts, capacity, policy, self._pass_timeout_s)
        self._note_staying()

    def retire(self, address: str) -> TargetGroup | None:
        """From now on it is one to be left. None where it is not there."""
        group = self._groups.get(address)
        if group is not None:
            group.is_leaving = True
            self._note_staying()
        return group

    def lose(self, address: str) -> TargetGroup | None:
        """What it was; None where it is not there."""
        group = self._groups.pop(address, None)
        if group is not None:
            self._spare_policies.append(group.policy)
            self._note_staying()
        return group

    def _note_staying(self) -> None:
        self.staying = tuple(group for group in self._groups.values() if not group.is_leaving)

    # ── of all of them ──────────────────────────────────────────────────────────────────────────────

    @property
    def num_places(self) -> int:
        """Requests that can run at once; while no group is there, what one will bring."""
        return self._max_running_requests * max(len(self.staying), 1)

    @property
    def largest(self) -> Capacity:
        """Of the group with the most KV blocks; one has to stay."""
        return max((group.capacity for group in self.staying), key=lambda capacity: capacity.num_blocks)

    def may_come_for(self, request: Request) -> bool:
        """Whether it is too large for those that are there, and one is missing that may not be too small."""
        if len(self) >= self.num_expected or not self.staying:
            return False
        return self.largest.blocks_of(request) > self.largest.num_blocks

    @property
    def num_free_kv_blocks(self) -> int:
        return sum(group.num_free_kv_blocks for group in self)

    @property
    def num_kv_blocks(self) -> int:
        return sum(group.facts.num_kv_blocks for group in self)

    def next_wakeup_s(self) -> float | None:
        times = [group.next_wakeup_s() for group in self._groups.values()]
        return min((time_s for time_s in times if time_s is not None), default=None)

    def are_asleep(self, now_s: float) -> bool:
        return all(now_s < group.asleep_until_s for group in self._groups.values())

    def wake(self) -> None:
        for group in self._groups.values():
            group.wake()

    def policy_of(self, request: Request) -> Policy:
        group = self.get(request.target.group)
        return self._policy if group is None else group.policy

    @property
    def policies(self) -> list[Policy]:
        return [group.policy for group in self] or [self._policy]

    def worth(self, num_drafters: Mapping[str, int], most: int, now_s: float) -> dict[str, Worth | Lack]:
        """As Core.worth says it."""
        policy = self.policies[0]
        if isinstance(policy, Price):
            return policy.worth(num_drafters, most, now_s, max(len(self.staying), 1))
        return dict.fromkeys(num_drafters, Lack.NO_PRICE)
