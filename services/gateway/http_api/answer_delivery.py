"""Runs a request and tells its caller the answer in the words of one API, as a whole or as a stream of events."""

import hashlib
from functools import lru_cache
from typing import Any

from services.gateway.deduplicated_inference import DeduplicatedInference, InferenceReply, RepeatedRequest
from services.gateway.http_api import http_errors, response_formats
from services.gateway.http_api.http_call import HttpCall
from services.gateway.http_api.http_errors import Headers
from services.gateway.http_api.response_formats import AnswerFacts, AnswerFormat
from shared.api.gateway import InferenceRequest, InferenceResult
from shared.api.inference import Chunk
from shared.telemetry.metrics_registry import version
from shared.types import ModelName


async def answer(
    call: HttpCall, once: DeduplicatedInference, request: InferenceRequest, form: AnswerFormat, *, stream: bool, seconds: float
) -> None:
    """Raises what ``DeduplicatedInference.run`` raises."""
    if stream:
        call.expect_events(form.failed)
    again = again_of(call)
    async with once.run(call.caller, request, seconds=seconds, again=again, whole=True, cache=call.cache_wish, streamed=stream) as said:
        await hand_on(call, said, form, stream=stream, after=0 if again.rest is None else again.rest.after)
    # Its row is written; only now is the caller told how it ended.
    if stream:
        await call.send_events(form.last_events(said.result))
        await call.end_events()
    else:
        await call.answer(form.whole(said.result))


def again_of(call: HttpCall) -> RepeatedRequest:
    """How it is a repeat, by its headers. Raises BadRequest for headers that cannot be meant."""
    event_id = call.last_event_id
    return RepeatedRequest(key=call.idempotency_key, rest=None if event_id is None else response_formats.read_event_id(event_id))


async def hand_on(
    call: HttpCall, said: InferenceReply[Chunk, InferenceResult], form: AnswerFormat, *, stream: bool, after: int = 0, with_ids: bool = True
) -> None:
    """All but the end. Of a stream that the caller knows up to chunk ``after``, what is behind that.

    Nothing is sent before the first text, or the first word of what it waits for: until then an error still has a status of its own.
    """
    call.add_headers(headers(said))
    assert said.model is not None  # known before the first chunk
    form.begin(AnswerFacts(said.request_id, said.model, int(said.began_at.timestamp()), _fingerprint(said.model)))
    async for number, chunk in said:
        if not number:
            if stream:
                await call.send_comment(chunk.waiting)
        elif not stream:
            form.gather(chunk)
        else:
            # Made for chunks that the caller has as well: the form has to know them.
            events = form.events(chunk)
            if number > after:
                await call.send_events(events, response_formats.write_event_id(said.request_id, number) if with_ids else None)


def headers(said: InferenceReply[Any, Any]) -> Headers:
    """What a caller may want to know before the answer."""
    found: Headers = [] if said.allowance is None else http_errors.allowance_headers(said.allowance)
    if said.clamped_to is not None:
        found.append((b"x-budget-clamped", b"%d" % said.clamped_to))
    if said.is_repeat:
        # As Stripe's: this call has an id of its own, in the log; the answer and what it cost go by the first one's.
        found += [(b"idempotent-replayed", b"true"), (b"x-original-request-id", str(said.request_id).encode())]
    return found


@lru_cache(maxsize=256)  # models; more than any mesh serves
def _fingerprint(model: ModelName) -> str:
    return "fp_" + hashlib.sha256(f"{version()}:{model}".encode()).hexdigest()[:10]
