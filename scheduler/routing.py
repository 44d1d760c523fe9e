"""Which target group a request runs on. Part of the core: no I/O.

The one with room for it on which it should end first. With n rows there, V(tokens) seconds a pass, and c tokens of
prompts to be computed, its own among them but for what the group has computed before (prefixes.py), that is after

    V(n + 1 + c) - V(n + 1)  +  t · V(n + 1)

for an answer of t tokens, each row counted with as many nodes as usual: so a prefix that is there draws a request as
much as it saves, and rows that run there drive it away as much as they slow it down. V is the one of the group that is
there for longest, whose passes are known best: one that has not run any yet would else look slow, or fast, and never be
tried, or be flooded. A group that is slower in fact keeps its requests for longer, and so gets fewer new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from scheduler.preemption import who_gives_way
from scheduler.request import Request
from scheduler.target_group import Load, TargetGroup

PassSeconds = Callable[[int, int, int], float]  # V, by rows that choose, prompt tokens, and the context behind them

MAX_EXPECTED_TOKENS = 256  # of an answer: most end before they must


def choose(request: Request, groups: Iterable[TargetGroup]) -> tuple[TargetGroup, list[Request]] | None:
    """The group, and those who have to give way there first; None: the request has to wait. Nobody gives way where
    another group has room. `groups`: the one that is there for longest comes first."""
    groups = [*groups]
    found: list[tuple[TargetGroup, list[Request]]] = []
    for group in groups:
        given = who_gives_way(request, group.running.values(), group.capacity)
        if given is not None:
            found.append((group, given))
    fewest = min((len(given) for _, given in found), default=0)
    best = [(group, given) for group, given in found if len(given) == fewest]
    if len(best) < 2:
        return best[0] if best else None
    pass_s = groups[0].policy.pass_s
    return min(best, key=lambda each: _order(request, each[0], pass_s))


def _order(request: Request, group: TargetGroup, pass_s: PassSeconds) -> tuple[float, int]:
    """Where V is flat, the emptier one."""
    load = group.load
    num_missing = request.committed_len - group.prefixes.num_known(request.tokens)
    num_expected = min(request.new.max_tokens - request.num_completion_tokens, MAX_EXPECTED_TOKENS)
    return expected_s(load, num_missing, num_expected, pass_s), load.num_rows


def expected_s(load: Load, num_missing: int, num_tokens: int, pass_s: PassSeconds) -> float:
    """Until an answer of so many tokens is complete, with so many to be computed before it."""
    num_rows, num_prompt_tokens = load.num_rows + 1, load.num_prompt_tokens + num_missing
    row_s = pass_s(num_rows, 0, load.context_len)
    return pass_s(num_rows, num_prompt_tokens, load.context_len) - row_s + num_tokens * row_s
