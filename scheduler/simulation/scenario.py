"""A scenario: machines, models, a network and a load, as a TOML file says it (scenarios/*.toml; docs/simulation.md).

Whoever reads a file gives its content to `Scenario.model_validate`; unknown keys are refused.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from scheduler.events import PassCost
from scheduler.simulation.costs import Cost, Roofline, Table

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Frozen, and closed: an unknown key is a misspelt one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RooflineSection(Section):
    weight_bytes: Positive
    kv_bytes_per_token: NotNegative = 0.0
    bytes_per_s: Positive = Field(description="of memory, of all devices of the worker")
    bytes_reached: Share = Field(description="share of that which decoding reaches")
    flops_per_token: Positive = Field(description="about twice the number of parameters")
    flops_per_s: Positive
    flops_reached: Share
    overhead_ms: NotNegative = Field(description="of each forward: launches, all-reduces, choosing")


class CostSection(Section):
    """Either a table of [tokens, context, milliseconds], or a roofline."""

    table: list[Annotated[list[NotNegative], Field(min_length=3, max_length=3)]] | None = None
    logits_ms: NotNegative = Field(
        default=0.0, description="of a token of the table: what a prompt's token, but for the last, does without"
    )
    roofline: RooflineSection | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.table is None) == (self.roofline is None):
            raise ValueError("it must have either table or roofline")
        if self.logits_ms and self.table is None:
            raise ValueError("logits_ms is of a table: a roofline does not tell logits apart; leave it out")
        return self

    def cost(self) -> Cost:
        if self.table is not None:
            points = [PassCost(round(tokens), round(context), ms / 1000) for tokens, context, ms in self.table]
            return Table(points, self.logits_ms / 1000)
        line = self.roofline
        assert line is not None
        return Roofline(
            weight_bytes=line.weight_bytes,
            kv_bytes_per_token=line.kv_bytes_per_token,
            bytes_per_s=line.bytes_per_s * line.bytes_reached,
            flops_per_token=line.flops_per_token,
            flops_per_s=line.flops_per_s * line.flops_reached,
            overhead_s=line.overhead_ms / 1000,
        )


class TargetSection(Section):
    groups: Count = Field(default=1, description="target groups, each like the other")
    cost: CostSection
    max_pass_tokens: Count
    num_kv_blocks: Count
    block_size: Count = 16
    vocab_size: Count = 32_000
    spread: Share = Field(default=0.02, description="a pass takes up to so much more or less, as a share")
    disturbance: NotNegative = Field(
        default=0.0, description="of a second of drafting, taken from a pass: drafters on the target's machine"
    )
    price_per_hour: NotNegative = Field(default=0.0, description="of one target group, with all its ranks, in dollars")


class DrafterSection(Section):
    name: str
    workers: Count = 1
    cost: CostSection
    acceptance: list[Share] = Field(min_length=1, description="by rank among siblings")
    by_depth: Share = Field(default=1.0, description="factor on the first rank for each token after the root")
    sharpness: Share = Field(default=0.0, description="how much its scores tell of where it is right")
    max_step_leaves: Count = 8
    spread: Share = 0.05
    price_per_hour: NotNegative = Field(default=0.0, description="of one worker, in dollars")


class NetworkSection(Section):
    target_rtt_ms: NotNegative = 0.5
    drafter_rtt_ms: NotNegative = 0.5
    jitter_ms: NotNegative = Field(default=0.05, description="uniform, on top of each way")


class LengthSection(Section):
    """Log-normal, as served traces are; `spread` is the standard deviation of the logarithm."""

    median: Positive
    spread: NotNegative = 0.5
    max: Count


class LoadSection(Section):
    """Either so many users who ask again when they have their answer, or so many questions a second."""

    concurrency: Count | None = None
    rate_per_s: Positive | None = None
    prompt: LengthSection
    answer: LengthSection
    warm_up_s: NotNegative = 5.0
    duration_s: Positive = Field(default=20.0, description="measured, after the warm-up; virtual seconds")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.concurrency is None) == (self.rate_per_s is None):
            raise ValueError("it must have either concurrency or rate_per_s")
        return self


class CoreSection(Section):
    max_running_requests: Count = 256
    max_nodes: Annotated[int, Field(ge=0)] = 8
    run_ahead: Count = 3


class StrategiesSection(Section):
    """Of the strategies that others have."""

    draft_length: Count = Field(default=5, description="tokens of a draft: sequential and groups")
    ahead_nodes: Count = Field(default=8, description="nodes of a pass that run-ahead verifies")


class Scenario(Section):
    name: str
    seed: int = 1
    target: TargetSection
    drafters: list[DrafterSection] = Field(default_factory=list)
    network: NetworkSection = NetworkSection()
    load: LoadSection
    core: CoreSection = CoreSection()
    strategies: StrategiesSection = StrategiesSection()
