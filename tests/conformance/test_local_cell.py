"""The suite against a real cell in this process: a tiny random model, and two drafters."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import load_config
from cluster.conformance.deployment import describe
from cluster.conformance.local import local_cell, local_flags
from cluster.conformance.suite import Plan, Suite
from cluster.errors import ConfigError
from outrider import AsyncClient
from tests.tiny import save_tiny_llama

PLAN = Plan(num_prompts=1, max_tokens=8, num_law_answers=64, timeout_s=60)
CONSTRAINTS = {"json_schema", "regex", "grammar", "choice"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("conformance") / "tiny")


async def test_a_cell_of_a_tiny_model_is_lossless_with_prompt_lookup_and_with_itself_as_drafter(tiny: Path) -> None:
    target = {"model": str(tiny), "threads": 1, "kv_cache_bytes": 1 << 24}
    drafters = [{"kind": "ngram"}, {"kind": "model", "source": str(tiny), "name": "itself", "kv_cache_bytes": 1 << 24}]
    config = load_config(None, local_flags({"target": target, "drafters": drafters}))
    lines: list[str] = []
    async with local_cell(config, lines.append) as endpoint, AsyncClient(endpoint) as client:
        deployment = await describe(client, is_strict=False)
        findings = await Suite(client, deployment, PLAN, lambda *_: lambda _: None).run()
    assert deployment.drafters == ("ngram", "itself")
    assert [finding for finding in findings if finding.verdict == "breach"] == []
    # The tiny tokenizer has words and no letters: a server can't follow a constraint with it, and says so.
    assert {finding.subject for finding in findings if finding.verdict == "error"} <= CONSTRAINTS
    by_subject = {finding.subject: finding for finding in findings}
    assert by_subject["drafter itself alone"].verdict == "passed"
    assert by_subject["rejection at T 1, 1 node: 2 tokens"].verdict == "passed"
    assert lines[-1] == "The cell is ready"


async def test_a_cell_that_needs_several_processes_is_refused() -> None:
    config = load_config(None, local_flags({"target": {"model": "m", "tensor_parallel": 2}}))
    with pytest.raises(ConfigError, match=r"target\.tensor_parallel is 2: .* --server"):
        async with local_cell(config, lambda _: None):
            pass
