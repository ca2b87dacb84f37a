"""Runs a request and tells its caller the answer in the words of one API, as a whole or as a stream of events."""

import hashlib
from functools import lru_cache

from services.gateway import event_ids, http_errors
from services.gateway.forms import About, Form
from services.gateway.http_call import HttpCall
from services.gateway.pipeline import Pipeline, Running
from shared.api.gateway import InferenceRequest
from shared.telemetry.metrics import version
from shared.types import ModelName


async def answer(
    call: HttpCall, pipeline: Pipeline, request: InferenceRequest, form: Form, *, stream: bool, seconds: float, with_ids: bool = True
) -> None:
    """Raises what ``Pipeline.run`` raises. ``with_ids``: events say which they are."""
    if stream:
        call.expect_events(form.failed)
    async with pipeline.run(call.caller, request, seconds=seconds) as running:
        await hand_on(call, running, form, stream=stream, with_ids=with_ids)
    # Its row is written; only now is the caller told how it ended.
    if stream:
        await call.send_events(form.last_events(running.result))
        await call.end_events()
    else:
        await call.answer(form.whole(running.result))


async def hand_on(call: HttpCall, running: Running, form: Form, *, stream: bool, after: int = 0, with_ids: bool = True) -> None:
    """All but the end. Of a stream that the caller knows up to chunk ``after``, what is behind that.

    Nothing is sent before the first text, or the first word of what it waits for: until then an error still has a status of its own.
    """
    if running.allowance is not None:
        call.add_headers(http_errors.allowance_headers(running.allowance))
    assert running.model is not None
    form.begin(About(running.request_id, running.model, int(running.began_at.timestamp()), _fingerprint(running.model)))
    number = 0
    async for chunk in running:
        if chunk.waiting:
            if stream:
                await call.send_comment(chunk.waiting)
            continue
        number += 1
        if not stream:
            form.gather(chunk)
            continue
        # Made for chunks that the caller has as well: the form has to know them.
        events = form.events(chunk)
        if number > after:
            await call.send_events(events, event_ids.write(running.request_id, number) if with_ids else None)


@lru_cache(maxsize=256)  # models; more than any mesh serves
def _fingerprint(model: ModelName) -> str:
    return "fp_" + hashlib.sha256(f"{version()}:{model}".encode()).hexdigest()[:10]
