"""Every kind of drafter, alone and merged on one tree, also from two workers: the tokens are those without drafts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from outrider import Answer, Client, SamplingParams, Speculation
from outrider.v1 import worker_pb2
from scheduler.server import SchedulerConfig
from tests.draft.toy_models import save_renamed
from tests.serving.conftest import drafter_config
from tests.serving.local_cell import LocalCell, local_cell
from tests.tiny import save_tiny_llama
from workers.draft.drafter import Request, Resources
from workers.target.server import TargetConfig

pytestmark = pytest.mark.timeout(300)

PROMPTS = ["w5 w6 w7 w8 w9", "w3 w4 w5 w3 w4 w5 w3 w4", "w11"]
SAMPLINGS = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 0.8, "seed": 7},
    "edited": {"temperature": 1.2, "seed": 8, "repetition_penalty": 1.4, "top_k": 20, "min_p": 0.01},
}
KINDS = ["class", "model", "ngram", "suffix", "universal", "wrong"]
SETS = [*([kind] for kind in KINDS), *([one, "wrong"] for one in KINDS[:-1]), KINDS]


class Counting:
    """Of the user's own: what comes is one more than what came."""

    kind = "counting"
    model = ""
    vocabulary = worker_pb2.Vocabulary()
    max_context = 0
    draws = False

    def __init__(self, resources: Resources) -> None:
        pass

    def open(self, request: Request) -> None:
        pass

    def commit(self, request: Request, tokens: list[int]) -> None:
        pass

    def step(self, requests: list[Request]) -> None:
        for request in requests:
            node = max(request.tree, key=lambda node: node.depth, default=None)
            while request.num_missing > 0:
                last = node.token if node is not None else request.tokens[-1]
                node = request.tree.add(node, (last + 1) % 97, self.kind)
            request.is_live = False

    def close(self, request: Request) -> None:
        pass


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCell]:
    """Two workers. Two of the draft models say what the target says; one says something else."""
    models = tmp_path_factory.mktemp("models")
    tiny = save_tiny_llama(models / "tiny")
    renamed, wrong = save_renamed(models / "renamed", tiny), save_tiny_llama(models / "wrong", seed=1)
    target = TargetConfig(model=str(tiny), dtype="float32", threads=1, kv_cache_bytes=8 << 20, profile_s=0)
    drafters = [
        drafter_config("ngram", f"model:{tiny}", f"wrong=model:{wrong}"),
        drafter_config("suffix=suffix:shared", f"universal:{renamed}", f"class:{__name__}:Counting"),
    ]
    with local_cell(target, drafters, SchedulerConfig(listen="127.0.0.1:0", draft_wait_s=60)) as running:
        yield running


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_any_drafters_give_the_tokens_that_none_gives(cell: LocalCell, sampling: dict[str, object]) -> None:
    params = SamplingParams(max_tokens=16, ignore_eos=True, **sampling)  # type: ignore[arg-type]
    passes: dict[str, int] = {}
    with Client(cell.endpoint) as client:

        def answers(speculation: Speculation) -> list[Answer]:
            calls = [client.generate(prompt, sampling=params, speculation=speculation) for prompt in PROMPTS]
            return [call.result() for call in calls]

        plain = [answer.token_ids for answer in answers(Speculation(mode="off"))]
        for drafters in SETS:
            drafted = answers(Speculation(drafters=drafters, max_nodes=6))
            assert [answer.token_ids for answer in drafted] == plain, drafters
            for answer in drafted:
                assert {each.name for each in answer.speculation.drafters} == set(drafters)
            passes["+".join(drafters)] = sum(answer.speculation.num_passes for answer in drafted)
    assert passes["model+wrong"] < passes["wrong"], "a merge keeps what its best drafter says"
