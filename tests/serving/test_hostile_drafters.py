"""A drafter that lies costs nobody a token: over the service, beside an honest one, with a real target."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from outrider import Client, SamplingParams, Speculation
from scheduler.core import Core
from scheduler.drafting import MAX_TREE_NODES
from scheduler.server import SchedulerConfig
from tests.serving.conftest import drafter_config
from tests.serving.hostile_drafter import (
    BEHAVIOURS,
    NAME,
    Behaviour,
    HostileDrafter,
    more_bytes_than_a_report_may_have,
)
from tests.serving.local_cell import LocalCell, local_cell
from tests.tiny import save_tiny_llama
from workers.target.server import TargetConfig
from workers.vocabulary import vocabulary_of

pytestmark = pytest.mark.timeout(300)

VOCAB = 97
PROMPT = "w5 w6 w7 w8 w9"
TIMEOUT_S = 30.0
WAIT_S = 5.0  # for a draft: the honest one is there by then whatever the load, and the silent one costs it once
SAMPLINGS = [
    SamplingParams(temperature=0, max_tokens=24, ignore_eos=True),
    SamplingParams(temperature=0.9, seed=11, max_tokens=24, ignore_eos=True),
]
HONEST = Speculation(drafters=["honest"], max_nodes=6)
BOTH = Speculation(drafters=["honest", NAME], max_nodes=6)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", vocab=VOCAB)


@pytest.fixture(scope="module")
def cell(tiny: Path) -> Iterator[LocalCell]:
    target = TargetConfig(model=str(tiny), dtype="float32", threads=1, kv_cache_bytes=8 << 20, profile_s=0)
    scheduler = SchedulerConfig(listen="127.0.0.1:0", draft_wait_s=WAIT_S)
    with local_cell(target, [drafter_config(f"honest=model:{tiny}")], scheduler) as running:
        yield running


def check_bounds(core: Core) -> None:
    for request in core._running.values():
        assert len(request.tree) <= MAX_TREE_NODES
        for view in request.drafters.values():
            assert len(view.places) <= 2 * MAX_TREE_NODES
    assert {name for name, _ in core._drafting.survival._drafters} <= {"honest", NAME}


@pytest.mark.parametrize("behave", BEHAVIOURS, ids=lambda behave: behave.__name__)
def test_what_a_hostile_drafter_sends_changes_no_token_and_the_honest_one_still_helps(
    cell: LocalCell, tiny: Path, behave: Behaviour
) -> None:
    hostile = HostileDrafter(vocabulary_of(tiny, VOCAB), behave)
    with Client(cell.endpoint) as client, cell.other_drafter(hostile):
        for sampling in SAMPLINGS:
            plain = client.generate(PROMPT, sampling=sampling, speculation=Speculation(mode="off")).result()
            drafted = client.generate(PROMPT, sampling=sampling, speculation=BOTH)
            for _ in drafted:
                cell.look(check_bounds)
            assert drafted.answer.token_ids == plain.token_ids
        assert hostile.num_orders > 0
        if behave is more_bytes_than_a_report_may_have:
            assert hostile.is_back.wait(TIMEOUT_S)
        else:
            assert hostile.num_streams == 1
        after = client.generate(PROMPT, sampling=SAMPLINGS[0], speculation=HONEST).result()
    assert after.tokens_per_pass > 2
    assert cell.look(lambda core: (len(core._requests), core.has_target)) == (0, True)
