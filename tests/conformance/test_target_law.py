"""The law that the suite computes from a server's log-probabilities is the one that its answers have."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from cluster.conformance.asking import Asker
from cluster.conformance.deployment import describe
from cluster.conformance.law import ask_law, find_context
from outrider import AsyncClient
from tests.client.fake_inference import serving
from tests.conformance.toy import END, Toy, logits_after


@pytest.mark.parametrize("temperature", [1.0, 1.5, 0.5])
async def test_it_is_the_softmax_over_the_allowed_tokens_at_each_prefix(temperature: float) -> None:
    with serving(Toy().serve()) as address:
        async with AsyncClient(address) as client:
            asker = Asker(client, concurrency=4, timeout_s=60, on_answers=lambda _: None)
            context = await find_context(asker, await describe(client, is_strict=False))
            law = await ask_law(asker, context, 3)
    assert len(context.allowed) == 3
    assert END not in context.allowed
    found = law.of_sequences(3, temperature)
    assert math.fsum(found.values()) == pytest.approx(1)
    allowed = list(context.allowed)
    for sequence in product(allowed, repeat=3):
        expected = 1.0
        for i, token in enumerate(sequence):
            weights = np.exp(logits_after((*context.prompt, *sequence[:i]))[allowed] / temperature)
            expected *= weights[allowed.index(token)] / weights.sum()
        assert found[sequence] == pytest.approx(expected, rel=1e-5)


async def test_whatever_the_answer_begins_with_the_prompt_has_had_every_token_after_it() -> None:
    with serving(Toy().serve()) as address:
        async with AsyncClient(address) as client:
            asker = Asker(client, concurrency=4, timeout_s=60, on_answers=lambda _: None)
            context = await find_context(asker, await describe(client, is_strict=False))
    pairs = set(zip(context.prompt, context.prompt[1:], strict=False))
    assert pairs >= set(product(context.allowed, repeat=2))
