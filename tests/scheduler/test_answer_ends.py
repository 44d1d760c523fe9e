"""How an answer's stream ends, whatever the core says last."""

from __future__ import annotations

import asyncio

import pytest
from tokenizers import Tokenizer as FastTokenizer

from outrider.errors import NoTokenLeft
from outrider.v1 import inference_pb2 as pb
from scheduler.core import CoreConfig
from scheduler.driver import Driver
from scheduler.events import Emit, Finish, RequestStats
from scheduler.information import ServiceLimits
from scheduler.mailbox import Mailbox
from scheduler.service import InferenceService, _Answer
from scheduler.text import TextStream
from tests.scheduler.classes import asked

TIMEOUT_S = 30.0
FAILED = Finish(1, None, None, NoTokenLeft("no token is left"), RequestStats(0.0))


async def streamed(tokenizer: FastTokenizer, text: str, stop: str, *, fails_later: bool) -> list[pb.GenerateResponse]:
    """All that a client gets of an answer whose request fails behind `text`: at once, or after the text was read."""
    service = InferenceService(Driver(CoreConfig(), max_queued_requests=4), ServiceLimits(4, 4), "test")
    ids, mailbox = tokenizer.encode(text).ids, Mailbox()
    mailbox.put(Emit(1, ids, ["target"] * len(ids), [None] * len(ids)))
    if not fails_later:
        mailbox.put(FAILED)
    mailbox.wake()
    responses: list[pb.GenerateResponse] = []
    read = TextStream(tokenizer, stop=[stop], include_stop=False, skip_special_tokens=True)
    async with asyncio.timeout(TIMEOUT_S):
        async for response in service._stream(_Answer(0, asked(1), read, 1), mailbox):
            responses.append(response)
            if mailbox.finish is None:
                mailbox.put(FAILED)
                mailbox.wake()
    return responses


@pytest.mark.parametrize("fails_later", [False, True])
async def test_an_answer_that_a_stop_string_has_ended_ends_well(
    fast_tokenizer: FastTokenizer, fails_later: bool
) -> None:
    tokens, end = await streamed(fast_tokenizer, "the END", "END", fails_later=fails_later)

    assert "".join(tokens.tokens.texts) == "the "
    assert (end.finished.reason, end.finished.matched_stop) == (pb.FINISH_REASON_STOP, "END")


@pytest.mark.parametrize("fails_later", [False, True])
async def test_an_answer_that_nothing_has_ended_fails_with_its_request(
    fast_tokenizer: FastTokenizer, fails_later: bool
) -> None:
    with pytest.raises(NoTokenLeft):
        await streamed(fast_tokenizer, "the rain", "END", fails_later=fails_later)
