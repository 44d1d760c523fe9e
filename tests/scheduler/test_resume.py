"""What follows the tokens that a client holds is what would have followed them, wherever the stream broke."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

from outrider.errors import InvalidRequest
from outrider.types import Token
from outrider.v1.inference_pb2 import SamplingParams
from outrider.v1.worker_pb2 import OpenRequest
from scheduler.events import Finish, NewRequest
from scheduler.resume import replayed
from scheduler.text import TextStream

END = 1  # "</s>"
LETTER_STOP = 40

T = TypeVar("T")


def stream_of(tokenizer: FastTokenizer, stop: Sequence[str] = (), min_tokens: int = 0) -> TextStream:
    return TextStream(tokenizer, stop=stop, include_stop=False, skip_special_tokens=True, min_tokens=min_tokens)


def read(stream: TextStream, ids: Sequence[int]) -> tuple[list[Token], str]:
    """All tokens that the stream gives out for these, and the stop string that ended it."""
    tokens: list[Token] = []
    for token_id in ids:
        piece = stream.push([token_id], ["target"], [None])
        tokens.extend(piece.tokens)
        if piece.matched_stop:
            return tokens, piece.matched_stop
    return [*tokens, *stream.flush().tokens], ""


@settings(max_examples=300, deadline=None)
@given(
    stop=st.lists(st.text(alphabet="theEND. 🦊ü", min_size=1, max_size=4), max_size=3),
    min_tokens=st.integers(0, 4),
    data=st.data(),
)
def test_a_text_goes_on_as_it_would_have_wherever_it_broke(
    any_tokenizer: FastTokenizer, stop: list[str], min_tokens: int, data: st.DataObject
) -> None:
    """Of any tokens: most of these end inside a character somewhere."""
    ids = data.draw(st.lists(st.integers(2, any_tokenizer.get_vocab_size() - 1), max_size=20))
    whole, matched_stop = read(stream_of(any_tokenizer, stop, min_tokens), ids)
    num_held = data.draw(st.integers(0, len(whole)))
    stream = stream_of(any_tokenizer, stop, min_tokens)
    known = stream.replay([token.id for token in whole[:num_held]])
    assert len(known.tokens) <= num_held
    if known.matched_stop:
        assert (num_held, known.matched_stop) == (len(whole), matched_stop)
    else:
        assert read(stream, ids[num_held:]) == (whole[num_held:], matched_stop)


def request(resumed: Sequence[int], max_tokens: int = 8) -> NewRequest:
    return NewRequest(
        number=1,
        prompt=[5],
        max_tokens=max_tokens,
        end_token_ids=frozenset({END}),
        stop_token_ids=frozenset({LETTER_STOP}),
        opening=OpenRequest(sampling=SamplingParams(seed=1)),
        speculates=True,
        drafters=frozenset(),
        max_nodes=4,
        deadline_s=None,
        resumed=resumed,
    )


class Counted(frozenset[int]):
    """Counts how often it is united with another set."""

    num_unions = 0

    def __or__(self, other: AbstractSet[T]) -> frozenset[int | T]:
        Counted.num_unions += 1
        return super().__or__(other)


def end_of(tokenizer: FastTokenizer, resumed: Sequence[int], stop: Sequence[str] = ()) -> tuple[object, ...]:
    end, matched_stop = replayed(request(resumed), stream_of(tokenizer, stop), 0.0)
    return (end.reason, end.end_token_id, matched_stop) if isinstance(end, Finish) else (None, None, matched_stop)


def test_an_answer_that_is_whole_already_ends_as_it_ended(fast_tokenizer: FastTokenizer) -> None:
    end = fast_tokenizer.encode("END").ids
    assert end_of(fast_tokenizer, [7, 8]) == (None, None, "")
    assert end_of(fast_tokenizer, [7, 8, END]) == ("end", END, "")
    assert end_of(fast_tokenizer, [7, LETTER_STOP]) == ("stop", LETTER_STOP, "")
    assert end_of(fast_tokenizer, [7] * 8) == ("length", None, "")
    assert end_of(fast_tokenizer, [7, *end], ["END"]) == ("stop", None, "END")


@pytest.mark.parametrize(
    ("resumed", "stop", "complaint"),
    [
        ([7, END, 7], [], "resume_from has 3 tokens: token 1 ends the answer after 2 of them"),
        ([LETTER_STOP, 7], [], "resume_from has 2 tokens: token 40 ends the answer after 1 of them"),
        ([7] * 9, [], "resume_from has 9 tokens: max_tokens ends the answer after 8 of them"),
        ([END] * 9, [], "resume_from has 9 tokens: max_tokens ends"),  # what is too long by itself is not replayed
        ("ENDEND", ["D"], "the stop string 'D' ends the answer after"),
    ],
)
def test_tokens_behind_an_answers_end_are_refused(
    fast_tokenizer: FastTokenizer, resumed: str | list[int], stop: list[str], complaint: str
) -> None:
    ids = fast_tokenizer.encode(resumed).ids if isinstance(resumed, str) else resumed
    with pytest.raises(InvalidRequest) as caught:
        replayed(request(ids), stream_of(fast_tokenizer, stop), 0.0)
    assert complaint in caught.value.message


def test_the_tokens_that_end_an_answer_are_gathered_once_however_many_are_held(fast_tokenizer: FastTokenizer) -> None:
    """A request may name a whole vocabulary of them."""
    new = replace(request([7] * 7), end_token_ids=Counted({END}))
    replayed(new, stream_of(fast_tokenizer), 0.0)
    assert Counted.num_unions == 1
