"""What a core has done since it was made: sums over the requests that are over and those that go on.

Part of the core: no I/O. Nothing here is done in a pass: a request's numbers are added when it is over, however it
ends, and those that go on when somebody asks. So what is asked for twice never falls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field

from scheduler.events import DrafterCount, RequestStats


@dataclass(slots=True)
class Totals:
    """The first three are the target's, by its own clock. Tokens, rows and verdicts are those of requests."""

    num_passes: int = 0
    busy_s: float = 0.0
    bubble_s: float = 0.0  # it had no pass while requests ran
    num_prompt_tokens: int = 0  # of requests that have their first token
    num_cached_prompt_tokens: int = 0  # of these: found in the target's prefix cache
    num_generated_tokens: int = 0
    num_rows: int = 0  # that committed tokens
    num_drafts: int = 0  # rows among them that held nodes
    num_verified_nodes: int = 0
    num_accepted_tokens: int = 0
    num_accepted: Counter[int] = field(default_factory=Counter)  # rows, by how many tokens they accepted; not with none
    num_hits: int = 0
    hit_depth: int = 0
    num_preemptions: int = 0  # by the scheduler, for requests of a higher class
    drafters: dict[str, DrafterCount] = field(default_factory=dict)  # by name, on all workers

    def add(self, stats: RequestStats) -> None:
        """What one request cost and gained."""
        if stats.first_token_s is not None:
            self.num_prompt_tokens += stats.num_prompt_tokens
            self.num_cached_prompt_tokens += stats.num_cached_prompt_tokens
        self.num_generated_tokens += stats.num_generated_tokens
        self.num_rows += stats.num_passes
        self.num_drafts += stats.num_drafts
        self.num_verified_nodes += stats.num_verified_nodes
        self.num_accepted_tokens += stats.num_accepted_tokens
        self.num_accepted.update(stats.num_accepted)
        self.num_hits += stats.num_hits
        self.hit_depth += stats.hit_depth
        self.num_preemptions += stats.num_preemptions
        for name, count in stats.drafters.items():
            own = self.drafters.setdefault(name, DrafterCount())
            own.num_drafted_nodes += count.num_drafted_nodes
            own.num_accepted_tokens += count.num_accepted_tokens

    def with_those(self, running: Iterable[RequestStats]) -> Totals:
        """These, and what requests that are not over have come to."""
        totals = deepcopy(self)
        for stats in running:
            totals.add(stats)
        return totals
