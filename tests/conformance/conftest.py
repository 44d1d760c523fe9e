"""The suite, run against a toy deployment."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from typing import Protocol

import pytest

from cluster.conformance.deployment import describe
from cluster.conformance.findings import Finding
from cluster.conformance.suite import Plan, Suite
from outrider import AsyncClient
from tests.client.fake_inference import serving
from tests.conformance.toy import Toy

# The suite's own claim: a right deployment fails for one plan (that is, one seed) in 10,000.
PLAN = Plan(num_prompts=2, max_tokens=12, num_law_answers=512, alpha=1e-4, timeout_s=60, concurrency=4)
# Too few answers to say anything of the law.
SMALL = replace(PLAN, num_law_answers=16)


class Verify(Protocol):
    def __call__(self, toy: Toy, plan: Plan = SMALL) -> Awaitable[list[Finding]]: ...


@pytest.fixture
def verify() -> Verify:
    async def run(toy: Toy, plan: Plan = SMALL) -> list[Finding]:
        with serving(toy.serve()) as address:
            async with AsyncClient(address) as client:
                deployment = await describe(client, is_strict=False)
                return await Suite(client, deployment, plan, lambda *_: lambda _: None).run()

    return run
