"""Log-probabilities of the target's own law."""

from __future__ import annotations

import pytest
import torch

from workers.choice.logprobs import logprobs_of


def test_they_are_those_of_the_softmax_with_the_token_first_and_then_the_best() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 3
    expected = logits.double().log_softmax(-1)

    entries = logprobs_of(logits, [7, 0, 49], 4)

    for row, token, entry in zip(expected, [7, 0, 49], entries, strict=True):
        best = row.sort(descending=True)
        assert list(entry.ids) == [token, *best.indices[:4].tolist()]
        assert entry.logprobs == pytest.approx([float(row[token]), *best.values[:4].tolist()], abs=1e-12)


def test_of_equals_the_lowest_ids_come_first_and_no_more_than_there_are() -> None:
    assert list(logprobs_of(torch.tensor([[1.0, 2.0, 1.0, 1.0]]), [3], 3)[0].ids) == [3, 1, 0, 2]
    assert list(logprobs_of(torch.zeros(1, 2), [0], 20)[0].ids) == [0, 0, 1]


def test_without_alternatives_only_the_token_itself_is_there() -> None:
    assert [list(entry.ids) for entry in logprobs_of(torch.zeros(2, 4), [1, 2], 0)] == [[1], [2]]
