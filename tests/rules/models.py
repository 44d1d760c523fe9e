"""Toy targets and drafters: a law after each path, in fractions."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np

from outrider.draft_law import DraftLaw
from outrider.tree import ROOT
from workers.target.rules.laws import Array

Model = Callable[[Sequence[int]], Array]  # path behind the root -> [vocab] of Fractions


def random_model(seed: str, vocab: int, *, zeros: float = 0.2) -> Model:
    """Any law after any path; some tokens are impossible."""

    def law(path: Sequence[int]) -> Array:
        rng = random.Random(f"{seed}:{list(path)}")
        weights = [0 if rng.random() < zeros else rng.randint(1, 9) for _ in range(vocab)]
        weights[rng.randrange(vocab)] += 1
        return np.array([Fraction(weight, sum(weights)) for weight in weights], dtype=object)

    return law


def sequence_law(target: Model, vocab: int, length: int) -> dict[tuple[int, ...], Fraction]:
    """Of the target's own first tokens."""
    law = {}
    for sequence in product(range(vocab), repeat=length):
        probability = Fraction(1)
        for i, token in enumerate(sequence):
            probability *= target(sequence[:i])[token]
        if probability:
            law[sequence] = probability
    return law


def sparse(law: Array) -> DraftLaw:
    ids = tuple(i for i, share in enumerate(law) if share > 0)
    return DraftLaw(ids, tuple(law[i] for i in ids))


def draw_tree(drafter: Model, shape: Sequence[int], pick: Callable[[Any], int]) -> tuple[list[int], list[DraftLaw]]:
    """Tokens of a tree of this shape, siblings drawn without replacement, and what each was drawn from.

    A law that has no token left for a sibling ends the tree there: the rest of `shape` is left out.
    """
    tokens: list[int] = []
    drawn_from: list[DraftLaw] = []
    for parent in shape:
        siblings = [tokens[i] for i, other in enumerate(shape[: len(tokens)]) if other == parent]
        whole = sparse(drafter(path_of(parent, tokens, shape)))
        if len(siblings) == len(whole.ids):
            break
        law = whole.without(siblings)
        tokens.append(law.ids[pick(np.array(law.probabilities, dtype=object))])
        drawn_from.append(law)
    return tokens, drawn_from


def path_of(node: int, tokens: Sequence[int], parents: Sequence[int]) -> list[int]:
    return [] if node == ROOT else [*path_of(parents[node], tokens, parents), tokens[node]]


def laws_along(target: Model, tokens: Sequence[int], parents: Sequence[int]) -> Array:
    """[1 + num_nodes, vocab]"""
    return np.array([target(path_of(node, tokens, parents)) for node in range(-1, len(tokens))])
