"""How much a tenant may ask: calls at once, and calls a minute by a token bucket. No I/O: the time is given."""

from __future__ import annotations

from dataclasses import dataclass

from outrider.errors import Overloaded
from scheduler.tokens import Tenant

_CALL_ENDS_S = 1.0  # when it may pay to come back where all calls are taken; nobody knows how long they run


@dataclass(slots=True)
class _Use:
    num_calls: int = 0  # that run
    num_spent: float = 0.0  # of the calls of a minute; flows back evenly
    seen_s: float = 0.0


class Quotas:
    """What each tenant uses now. The limits are those that the tokens file has at the time of a call."""

    def __init__(self) -> None:
        self._uses: dict[str, _Use] = {}

    def enter(self, tenant: Tenant, now_s: float) -> None:
        """Count a call. Raises Overloaded, and counts nothing, where the tenant has no room for it."""
        use = self._uses.setdefault(tenant.name, _Use(seen_s=now_s))
        if tenant.max_calls is not None and use.num_calls >= tenant.max_calls:
            text = f"tenant {tenant.name!r} has {use.num_calls} calls running, which is its limit"
            raise Overloaded(text, retry_after_s=_CALL_ENDS_S)
        if tenant.calls_per_minute is not None:
            per_s = tenant.calls_per_minute / 60
            use.num_spent = max(0.0, use.num_spent - per_s * (now_s - use.seen_s))
            use.seen_s = now_s
            if use.num_spent + 1 > tenant.calls_per_minute:
                wait_s = (use.num_spent + 1 - tenant.calls_per_minute) / per_s
                text = f"tenant {tenant.name!r} has had its {tenant.calls_per_minute} calls a minute"
                raise Overloaded(f"{text}: come back in {wait_s:.1f} s", retry_after_s=wait_s)
            use.num_spent += 1
        use.num_calls += 1

    def leave(self, tenant: Tenant) -> None:
        """A call has ended that `enter` counted."""
        self._uses[tenant.name].num_calls -= 1
