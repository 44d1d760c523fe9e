"""What each tenant has had of a class: fair queueing by tokens. Part of the core: no I/O.

The next to start is of the tenant that has had the least, what its running requests may still take included; so of two
tenants that always have something waiting, none comes to be ahead of the other by more than one request. Whoever had
nothing waiting for a while counts as having had at least what the last one to start had been served: being idle earns
no credit. (Start-time fair queueing, Goyal et al. 1996, with the tokens of VTC, Sheng et al., arXiv 2401.00588.)
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from scheduler.request import Request


@dataclass(slots=True)
class Account:
    """Of one tenant in one class. Both counts are tokens, of prompts and of answers."""

    served: int = 0
    pending: int = 0  # that its running requests may still take
    waiting: deque[Request] = field(default_factory=deque)

    @property
    def claimed(self) -> int:
        return self.served + self.pending


class Accounts:
    """Of all tenants in one class."""

    def __init__(self) -> None:
        self._by_tenant: dict[str, Account] = {}
        self._floor = 0  # what the last one to start had been served

    def of(self, tenant: str) -> Account:
        account = self._by_tenant.get(tenant)
        if account is None:
            account = self._by_tenant[tenant] = Account()
        return account

    def num_waiting_of(self, tenant: str) -> int:
        account = self._by_tenant.get(tenant)
        return len(account.waiting) if account is not None else 0

    def waiting(self) -> list[Account]:
        """Those with something waiting: who has claimed the least first, of equals who asked first."""
        with_some = [account for account in self._by_tenant.values() if account.waiting]
        return sorted(with_some, key=lambda account: (account.claimed, account.waiting[0].number))

    def open(self, tenant: str) -> Account:
        """The account of a tenant that is about to wait."""
        account = self.of(tenant)
        if not account.waiting:
            account.served += max(self._floor - account.claimed, 0)
        return account

    def note_start(self, account: Account) -> None:
        self._floor = account.served

    def forget_if_idle(self) -> None:
        """Once nobody wants anything, nobody is ahead of anybody."""
        if not any(account.waiting or account.pending for account in self._by_tenant.values()):
            self._by_tenant, self._floor = {}, 0
