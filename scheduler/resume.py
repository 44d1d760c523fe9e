"""Resuming a stream that broke: the client sends the tokens that it holds, and gets those that would have followed.

The tokens go where they would be had they been committed here, so the rest follows by itself: a choice depends on the
path, the seed and the position alone. What is left to do is to see whether they are an answer's beginning at all, and
whether they are the whole of it already, its end having been lost with the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from outrider.errors import InvalidRequest
from outrider.packing import pack_i32
from outrider.v1 import inference_pb2 as pb
from scheduler.events import Finish, NewRequest, RequestStats
from scheduler.sampling import check_num_ids, check_token_ids
from scheduler.text import TextStream


def check_resume(request: pb.GenerateRequest, vocab_size: int, max_context: int) -> None:
    """Raises InvalidRequest."""
    held = request.resume_from.ids
    if not held:
        return
    check_num_ids("resume_from.ids", held, max_context, f"the model's context is {max_context} tokens")
    check_token_ids("resume_from.ids", held, vocab_size)
    if request.sampling.n > 1:
        raise InvalidRequest.of("sampling.n", request.sampling.n, "answers are resumed one by one, each with its seed")
    if not request.sampling.HasField("seed"):
        raise InvalidRequest("sampling.seed is not set: resume_from needs the seed that started the answer")


def prompt_hash(prompt: Sequence[int]) -> int:
    """64 bits by which a client sees that its answer goes on from the same prompt. Never 0, which says nothing."""
    return int.from_bytes(blake2b(pack_i32(prompt), digest_size=8, person=b"outrider-prompt").digest(), "little") or 1


def replayed(new: NewRequest, text: TextStream, now_s: float) -> tuple[Finish | None, str]:
    """Bring the text to where the client's tokens end. CPU work: call it in a thread.

    Returns the end of the answer, if these tokens are all of it, and the stop string that ended it, if one did. Raises
    InvalidRequest where the answer would have ended before the last of them.
    """
    if not new.resumed:
        return None, ""
    num_held, last = len(new.resumed), new.resumed[-1]
    if num_held > new.max_tokens:
        _refuse(new.max_tokens, num_held, "max_tokens ends the answer")
    known = text.replay(new.resumed)
    if known.matched_stop and len(known.tokens) < num_held:
        _refuse(len(known.tokens), num_held, f"the stop string {known.matched_stop!r} ends the answer")
    ends = new.end_token_ids | new.stop_token_ids
    for place, token in enumerate(new.resumed[:-1]):
        if token in ends:
            _refuse(place + 1, num_held, f"token {token} ends the answer")
    stats = RequestStats(submitted_s=now_s, finished_s=now_s)
    if known.matched_stop:
        return Finish(new.number, "stop", None, None, stats), known.matched_stop
    if last in ends:
        return Finish(new.number, "end" if last in new.end_token_ids else "stop", last, None, stats), ""
    return (Finish(new.number, "length", None, None, stats) if num_held == new.max_tokens else None), ""


def _refuse(num_tokens: int, num_held: int, reason: str) -> None:
    raise InvalidRequest(f"resume_from has {num_held} tokens: {reason} after {num_tokens} of them")
