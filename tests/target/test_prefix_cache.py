"""What the target finds in its prefix cache saves work, and never changes a token."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from outrider.v1 import target_pb2, worker_pb2
from outrider.v1.inference_pb2 import SamplingParams
from tests.target_link import GREEDY, SEEDED, Reference, make_row, random_tree, tokens_of
from tests.tiny import save_tiny_llama
from workers.choice.grammar import Grammars
from workers.choice.noise import NoiseCache
from workers.engine.checkpoint import prepare_checkpoint
from workers.engine.runner import Engine
from workers.target.passes import Passes, Session

VOCAB = 97
BLOCK_SIZE = 4
BLOCK_BYTES = BLOCK_SIZE * 2 * 2 * 4 * 8 * 4  # layers, K and V, KV heads, head size, float32
PROMPT = [5, 6, 7, 8, 9, 10, 11, 12]  # two whole blocks
OTHER = [35, 36, 37, 38, 39, 40, 41, 42, 43, 44]


class Target:
    """The passes of one session, each checked for what holds after any."""

    def __init__(self, folder: Path, num_blocks: int) -> None:
        checkpoint = prepare_checkpoint(str(folder))
        self.engine = Engine(checkpoint, block_size=BLOCK_SIZE, kv_cache_bytes=num_blocks * BLOCK_BYTES)
        self.passes = Passes(self.engine, NoiseCache(VOCAB), Grammars(folder, VOCAB, []), max_pass_tokens=200)
        self.session = Session()

    def ask(self, *rows: target_pb2.Row) -> target_pb2.PassResult:
        result = self.passes.run(self.session, target_pb2.Pass(pass_id=1, rows=rows))
        self.engine.check_integrity()
        assert result.num_free_kv_blocks == self.engine.num_free_blocks
        return result

    def release(self, request: int, epoch: int = 1) -> None:
        self.passes.release(self.session, worker_pb2.RequestRef(request=request, epoch=epoch))


@pytest.fixture
def target(tiny: Path) -> Target:
    return Target(tiny, num_blocks=16)


@pytest.mark.parametrize("num_shared", [3, 4, 8])
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_shared_prefix_is_found_in_whole_blocks_and_changes_no_token(
    target: Target, reference: Reference, sampling: SamplingParams, num_shared: int
) -> None:
    target.ask(make_row(1, PROMPT, open_with=sampling))
    prompt = [*PROMPT[:num_shared], *OTHER]

    result = target.ask(make_row(2, prompt, open_with=sampling))

    num_found = num_shared // BLOCK_SIZE * BLOCK_SIZE
    assert (result.rows[0].num_cached_tokens, result.num_tokens) == (num_found, len(prompt) - num_found)
    assert tokens_of(result.rows[0]) == reference.decode(prompt, 1, sampling)


def test_of_a_prompt_that_is_there_as_a_whole_only_the_root_is_computed(target: Target, reference: Reference) -> None:
    target.ask(make_row(1, PROMPT, open_with=GREEDY))
    expected = reference.decode(PROMPT, 3, SEEDED)

    result = target.ask(make_row(2, PROMPT, open_with=SEEDED, nodes=(expected[:2], [-1, 0])))

    assert (result.rows[0].num_cached_tokens, result.num_tokens) == (7, 3)
    assert tokens_of(result.rows[0]) == expected
    # The first one's block was not written into.
    committed = [*PROMPT, *reference.decode(PROMPT, 1, GREEDY)]
    first = target.ask(make_row(1, committed, start=len(committed))).rows[0]
    assert tokens_of(first) == reference.decode(committed, 1, GREEDY)


def test_what_was_found_is_said_once_and_of_the_prompt_only(target: Target, reference: Reference) -> None:
    expected = reference.decode(PROMPT, 9, GREEDY)
    target.ask(make_row(1, [*PROMPT, *expected[:8]], open_with=GREEDY))
    opened = make_row(2, [*PROMPT, *expected[:8]], open_with=GREEDY)
    opened.open.num_prompt_tokens = len(PROMPT)  # it comes back from another target, with tokens beyond its prompt

    first = target.ask(opened).rows[0]
    second = target.ask(make_row(2, [*PROMPT, *expected], start=len(PROMPT) + 9)).rows[0]

    assert (first.num_cached_tokens, second.num_cached_tokens) == (8, 0)


def test_chunks_of_a_prompt_are_each_looked_for(target: Target, reference: Reference) -> None:
    prompt = [*PROMPT, *OTHER]
    target.ask(make_row(1, prompt, open_with=GREEDY))

    results = [
        target.ask(make_row(2, prompt, end=6, open_with=SEEDED)),
        target.ask(make_row(2, prompt, start=6, end=12)),
        target.ask(make_row(2, prompt, start=12)),
    ]

    assert [result.rows[0].known_len for result in results] == [6, 12, 19]
    assert [result.rows[0].num_cached_tokens for result in results] == [4, 6, 4]
    assert [result.num_tokens for result in results] == [2, 0, 2]
    assert tokens_of(results[-1].rows[0]) == reference.decode(prompt, 1, SEEDED)


def test_a_preempted_request_finds_its_blocks_again_and_goes_on_with_the_same_tokens(
    target: Target, reference: Reference
) -> None:
    expected = reference.decode(PROMPT, 8, SEEDED)
    first = target.ask(make_row(1, PROMPT, open_with=SEEDED, nodes=(expected[:5], [-1, 0, 1, 2, 3])))
    target.release(1)
    assert target.ask().num_free_kv_blocks == target.engine.num_blocks
    committed = [*PROMPT, *tokens_of(first.rows[0])]

    again = target.ask(make_row(1, committed, epoch=2, open_with=SEEDED))

    assert committed == [*PROMPT, *expected[:6]]
    assert again.num_tokens == 2  # 12 of the 14 lie in whole blocks
    assert tokens_of(again.rows[0]) == expected[6:7]


def test_a_row_that_adopts_what_an_earlier_one_must_copy_is_refused_where_that_leaves_too_little(
    tiny: Path, reference: Reference
) -> None:
    target = Target(tiny, num_blocks=3)
    target.ask(make_row(1, PROMPT, open_with=GREEDY))
    target.release(1)
    longer = [*PROMPT, 13]

    result = target.ask(make_row(2, PROMPT, open_with=SEEDED), make_row(3, longer, open_with=SEEDED))

    # Alone the first needs no block (its original is evicted), and the second one; together they need two.
    assert tokens_of(result.rows[0]) == reference.decode(PROMPT, 1, SEEDED)
    assert (result.rows[1].status, result.rows[1].known_len) == (target_pb2.ROW_STATUS_NO_CAPACITY, 0)
    target.release(2)
    assert tokens_of(target.ask(make_row(3, longer)).rows[0]) == reference.decode(longer, 1, SEEDED)


def test_a_chunk_that_computes_nothing_does_not_take_the_blocks_of_the_rows_before_it(
    tiny: Path, reference: Reference
) -> None:
    target = Target(tiny, num_blocks=3)
    target.ask(make_row(1, PROMPT, open_with=GREEDY))
    target.release(1)

    result = target.ask(
        make_row(2, OTHER, open_with=GREEDY), make_row(3, [*PROMPT, 1], end=len(PROMPT), open_with=GREEDY)
    )

    assert tokens_of(result.rows[0]) == reference.decode(OTHER, 1, GREEDY)
    assert result.rows[1].status == target_pb2.ROW_STATUS_NO_CAPACITY


def test_a_refused_row_does_not_keep_what_it_found_in_place_of_its_own(tiny: Path, reference: Reference) -> None:
    target = Target(tiny, num_blocks=5)
    changed = [*PROMPT[:7], 90]
    target.ask(make_row(1, PROMPT, open_with=GREEDY))
    target.ask(make_row(4, changed, open_with=GREEDY))
    target.release(4)
    target.ask(make_row(2, [*PROMPT, 1], end=len(PROMPT), open_with=GREEDY))
    longer = [*OTHER, 1, 2]  # three blocks, all that are free: one of them holds what row 2 is about to find

    result = target.ask(make_row(3, longer, open_with=GREEDY), make_row(2, [*changed, *OTHER], start=7))

    assert tokens_of(result.rows[0]) == reference.decode(longer, 1, GREEDY)
    assert (result.rows[1].status, result.rows[1].known_len) == (target_pb2.ROW_STATUS_NO_CAPACITY, 7)
    target.release(3)
    target.release(1)
    again = target.ask(make_row(2, [*changed, *OTHER], start=7)).rows[0]
    assert tokens_of(again) == reference.decode([*changed, *OTHER], 1, GREEDY)


def test_two_rows_that_share_a_last_block_fit_where_they_need_no_more_than_is_free(
    tiny: Path, reference: Reference
) -> None:
    target = Target(tiny, num_blocks=3)
    target.ask(make_row(1, PROMPT, open_with=GREEDY))
    target.release(1)

    result = target.ask(make_row(2, PROMPT, open_with=SEEDED), make_row(3, PROMPT, open_with=GREEDY))

    assert tokens_of(result.rows[0]) == reference.decode(PROMPT, 1, SEEDED)
    assert tokens_of(result.rows[1]) == reference.decode(PROMPT, 1, GREEDY)
    assert result.num_free_kv_blocks == 0


@dataclass
class _Running:
    prompt: Sequence[int]
    sampling: SamplingParams
    epoch: int
    committed: list[int] = field(default_factory=list)
    known_len: int = 0
    is_open: bool = False


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_shared_chunked_preempted_or_refused_every_request_gets_its_own_tokens(
    tiny: Path, reference: Reference, seed: int
) -> None:
    """A busy target with too few blocks: most prompts begin alike, and rows are refused all the time."""
    rng = random.Random(seed)
    target = Target(tiny, num_blocks=rng.randint(9, 14))
    stem = [rng.randrange(1, VOCAB) for _ in range(12)]
    prompts = [[*stem[:shared], *(rng.randrange(1, VOCAB) for _ in range(own))] for shared, own in
               ((12, 0), (8, 0), (12, 3), (9, 4), (5, 7))]  # fmt: skip
    expected = {(i, s.seed): [*p, *reference.decode(p, 14, s)] for i, p in enumerate(prompts) for s in (GREEDY, SEEDED)}
    running: dict[int, _Running] = {}
    texts: dict[int, list[int]] = {}
    epochs = iter(range(1, 10_000))
    num_found = num_refused = num_finished = 0
    for _ in range(150):
        number = rng.randrange(5)
        if number not in running:
            which, sampling = rng.randrange(len(prompts)), rng.choice([GREEDY, SEEDED])
            prompt, texts[number] = prompts[which], expected[which, sampling.seed]
            running[number] = _Running(prompt, sampling, next(epochs), list(prompt))
        elif rng.random() < 0.15:
            request = running[number]
            target.release(number, request.epoch)
            request.epoch, request.known_len, request.is_open = next(epochs), 0, False
        rows = []
        for number in rng.sample(sorted(running), rng.randint(1, len(running))):
            request = running[number]
            known_len, committed = request.known_len, request.committed
            end = rng.choice([None, rng.randint(min(known_len + 1, len(committed)), len(committed))])
            nodes = random_tree(rng, texts[number][len(committed) :], VOCAB, 4)
            row = make_row(number, committed, start=known_len, end=end, epoch=request.epoch, nodes=nodes)
            if not request.is_open:
                row.open.sampling.CopyFrom(request.sampling)
                row.open.num_prompt_tokens = len(request.prompt)
            rows.append(row)
        for row, result in zip(rows, target.ask(*rows).rows, strict=True):
            number = row.ref.request
            request = running[number]
            request.known_len, request.is_open = result.known_len, True
            num_found += result.num_cached_tokens
            if result.status == target_pb2.ROW_STATUS_NO_CAPACITY:
                num_refused += 1
                continue
            request.committed += tokens_of(result)
            num_both = min(len(request.committed), len(texts[number]))
            assert request.committed[:num_both] == texts[number][:num_both]
            if len(request.committed) >= len(request.prompt) + 9:
                target.release(number, request.epoch)
                del running[number]
                num_finished += 1
    assert min(num_found, num_refused, num_finished) > 5


NAN_TOKEN = 77  # none of the answers here has it


def test_a_request_whose_logits_are_nan_fails_alone_and_nobody_finds_what_it_computed(tmp_path: Path) -> None:
    """Attention spreads a NaN over the tokens of its pass, also to those before it: to the blocks of a good prefix."""
    folder = save_tiny_llama(tmp_path / "nan", nan_token=NAN_TOKEN)
    target, reference = Target(folder, num_blocks=16), Reference(folder)
    expected = reference.decode(OTHER, 6, SEEDED)

    first = target.ask(
        make_row(1, [*PROMPT, NAN_TOKEN, 5], open_with=GREEDY, nodes=([6], [-1])),
        make_row(2, OTHER, open_with=SEEDED, nodes=(expected[:2], [-1, 0])),
    )

    assert (first.rows[0].status, first.rows[0].known_len) == (target_pb2.ROW_STATUS_FAILED, 0)
    assert "NaN" in first.rows[0].detail
    assert tokens_of(first.rows[1]) == expected[:3]
    # The other one goes on; a third one has the beginning of the failed prompt, and its own tokens.
    committed = [*OTHER, *expected[:3]]
    second = target.ask(
        make_row(2, committed, start=len(committed), nodes=(expected[3:5], [-1, 0])),
        make_row(3, [*PROMPT, 5], open_with=SEEDED),
    )
    assert tokens_of(second.rows[0]) == expected[3:]
    assert second.rows[1].num_cached_tokens == 0
    assert tokens_of(second.rows[1]) == reference.decode([*PROMPT, 5], 1, SEEDED)


def test_what_a_nan_has_spoilt_in_an_earlier_chunk_is_not_found_either(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "nan", nan_token=NAN_TOKEN)
    target, reference = Target(folder, num_blocks=16), Reference(folder)
    spoilt = [*PROMPT, NAN_TOKEN, *OTHER]
    chunk = target.ask(make_row(1, spoilt, end=9, open_with=GREEDY)).rows[0]

    last = target.ask(make_row(1, spoilt, start=9)).rows[0]

    assert (chunk.status, last.status) == (target_pb2.ROW_STATUS_OK, target_pb2.ROW_STATUS_FAILED)
    target.release(1)
    result = target.ask(make_row(2, [*PROMPT, 5], open_with=GREEDY)).rows[0]
    assert tokens_of(result) == reference.decode([*PROMPT, 5], 1, GREEDY)
