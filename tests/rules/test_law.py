"""The law of what really comes out: production's noise, draws and float arithmetic, and wrong twins that must be seen.

Chi-square over fixed seeds. FALSE_ALARM is the chance that a right rule would fail one of these tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from outrider.draft_law import DraftLaw
from tests.rules.models import path_of
from tests.statistics import chi_square_p_value
from workers.choice.choose import laws
from workers.choice.noise import gumbel_rows, uniform
from workers.choice.params import ChoiceParams
from workers.choice.paths import Paths
from workers.choice.penalties import edit
from workers.target.rules.block import walk_by_blocks
from workers.target.rules.draws import StreamDraws
from workers.target.rules.laws import Array
from workers.target.rules.rejection import walk_by_rejection
from workers.target.rules.typical import DELTA, EPSILON, threshold, walk_if_typical
from workers.target.verdicts import Draft, Verdict, verdicts

FALSE_ALARM = 1e-6
VOCAB = 6
LENGTH = 3
PROMPT = [1, 2]
SHAPE = [-1, -1, 0, 0, 1]  # of the trees
NUM_TRIALS = 800
NUM_TRIALS_OF_TWINS = 3000
PARAMETERS = {
    "none": ChoiceParams(),
    "temperature": ChoiceParams(temperature=0.6),
    "top_k": ChoiceParams(temperature=1.5, top_k=3),
    "top_p": ChoiceParams(top_p=0.7),
    "min_p": ChoiceParams(min_p=0.2),
    "typical_p": ChoiceParams(typical_p=0.6),
    "repetition_penalty": ChoiceParams(repetition_penalty=2.0),
    "presence_penalty": ChoiceParams(presence_penalty=1.5),
    "frequency_penalty": ChoiceParams(frequency_penalty=1.0),
    "logit_bias": ChoiceParams(logit_bias=((0, 1.5), (3, -2.0))),
    "allowed_token_ids": ChoiceParams(allowed_token_ids=(0, 2, 3, 5)),
    "bad_words": ChoiceParams(bad_words=((4,), (2, 3), (3, 0))),
    "min_tokens": ChoiceParams(min_tokens=2, end_token_ids=(5,)),
}


@cache
def logits_after(path: tuple[int, ...], model: str = "target") -> torch.Tensor:
    """[vocab] f32: of a toy model, a function of the path behind the root."""
    generator = torch.Generator().manual_seed(hash((model == "target", *path)) & 0xFFFF_FFFF)
    return torch.randn(VOCAB, generator=generator) * 1.5


@cache
def law_after(path: tuple[int, ...], params: ChoiceParams, model: str = "target") -> Array:
    """[vocab] f64"""
    logits = logits_after(path, model)[None].clone()
    edit(logits, replace(params, num_prompt_tokens=len(PROMPT)), Paths([*PROMPT, *path]))
    law: Array = laws(logits, [params])[0].numpy()
    return law


def sequence_law(params: ChoiceParams, length: int = LENGTH) -> dict[tuple[int, ...], float]:
    """Sequences end after one of the end tokens."""
    found: dict[tuple[int, ...], float] = {}

    def extend(path: tuple[int, ...], probability: float) -> None:
        if len(path) == length or (path and path[-1] in params.end_token_ids):
            found[path] = probability
            return
        for token, share in enumerate(law_after(path, params).tolist()):
            if share:
                extend((*path, token), probability * share)

    extend((), 1.0)
    return found


def outputs(
    params: ChoiceParams, shape: Sequence[int], num_trials: int, alter: Callable[[Draft], Draft] = lambda draft: draft
) -> Counter[tuple[int, ...]]:
    """First tokens of answers with different seeds, one verified tree after another, through production's verdicts."""
    rng = np.random.default_rng(num_trials)
    paths: dict[int, tuple[int, ...]] = dict.fromkeys(range(num_trials), ())
    running = list(paths)
    while running:
        drafts = [alter(draft_after(paths[seed], replace(params, seed=seed), rng, shape)) for seed in running]
        logits = [
            logits_after((*paths[seed], *behind))
            for seed, draft in zip(running, drafts, strict=True)
            for behind in draft.paths.behind_root()
        ]
        for seed, verdict in zip(running, verdicts(torch.stack(logits), drafts), strict=True):
            assert isinstance(verdict, Verdict), verdict
            paths[seed] += verdict.walk.tokens
        running = [seed for seed in running if not is_complete(paths[seed], params)]
    return Counter(path[:LENGTH] for path in paths.values())


def is_complete(path: tuple[int, ...], params: ChoiceParams) -> bool:
    return len(path) >= LENGTH or (bool(path) and path[-1] in params.end_token_ids)


