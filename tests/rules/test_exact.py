"""In fractions: what comes out has the target's law, identically, and as much is accepted as theory says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest

from tests.rules.enumeration import Branching, law_of
from tests.rules.models import Model, draw_tree, laws_along, path_of, random_model, sequence_law
from workers.target.rules.block import walk_by_blocks
from workers.target.rules.laws import point_mass
from workers.target.rules.rejection import walk_by_rejection
from workers.target.walk import Walk, walk

CHAINS = [[-1], [-1, 0], [-1, 0, 1]]
TREES = [[-1, -1], [-1, -1, -1], [-1, 0, -1], [-1, -1, 0, 1], [-1, -1, 0, 0, 2], [-1, 0, 0, -1]]
Rule = Callable[..., Walk]


def output_law(
    rule: Rule, target: Model, drafter: Model, shape: Sequence[int], length: int
) -> dict[tuple[int, ...], Fraction]:
    """Of the first tokens: those of one walk, and what the target adds."""

    def procedure(branch: Branching) -> tuple[int, ...]:
        tokens, drawn_from = draw_tree(drafter, shape, branch.pick)
        parents = shape[: len(tokens)]
        output = list(rule(laws_along(target, tokens, parents), tokens, parents, drawn_from, branch).tokens)
        while len(output) < length:
            output.append(branch.pick(target(output)))
        return tuple(output[:length])

    return law_of(procedure)


def block(laws: object, tokens: Sequence[int], parents: object, drawn_from: object, draws: object) -> Walk:
    return walk_by_blocks(laws, tokens, drawn_from, draws)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", CHAINS + TREES, ids=str)
@pytest.mark.parametrize("vocab", [2, 3])
def test_rejection_gives_the_targets_law(vocab: int, shape: list[int]) -> None:
    for seed in range(2):
        target, drafter = random_model(f"target {seed}", vocab), random_model(f"draft {seed}", vocab)
        assert output_law(walk_by_rejection, target, drafter, shape, 3) == sequence_law(target, vocab, 3)


@pytest.mark.parametrize("shape", [[-1, 0], [-1, -1, -1], [-1, -1, 0]], ids=str)
def test_rejection_gives_the_targets_law_over_five_tokens(shape: list[int]) -> None:
    target, drafter = random_model("target", 5), random_model("draft", 5)
    assert output_law(walk_by_rejection, target, drafter, shape, 2) == sequence_law(target, 5, 2)


@pytest.mark.parametrize("shape", CHAINS, ids=str)
@pytest.mark.parametrize("vocab", [2, 3])
def test_block_verification_gives_the_targets_law(vocab: int, shape: list[int]) -> None:
    length = min(len(shape) + 1, 6 - vocab)
    for seed in range(3):
        target, drafter = random_model(f"target {seed}", vocab), random_model(f"draft {seed}", vocab)
        assert output_law(block, target, drafter, shape, length) == sequence_law(target, vocab, length)


@pytest.mark.parametrize("rule", [walk_by_rejection, block])
def test_a_drafter_that_is_the_target_is_always_accepted(rule: Rule) -> None:
    target = random_model("same", 3)

    def num_accepted(branch: Branching) -> int:
        tokens, drawn_from = draw_tree(target, [-1, 0, 1], branch.pick)
        return len(rule(laws_along(target, tokens, [-1, 0, 1]), tokens, [-1, 0, 1], drawn_from, branch).path)

    assert law_of(num_accepted) == {3: 1}


@pytest.mark.parametrize("rule", [walk_by_rejection, block])
def test_disjoint_laws_give_the_targets(rule: Rule) -> None:
    def target(path: Sequence[int]) -> np.ndarray:  # type: ignore[type-arg]
        return np.array([Fraction(1, 3), Fraction(2, 3), Fraction(0), Fraction(0)], dtype=object)

    def drafter(path: Sequence[int]) -> np.ndarray:  # type: ignore[type-arg]
        return np.array([Fraction(0), Fraction(0), Fraction(1, 2), Fraction(1, 2)], dtype=object)

    assert output_law(rule, target, drafter, [-1, 0], 2) == sequence_law(target, 4, 2)


def test_nodes_that_were_not_drawn_are_accepted_with_the_targets_probability_of_them() -> None:
    """A deterministic drafter: any tokens will do, whatever they are."""
    target = random_model("target", 4, zeros=0)
    tokens, parents = [2, 0, 3], [-1, -1, 0]
    laws = laws_along(target, tokens, parents)
    masses = [point_mass(token) for token in tokens]

    def procedure(branch: Branching) -> tuple[int, ...]:
        output = list(walk_by_rejection(laws, tokens, parents, masses, branch).tokens)
        while len(output) < 3:
            output.append(branch.pick(target(output)))
        return tuple(output[:3])

    assert law_of(procedure) == sequence_law(target, 4, 3)


@pytest.mark.parametrize("rule", [walk_by_rejection, block])
def test_nothing_is_drawn_behind_a_token_that_ends_the_answer(rule: Rule) -> None:
    target, drafter = random_model("target", 3, zeros=0), random_model("draft", 3, zeros=0)

    def procedure(branch: Branching) -> tuple[int, ...]:
        tokens, drawn_from = draw_tree(drafter, [-1, 0], branch.pick)
        laws = laws_along(target, tokens, [-1, 0])
        if rule is block:
            walked = walk_by_blocks(laws, tokens, drawn_from, branch, ends={2})
        else:
            walked = walk_by_rejection(laws, tokens, [-1, 0], drawn_from, branch, ends={2})
        assert len(walked.tokens) == len(walked.path) + 1
        output = list(walked.tokens)
        assert 2 not in output[:-1]
        while len(output) < 2 and output[-1] != 2:
            output.append(branch.pick(target(output)))
        return tuple(output[:2])

    ended = {(2,): target([])[2]}
    for first, second in product(range(2), range(3)):
        ended[first, second] = target([])[first] * target([first])[second]
    assert law_of(procedure) == ended


def coupled_law(
    target: Model, draft: Callable[[int, int], int], vocab: int, shape: Sequence[int], length: int
) -> dict[tuple[int, ...], Fraction]:
    """The noise at a position is one number from [0, 1), which decides the target's choice after every path; the
    drafter knows it, and proposes `draft(the target's own choice there, number of the node)`."""

    def procedure(branch: Branching) -> tuple[int, ...]:
        noise: dict[int, Fraction] = {}

        def choice(path: Sequence[int]) -> int:
            if len(path) not in noise:
                paths = product(range(vocab), repeat=len(path))
                borders = sorted({border for any_path in paths for border in [0, *np.cumsum(target(any_path))]})
                widths = [high - low for low, high in pairwise(borders)]
                noise[len(path)] = borders[branch.pick(np.array(widths, dtype=object))]
            return int(np.argmax(np.cumsum(target(path)) > noise[len(path)]))

        tokens: list[int] = []
        for node, parent in enumerate(shape):
            tokens.append(draft(choice(path_of(parent, tokens, shape)), node))
        chosen = [choice(path_of(node, tokens, shape)) for node in range(-1, len(tokens))]
        output = list(walk(chosen, tokens, shape).tokens)
        while len(output) < length:
            output.append(choice(output))
        return tuple(output[:length])

    return law_of(procedure)


@pytest.mark.parametrize("shape", [[-1], [-1, 0], [-1, -1, 0, 1]], ids=str)
@pytest.mark.parametrize(
    "draft",
    [lambda chosen, node: chosen, lambda chosen, node: (chosen + 1) % 3, lambda chosen, node: (chosen + node) % 3],
    ids=["right", "wrong", "some of each"],
)
def test_coupled_gives_the_targets_law_whatever_the_draft_makes_of_the_noise(
    shape: list[int], draft: Callable[[int, int], int]
) -> None:
    target = random_model("target", 3)
    assert coupled_law(target, draft, 3, shape, 2) == sequence_law(target, 3, 2)


def total_variation(first: np.ndarray, second: np.ndarray) -> Fraction:  # type: ignore[type-arg]
    return Fraction(sum(abs(first - second)) / 2)


@pytest.mark.parametrize("seed", range(20))
def test_a_single_child_is_rejected_with_the_total_variation_of_both_laws(seed: int) -> None:
    target, drafter = random_model(f"target {seed}", 5), random_model(f"draft {seed}", 5)

    def is_accepted(branch: Branching) -> bool:
        tokens, drawn_from = draw_tree(drafter, [-1], branch.pick)
        return bool(walk_by_rejection(laws_along(target, tokens, [-1]), tokens, [-1], drawn_from, branch).path)

    assert law_of(is_accepted).get(True, 0) == 1 - total_variation(target([]), drafter([]))


def gumbel_match(first: np.ndarray, second: np.ndarray) -> Fraction:  # type: ignore[type-arg]
    """The probability that both laws choose the same token with the same Gumbel noise.

    Token i is both choices if and only if its exponential arrival is first in both races: the minimum of the others,
    each at the larger of its two relative rates. So it is 1 / sum over j of max(a_j / a_i, b_j / b_i).
    """
    total = Fraction(0)
    for a, b in zip(first, second, strict=True):
        if a and b:
            total += 1 / sum(max(x / a, y / b) for x, y in zip(first, second, strict=True))
    return total


@pytest.mark.parametrize("seed", range(20))
def test_shared_noise_matches_at_least_as_often_as_its_bound(seed: int) -> None:
    first, second = random_model(f"target {seed}", 5)([]), random_model(f"draft {seed}", 5)([])
    distance = total_variation(first, second)

    assert (1 - distance) / (1 + distance) <= gumbel_match(first, second) <= 1 - distance


@pytest.mark.parametrize("seed", range(12))
def test_block_verification_accepts_at_least_as_much_as_token_by_token(seed: int) -> None:
    target, drafter = random_model(f"target {seed}", 3), random_model(f"draft {seed}", 3)
    shape = [-1, 0, 1]

    def expected(rule: Rule) -> Fraction:
        def num_accepted(branch: Branching) -> int:
            tokens, drawn_from = draw_tree(drafter, shape, branch.pick)
            return len(rule(laws_along(target, tokens, shape), tokens, shape, drawn_from, branch).path)

        return sum((num * share for num, share in law_of(num_accepted).items()), Fraction(0))

    assert expected(block) >= expected(walk_by_rejection)


def stops_at_the_first_tail(laws, tokens, parents, drawn_from, draws):  # type: ignore[no-untyped-def]
    """A wrong twin of block verification: the longest accepted beginning, and not the longest that is accepted."""

    class Stopping:
        stopped = False

        def accepts(self, probability):  # type: ignore[no-untyped-def]
            self.stopped = self.stopped or not draws.accepts(probability)
            return not self.stopped

        pick = staticmethod(draws.pick)

    return walk_by_blocks(laws, tokens, drawn_from, Stopping())


def with_replacement(laws, tokens, parents, drawn_from, draws):  # type: ignore[no-untyped-def]
    """A wrong twin: every sibling is tried as if it had been drawn from the whole law."""
    whole = [drawn_from[list(parents).index(parent)] for parent in parents]
    return walk_by_rejection(laws, tokens, parents, whole, draws)


@pytest.mark.parametrize(
    ("rule", "shape"), [(stops_at_the_first_tail, [-1, 0, 1]), (with_replacement, [-1, -1])], ids=["stops", "replaces"]
)
def test_the_exact_law_sees_a_wrong_twin(rule: Rule, shape: list[int]) -> None:
    target, drafter = random_model("target 1", 3, zeros=0), random_model("draft 1", 3, zeros=0)
    assert output_law(rule, target, drafter, shape, 3) != sequence_law(target, 3, 3)
