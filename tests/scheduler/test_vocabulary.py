"""Which vocabularies go together, and what is said of those that don't."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from outrider.v1.worker_pb2 import Vocabulary
from scheduler.vocabulary import mismatch


def vocabulary(tokens: Sequence[str], size: int | None = None) -> Vocabulary:
    return Vocabulary(size=len(tokens) if size is None else size, tokens=tokens)


TARGET = vocabulary(["a", "b", "", "Ġthe"], size=6)


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(TARGET, id="the same"),
        pytest.param(vocabulary(["a", "b", "", "Ġthe"], size=8), id="padded to another size"),
        pytest.param(vocabulary(["a", "b", "", "Ġthe", "", ""]), id="padding that is spelt out"),
        pytest.param(Vocabulary(), id="drafts by id alone"),
        pytest.param(Vocabulary(size=6), id="without a tokenizer, of the same size"),
    ],
)
def test_vocabularies_with_the_same_spellings_go_together(own: Vocabulary) -> None:
    assert mismatch(own, TARGET) == ""
    assert own.size == 0 or mismatch(TARGET, own) == ""


@pytest.mark.parametrize(
    ("own", "said"),
    [
        pytest.param(["a", "c", "", "Ġthe"], "1: 'c' in the drafter, 'b' in the target", id="another spelling"),
        pytest.param(["b", "a", "", "Ġthe"], "0: 'b' in the drafter, 'a' in the target", id="another order"),
        pytest.param(["a", "b", "c", "Ġthe"], "2: 'c' in the drafter, nothing in the target", id="one more"),
        pytest.param(["a", "b"], "3: nothing in the drafter, 'Ġthe' in the target", id="fewer"),
    ],
)
def test_a_mismatch_names_both_sizes_the_first_difference_and_the_way_out(own: list[str], said: str) -> None:
    complaint = mismatch(vocabulary(own), TARGET)

    assert f"it has a vocabulary of {len(own)} tokens, the target one of 6;" in complaint
    assert f"the first token that differs is {said};" in complaint
    assert "universal:PATH_OR_NAME" in complaint


def test_without_a_tokenizer_another_size_is_a_mismatch() -> None:
    assert "of 5 tokens, the target one of 6" in mismatch(Vocabulary(size=5), TARGET)