def draft_after(path: tuple[int, ...], params: ChoiceParams, rng: np.random.Generator, shape: Sequence[int]) -> Draft:
    its = replace(params, num_prompt_tokens=len(PROMPT))
    general = replace(params, seed=0)
    tokens: list[int] = []
    drawn_from: list[DraftLaw] = []
    for node, parent in enumerate(shape):
        behind = (*path, *path_of(parent, tokens, shape))
        siblings = [tokens[i] for i in range(node) if shape[i] == parent]
        if params.rule == "rejection":
            # Drawn from a law over all tokens, whatever the limits are, so that no tree runs out of siblings.
            law, cumulative = law_of_a_draw(behind, params.temperature, tuple(siblings))
            tokens.append(law.ids[int(cumulative.searchsorted(rng.random(), side="right"))])
            drawn_from.append(law)
        else:
            # The drafter's best noisy scores, with the target's noise.
            with np.errstate(divide="ignore"):
                scores = np.log(law_after(behind, general, "draft"))
            scores = scores + noise_at(len(PROMPT) + len(behind))[params.seed]
            tokens.append(int((-scores).argsort(kind="stable")[len(siblings)]))
    return Draft(its, Paths([*PROMPT, *path], tokens, list(shape)), drawn_from=drawn_from)


@cache
def law_of_a_draw(
    path: tuple[int, ...], temperature: float, siblings: tuple[int, ...]
) -> tuple[DraftLaw, NDArray[np.float64]]:
    """What a node is drawn from after its siblings, and the sums of its first probabilities, [num_left]."""
    whole = DraftLaw(tuple(range(VOCAB)), tuple(law_after(path, ChoiceParams(temperature=temperature), "draft")))
    left = whole.without(siblings)
    sums = np.cumsum(left.probabilities)
    return left, sums / sums[-1]


@cache
def noise_at(position: int) -> NDArray[np.float32]:
    """Of every seed that is tried, [num_seeds, vocab]."""
    seeds = range(max(NUM_TRIALS, NUM_TRIALS_OF_TWINS))
    noise: NDArray[np.float32] = gumbel_rows(seeds, [position] * len(seeds), VOCAB).numpy()
    return noise


@pytest.mark.parametrize("name", PARAMETERS)
def test_coupled_trees_give_the_targets_law(name: str) -> None:
    counts = outputs(PARAMETERS[name], SHAPE, NUM_TRIALS)
    assert chi_square_p_value(counts, sequence_law(PARAMETERS[name])) > FALSE_ALARM


