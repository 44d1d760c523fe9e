"""The messages of one answer's stream: started, tokens …, finished."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.types import FinishReason, Token, TokenLogprobs, TokenSource
from outrider.v1 import inference_pb2 as pb
from scheduler.events import Finish, NewRequest, RequestStats

_SOURCES: dict[TokenSource, pb.TokenSource] = {"target": pb.TOKEN_SOURCE_TARGET, "draft": pb.TOKEN_SOURCE_DRAFT}
_REASONS: dict[FinishReason, pb.FinishReason] = {
    "end": pb.FINISH_REASON_END,
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
}


class SentTokens:
    """Counts what a client was sent, which may be less than what was committed: a stop string cuts the rest."""

    def __init__(self, index: int, num_held: int) -> None:
        self.index = index  # of the answer
        self.num_tokens = num_held  # by the client, from an earlier call
        self.num_accepted = 0

    def add(self, tokens: Sequence[Token]) -> pb.GenerateResponse:
        self.num_tokens += len(tokens)
        self.num_accepted += sum([token.source == "draft" for token in tokens])
        response = pb.GenerateResponse(index=self.index)
        message = response.tokens  # filled in place: a message that is put into another one is copied
        message.ids.extend([token.id for token in tokens])
        message.texts.extend([token.text for token in tokens])
        message.sources.extend([_SOURCES[token.source] for token in tokens])
        message.logprobs.extend([_logprobs(token.logprobs) for token in tokens if token.logprobs is not None])
        return response


def _logprobs(entry: TokenLogprobs) -> pb.TokenLogprobs:
    return pb.TokenLogprobs(logprob=entry.logprob, top_ids=entry.top_ids, top_logprobs=entry.top_logprobs)


def started(request_id: str, model: str, new: NewRequest, index: int, prompt_hash: int) -> pb.GenerateResponse:
    message = pb.Started(
        request_id=request_id,
        model=model,
        seed=new.opening.sampling.seed,
        num_prompt_tokens=len(new.prompt),
        max_tokens=new.max_tokens,
        prompt_hash=prompt_hash,
    )
    return pb.GenerateResponse(index=index, started=message)


def finished(new: NewRequest, finish: Finish, sent: SentTokens, matched_stop: str) -> pb.GenerateResponse:
    reason: FinishReason = "stop" if matched_stop or finish.reason is None else finish.reason
    message = pb.Finished(
        reason=_REASONS[reason],
        matched_stop=matched_stop,
        matched_stop_token_id=0 if matched_stop else finish.end_token_id or 0,
        usage=_usage(new, finish.stats, sent),
        speculation=_speculation(new, finish.stats, sent),
    )
    return pb.GenerateResponse(index=sent.index, finished=message)


def _usage(new: NewRequest, stats: RequestStats, sent: SentTokens) -> pb.Usage:
    finished_s = stats.submitted_s if stats.finished_s is None else stats.finished_s
    started_s = finished_s if stats.started_s is None else stats.started_s
    first_token_s = finished_s if stats.first_token_s is None else stats.first_token_s
    return pb.Usage(
        num_prompt_tokens=len(new.prompt),
        num_cached_prompt_tokens=stats.num_cached_prompt_tokens,
        num_completion_tokens=sent.num_tokens,
        queue_s=started_s - stats.submitted_s,
        time_to_first_token_s=first_token_s - stats.submitted_s,
        duration_s=finished_s - stats.submitted_s,
    )


def _speculation(new: NewRequest, stats: RequestStats, sent: SentTokens) -> pb.SpeculationStats:
    return pb.SpeculationStats(
        mode=pb.SPECULATION_MODE_AUTO if new.speculates else pb.SPECULATION_MODE_OFF,
        acceptance_rule=new.opening.acceptance_rule,
        is_lossy=new.opening.acceptance_rule == pb.ACCEPTANCE_RULE_TYPICAL,
        num_passes=stats.num_passes,
        num_drafted_nodes=stats.num_drafted_nodes,
        num_accepted_tokens=sent.num_accepted,
        drafters=[
            pb.DrafterStats(
                name=name,
                num_drafted_nodes=counts.num_drafted_nodes,
                num_accepted_tokens=counts.num_accepted_tokens,
            )
            for name, counts in sorted(stats.drafters.items())
        ],
        num_hits=stats.num_hits,
        mean_hit_depth=stats.hit_depth / stats.num_hits if stats.num_hits else 0.0,
    )
