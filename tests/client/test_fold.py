"""Folding messages into an answer: the order is a contract."""

from __future__ import annotations

import pytest

from outrider.errors import InternalError
from outrider.fold import Fold
from outrider.types import DrafterStats, SpeculationStats, Started, Usage
from outrider.v1 import inference_pb2 as pb
from tests.client.fake_inference import CHUNKS, TEXT, TOKEN_IDS, finished, tokens

STARTED = pb.GenerateResponse(started=pb.Started(request_id="r", model="tiny", seed=7, num_prompt_tokens=3))
TOKENS = tokens(CHUNKS[0])


def fold_of(*messages: pb.GenerateResponse) -> Fold:
    fold = Fold()
    for message in messages:
        fold.add(message)
    return fold


def test_a_whole_answer_is_folded_with_every_field() -> None:
    answer = fold_of(STARTED, *map(tokens, CHUNKS), finished()).end()
    assert (answer.request_id, answer.model, answer.seed) == ("r", "tiny", 7)
    assert (answer.token_ids, answer.text) == (TOKEN_IDS, TEXT)
    assert answer.texts == ("The", " sky", " is", "", " été", ".")
    assert answer.logprobs is None
    assert answer.sources == ("target", "draft", "draft", "target", "draft", "target")
    assert (answer.finish_reason, answer.matched_stop) == ("stop", "END")
    assert answer.usage == Usage(7, 4, 6, 0.25, 0.5, 2.0)
    assert answer.speculation == SpeculationStats("auto", "coupled", False, 3, 8, 3, (DrafterStats("ngram", 8, 3),))
    assert answer.tokens_per_pass == 2.0


def test_started_is_known_from_the_first_message() -> None:
    assert Fold().started is None
    assert fold_of(STARTED).started == Started("r", "tiny", 7, 3)


def test_an_answer_goes_on_from_the_same_prompt_alone() -> None:
    """Which an older server does not tell by more than the number of its tokens."""

    def from_prompt(prompt_hash: int) -> pb.GenerateResponse:
        message = pb.GenerateResponse()
        message.CopyFrom(STARTED)
        message.started.prompt_hash = prompt_hash
        return message

    for before, after in ((5, 5), (0, 5), (5, 0)):
        fold = fold_of(from_prompt(before), TOKENS)
        fold.resume()
        fold.add(from_prompt(after))
    fold = fold_of(from_prompt(5), TOKENS)
    fold.resume()
    with pytest.raises(InternalError, match="went on with another request"):
        fold.add(from_prompt(6))


def test_add_returns_the_tokens_of_its_message_only() -> None:
    fold = fold_of(STARTED, TOKENS)
    assert [token.id for token in fold.add(tokens(CHUNKS[1]))] == [12, 13, 14]
    assert fold.add(finished()) == ()


def test_an_answer_without_tokens_is_an_answer() -> None:
    answer = fold_of(STARTED, finished(0)).end()
    assert (answer.text, answer.token_ids, answer.tokens, answer.logprobs) == ("", (), (), None)


@pytest.mark.parametrize("num_top", [None, 0, 2])
def test_an_answers_tokens_are_those_that_were_streamed(num_top: int | None) -> None:
    fold = fold_of(STARTED)
    streamed = [token for chunk in CHUNKS for token in fold.add(tokens(chunk, num_top=num_top))]
    fold.add(finished())
    assert list(fold.end().tokens) == streamed


def test_log_probabilities_are_parallel_to_the_tokens() -> None:
    answer = fold_of(STARTED, *(tokens(chunk, num_top=2) for chunk in CHUNKS), finished()).end()
    assert answer.logprobs is not None
    assert [entry.top_ids for entry in answer.logprobs] == [(i, i + 1) for i in TOKEN_IDS]
    assert {(entry.logprob, entry.top_logprobs) for entry in answer.logprobs} == {(-0.25, (-0.25, -0.75))}


def test_log_probabilities_of_some_tokens_only_are_the_servers_fault() -> None:
    with pytest.raises(InternalError, match="of 1 among 4 tokens"):
        fold_of(STARTED, tokens(CHUNKS[0], num_top=1), tokens(CHUNKS[1]), finished())


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ((TOKENS,), "tokens before started"),
        ((finished(),), "finished before started"),
        ((STARTED, STARTED), "started twice"),
        ((STARTED, finished(), TOKENS), "tokens after finished"),
        ((STARTED, finished(), finished()), "finished after finished"),
        ((STARTED, pb.GenerateResponse()), "does not know"),
    ],
)
def test_messages_out_of_order_are_the_servers_fault(messages: tuple[pb.GenerateResponse, ...], complaint: str) -> None:
    with pytest.raises(InternalError, match=complaint):
        fold_of(*messages)


def test_an_end_without_finished_says_how_far_it_came() -> None:
    with pytest.raises(InternalError, match="ended after 4 tokens"):
        fold_of(STARTED, TOKENS, tokens(CHUNKS[1])).end()
