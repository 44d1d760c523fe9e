"""The public gRPC service: validate, tokenise, admit, stream.

One request's way: `generate` → `_admit` (admission.py, tokenizer.py in a thread) → Driver.submit → the core …
→ Mailbox → TextStream → the client. Leaving `generate` in any way releases the request.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import grpc
import grpc.aio

from outrider.errors import DeadlineExceeded, InvalidRequest, OutriderError, ServerUnavailable
from outrider.guard import Context, abort
from outrider.v1 import inference_pb2 as pb
from outrider.v1.worker_pb2 import OpenRequest
from scheduler.admission import ModelLimits, check_request, encode_prompt, max_tokens_of
from scheduler.calls import Call, Calls
from scheduler.constraints import grammar_of
from scheduler.driver import Driver
from scheduler.events import Finish, NewRequest, Stopped
from scheduler.information import ServiceLimits, model_info, server_info
from scheduler.mailbox import Mailbox
from scheduler.malformed import Malformed, parser
from scheduler.merge import merged
from scheduler.opening import opening_of
from scheduler.responses import SentTokens, finished, started
from scheduler.resume import prompt_hash, replayed
from scheduler.seeds import answer_seed
from scheduler.served_model import ServedModel
from scheduler.tenants import tenant
from scheduler.text import TextStream

SERVICE_NAME = "outrider.v1.Inference"
REQUEST_ID_KEY = "outrider-request-id"
MAX_INLINE_TOKENS = 64  # whose text is made on the event loop: some microseconds each, a thread's turn takes longer
DRAINED_RETRY_S = 1.0  # until another server, or the next life of this one, may be there

Request = TypeVar("Request")
Response = TypeVar("Response")


@dataclass(frozen=True, slots=True)
class _Answer:
    """One of the answers to a request."""

    index: int
    new: NewRequest
    text: TextStream
    prompt_hash: int
    end: Finish | None = None  # set: the client holds all of it
    matched_stop: str = ""  # with `end`


class InferenceService:
    """Serves outrider.v1.Inference on a Driver."""

    def __init__(self, driver: Driver, limits: ServiceLimits, version: str) -> None:
        self._driver = driver
        self._limits = limits
        self._version = version
        self.calls = Calls(driver.end)
        self._num_coming = 0  # answers that have a place, and whose prompts are being tokenised
        self.is_draining = False
        self.scaling = pb.Scaling()  # as whoever scales the drafters tells it

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The service for a grpc.aio server. Requests are parsed by `malformed.parser`, which never raises."""
        handlers = {
            "Generate": grpc.unary_stream_rpc_method_handler(
                self._generate,
                request_deserializer=parser(pb.GenerateRequest),
                response_serializer=pb.GenerateResponse.SerializeToString,
            ),
            "GetModelInfo": grpc.unary_unary_rpc_method_handler(
                _unary(self._get_model_info),
                request_deserializer=parser(pb.GetModelInfoRequest),
                response_serializer=pb.GetModelInfoResponse.SerializeToString,
            ),
            "GetServerInfo": grpc.unary_unary_rpc_method_handler(
                _unary(self._get_server_info),
                request_deserializer=parser(pb.GetServerInfoRequest),
                response_serializer=pb.GetServerInfoResponse.SerializeToString,
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, handlers)

    async def _get_model_info(self, _: pb.GetModelInfoRequest) -> pb.GetModelInfoResponse:
        return model_info(self._driver)

    async def _get_server_info(self, _: pb.GetServerInfoRequest) -> pb.GetServerInfoResponse:
        info = server_info(self._driver, self._limits, self._version, is_draining=self.is_draining)
        info.scaling.CopyFrom(self.scaling)
        return info

    async def drain(self, limit_s: float) -> None:
        """Refuse new requests and let the others end; those that have not within `limit_s` end with UNAVAILABLE.

        Their clients go on with them where they are served next, from the tokens that they hold.
        """
        self.is_draining = True
        try:
            async with asyncio.timeout(limit_s):
                await self.calls.wait_idle()
        except TimeoutError:
            self.calls.end_all(_draining(f"the server is draining, and the request ran on for {limit_s:g} s"))

    # ── Generate ────────────────────────────────────────────────────────────────────────────────────

    async def _generate(
        self, request: pb.GenerateRequest | Malformed, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        is_admitted = False
        try:
            async with aclosing(self.generate(request, context)) as responses:
                async for response in responses:
                    is_admitted = True
                    yield response
        except OutriderError as err:
            if not is_admitted:
                self._driver.times.note_refusal(err)
            await abort(context, err)

    async def generate(
        self, request: pb.GenerateRequest | Malformed, context: Context
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        if isinstance(request, Malformed):
            raise InvalidRequest(request.reason)
        with self.calls.entered(request) as call:
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
            answers = await self._admit(call, request, context.time_remaining())
            self._check_room(call, len(answers))
            self.calls.start(call, [answer.new.number for answer in answers])
            mailboxes = [self._mailbox(answer) for answer in answers]
            try:
                model = self._driver.served_model().description.model
                for answer in answers:
                    yield started(call.request_id, model, answer.new, answer.index, answer.prompt_hash)
                streams = [self._stream(answer, box) for answer, box in zip(answers, mailboxes, strict=True)]
                async with aclosing(merged(streams) if len(streams) > 1 else streams[0]) as responses:
                    async for response in responses:
                        yield response
            finally:
                for answer in answers:
                    self._driver.cancel(answer.new.number)

    async def _admit(self, call: Call, request: pb.GenerateRequest, time_left_s: float | None) -> list[_Answer]:
        """All that can be refused is refused here, before any worker hears of the request."""
        if self.is_draining:
            raise _draining("the server is draining: it takes no new requests")
        deadline_s = None if time_left_s is None else self._driver.now_s + time_left_s
        if time_left_s is not None and time_left_s <= 0:
            raise DeadlineExceeded(f"the deadline passed {-time_left_s:.3f} s before the request came")
        model = self._driver.served_model()
        limits = self._model_limits(model)
        check_request(request, limits, self._driver.drafter_names)
        num_answers = request.sampling.n or 1
        self._check_room(call, num_answers, self._num_coming)
        self._num_coming += num_answers
        try:
            prompt = await asyncio.to_thread(encode_prompt, request, model.tokenizer, limits)
            first = await asyncio.to_thread(self._first_answer, request, model, prompt, deadline_s, self._driver.now_s)
        finally:
            self._num_coming -= num_answers
        return [first, *(self._another(request, model, first, index) for index in range(1, request.sampling.n))]

    def _check_room(self, call: Call, num_answers: int, num_coming: int = 0) -> None:
        """A call that takes another one over gets its places, too."""
        self._driver.check_room(num_answers, tenant.get(), num_coming, self.calls.taken_over_by(call))

    def _first_answer(
        self,
        request: pb.GenerateRequest,
        model: ServedModel,
        prompt: list[int],
        deadline_s: float | None,
        now_s: float,
    ) -> _Answer:
        sampling = request.sampling
        ends = frozenset() if sampling.ignore_eos else frozenset(model.description.end_token_ids)
        stops = frozenset(sampling.stop_token_ids)
        off = request.speculation.mode == pb.SPECULATION_MODE_OFF
        new = NewRequest(
            number=self._driver.next_number(),
            prompt=prompt,
            max_tokens=max_tokens_of(sampling, len(prompt), self._model_limits(model)),
            end_token_ids=ends,
            stop_token_ids=stops,
            opening=opening_of(
                request,
                seed=sampling.seed if sampling.HasField("seed") else secrets.randbits(64),
                num_prompt_tokens=len(prompt),
                end_token_ids=ends | stops,
                tokenizer=model.tokenizer,
                grammar=grammar_of(sampling),
            ),
            speculates=not off,
            drafters=frozenset(request.speculation.drafters),
            max_nodes=0 if off else request.speculation.max_nodes or self._limits.max_nodes,
            deadline_s=deadline_s,
            resumed=list(request.resume_from.ids),
            service_class=request.service_class or pb.SERVICE_CLASS_STANDARD,
            tenant=tenant.get(),
        )
        text = _text_stream(sampling, model)
        return _Answer(0, new, text, prompt_hash(prompt), *replayed(new, text, now_s))

    def _another(self, request: pb.GenerateRequest, model: ServedModel, first: _Answer, index: int) -> _Answer:
        """One more answer to the same request: another seed, and the first answer's prompt in the prefix cache."""
        opening = OpenRequest()
        opening.CopyFrom(first.new.opening)
        opening.sampling.seed = answer_seed(first.new.opening.sampling.seed, index)
        new = replace(first.new, number=self._driver.next_number(), opening=opening, leader=first.new.number)
        return _Answer(index, new, _text_stream(request.sampling, model), first.prompt_hash)

    def _mailbox(self, answer: _Answer) -> Mailbox:
        """Of a request that the core has now; there is nothing left for it where the client holds the whole answer."""
        if answer.end is None:
            return self._driver.submit(answer.new)
        mailbox = Mailbox()
        mailbox.put(answer.end)
        mailbox.wake()
        return mailbox

    async def _stream(self, answer: _Answer, mailbox: Mailbox) -> AsyncGenerator[pb.GenerateResponse, None]:
        """An answer out of its mailbox until the request ends; raises the error that it ends with.

        An answer that a stop string has ended is whole, however the request ends before the core has heard of it.
        """
        sent = SentTokens(answer.index, len(answer.new.resumed))
        matched_stop = answer.matched_stop
        finish: Finish | None = None
        while finish is None:
            ids, sources, logprobs, finish = await mailbox.take()
            if matched_stop:
                continue  # what was committed before the core heard of the stop
            if len(ids) > MAX_INLINE_TOKENS:
                piece = await asyncio.to_thread(answer.text.push, ids, sources, logprobs)
            else:
                piece = answer.text.push(ids, sources, logprobs)
            matched_stop = piece.matched_stop
            if piece.tokens:
                yield sent.add(piece.tokens)
            if matched_stop and finish is None:
                self._driver.post(Stopped(answer.new.number))
        if not matched_stop:
            if finish.error is not None:
                raise finish.error
            rest = answer.text.flush()
            if rest.tokens:
                yield sent.add(rest.tokens)
        yield finished(answer.new, finish, sent, matched_stop)

    def _model_limits(self, model: ServedModel) -> ModelLimits:
        facts = model.description
        # One block is kept for the one that a walk may split (Request.blocks_reserved).
        largest = max([(each.num_kv_blocks - 1) * each.block_size for each in self._driver.descriptions()])
        max_kv_tokens = largest - self._limits.max_nodes
        return ModelLimits(
            model=facts.model,
            vocab_size=facts.vocabulary.size,
            max_context=facts.max_context,
            max_kv_tokens=max_kv_tokens,
            max_nodes=self._limits.max_nodes,
            allows_lossy=self._limits.allows_lossy,
        )


def _draining(message: str) -> ServerUnavailable:
    return ServerUnavailable(message, retry_after_s=DRAINED_RETRY_S)


def _text_stream(sampling: pb.SamplingParams, model: ServedModel) -> TextStream:
    return TextStream(
        model.tokenizer.fast,
        stop=list(sampling.stop),
        include_stop=sampling.include_stop,
        skip_special_tokens=sampling.skip_special_tokens if sampling.HasField("skip_special_tokens") else True,
        min_tokens=sampling.min_tokens,
    )


def _unary(
    method: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request | Malformed, Context], Awaitable[Response]]:
    """A method of one message in and one out as gRPC wants it, its errors translated."""

    async def call(request: Request | Malformed, context: Context) -> Response:
        try:
            if isinstance(request, Malformed):
                raise InvalidRequest(request.reason)
            return await method(request)
        except OutriderError as err:
            await abort(context, err)
            raise

    return call