@pytest.mark.parametrize("shape", [SHAPE, [-1, 0, 1]], ids=["tree", "block"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_rejection_gives_the_targets_law(name: str, shape: list[int]) -> None:
    params = replace(PARAMETERS[name], rule="rejection")
    assert chi_square_p_value(outputs(params, shape, NUM_TRIALS), sequence_law(params)) > FALSE_ALARM


def test_typical_does_not_give_the_targets_law_and_so_is_called_lossy() -> None:
    params = ChoiceParams(rule="typical")
    assert chi_square_p_value(outputs(params, SHAPE, NUM_TRIALS_OF_TWINS), sequence_law(params)) < FALSE_ALARM


# Wrong twins: each is a mistake that somebody has made, and must be seen.


def without_unlikely_nodes(draft: Draft) -> Draft:
    """Truncation after seeing the token: a drawn node with a low probability is left out of the row."""
    kept = [i for i, law in enumerate(draft.drawn_from) if law.probability(draft.paths.node_tokens[i]) > 0.15]
    kept = [i for i in kept if draft.paths.node_parents[i] == -1]
    tokens = [draft.paths.node_tokens[i] for i in kept]
    paths = Paths(draft.paths.committed, tokens, [-1] * len(kept))
    return replace(draft, paths=paths, drawn_from=[draft.drawn_from[i] for i in kept])


def greedy_as_if_drawn(draft: Draft) -> Draft:
    """The drafter's likeliest tokens, sent with the law that they were not drawn from."""
    best = [law.ids[int(np.argmax(law.probabilities))] for law in draft.drawn_from[:1]]
    return replace(draft, paths=Paths(draft.paths.committed, best, [-1]), drawn_from=draft.drawn_from[:1])


def siblings_from_the_whole_law(draft: Draft) -> Draft:
    whole = [draft.drawn_from[draft.paths.node_parents.index(parent)] for parent in draft.paths.node_parents]
    return replace(draft, drawn_from=whole)


@pytest.mark.parametrize("twin", [without_unlikely_nodes, greedy_as_if_drawn, siblings_from_the_whole_law])
def test_a_draft_that_was_not_drawn_as_it_says_is_seen(twin: Callable[[Draft], Draft]) -> None:
    params = ChoiceParams(rule="rejection")
    counts = outputs(params, SHAPE, NUM_TRIALS_OF_TWINS, twin)
    assert chi_square_p_value(counts, sequence_law(params)) < FALSE_ALARM


# Opposite logits, narrow vocabulary: the draft is nearly always rejected, so nearly every token is of the residual.


def opposite_logits(num_trials: int, drawing_stream: int, rule: str) -> float:
    vocab = 16
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 1.2
    target, draft = logits.softmax(0).numpy(), (-logits).softmax(0).numpy()
    whole = DraftLaw(tuple(range(vocab)), tuple(draft.tolist()))
    cumulative = draft.cumsum()
    of_target = np.stack([target, target])
    counts: Counter[int] = Counter()
    for seed in range(num_trials):
        drawn = int(np.searchsorted(cumulative, uniform(seed, 9, index=1, stream=drawing_stream), side="right"))
        draws = StreamDraws(seed, 9)
        if rule == "block":
            walked = walk_by_blocks(of_target, [drawn], [whole], draws)
        else:
            walked = walk_by_rejection(of_target, [drawn], [-1], [whole], draws)
        counts[walked.tokens[0]] += 1
    return chi_square_p_value(counts, dict(enumerate(target.tolist())))


def test_opposite_logits_over_a_narrow_vocabulary_give_the_targets_law() -> None:
    assert opposite_logits(200_000, 1, "rejection") > FALSE_ALARM


def test_opposite_logits_through_block_verification_give_the_targets_law() -> None:
    assert opposite_logits(20_000, 1, "block") > FALSE_ALARM


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_a_stream_that_drafter_and_rule_share_is_seen(rule: str) -> None:
    assert opposite_logits(5_000, 2, rule) < FALSE_ALARM


def test_one_committed_len_is_always_decided_alike_and_no_two_alike() -> None:
    def numbers(seed: int, committed_len: int) -> list[int]:
        draws = StreamDraws(seed, committed_len)
        return [draws.pick(np.ones(1000)) for _ in range(8)]

    assert numbers(1, 2) == numbers(1, 2)
    assert len({tuple(numbers(seed, length)) for seed, length in product(range(4), range(4))}) == 16


def test_shared_noise_matches_as_often_as_theory_says() -> None:
    """The bound of the exact tests is reached by the noise that is really used. Binomial, FALSE_ALARM two-sided."""
    params = ChoiceParams()
    first, second = law_after((), params), law_after((), params, "draft")
    pairs = list(zip(first, second, strict=True))
    expected = sum(1 / sum(max(x / a, y / b) for x, y in pairs) for a, b in pairs)
    num = 8_000
    shared = gumbel_rows(range(num), [5] * num, VOCAB).numpy()
    matches = int(((np.log(first) + shared).argmax(1) == (np.log(second) + shared).argmax(1)).sum())

    counts = {True: matches, False: num - matches}
    assert chi_square_p_value(counts, {True: expected, False: 1 - expected}) > FALSE_ALARM
    assert chi_square_p_value(counts, {True: expected + 0.02, False: 0.98 - expected}) < FALSE_ALARM


# Typical acceptance.


def test_typical_accepts_exactly_what_exceeds_medusas_threshold() -> None:
    law = np.array([0.5, 0.3, 0.12, 0.08, 0.0])
    entropy = -sum(share * np.log(share) for share in law if share)
    assert threshold(law) == pytest.approx(min(EPSILON, DELTA * np.exp(-entropy)))
    laws_there = np.stack([law] * 6)
    accepted = [token for token in range(5) if walk_if_typical(laws_there, [4] * 6, [token], [-1]).path]
    assert accepted == [token for token in range(5) if law[token] > threshold(law)]
    assert 0 < len(accepted) < 5


def test_typical_takes_the_deepest_path_and_stops_at_an_end() -> None:
    laws_there = np.full((5, 4), 0.25)
    walked = walk_if_typical(laws_there, [0, 1, 2, 3, 0], [0, 1, 2, 3], [-1, -1, 1, 2])
    assert (walked.path, walked.tokens) == ((1, 2, 3), (1, 2, 3, 0))
    ended = walk_if_typical(laws_there, [0, 1, 2, 3, 0], [0, 1, 2, 3], [-1, -1, 1, 2], ends={2})
    assert (ended.path, ended.tokens) == ((1,), (1, 2))
