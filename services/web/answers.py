"""One answer of a model for the playground: asked over the mesh in the person's name, and told in the events that the page's script reads.

An answer that loses its gateway goes on where it stopped (shared/rpc/lasting.py). Leaving it early ends the work on the worker.
"""

import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing
from dataclasses import dataclass
from uuid import uuid4

import msgspec

from services.web.caller import Answer, Caller
from services.web.crowd import Crowd
from services.web.events import event
from shared import amounts, errors
from shared.api.gateway import InferenceRequest, InferenceResult, ProcessInferenceRequest
from shared.api.method import End, Item, Method, Reply, Request, StreamMethod
from shared.rpc.lasting import Asking
from shared.types import Credential, FinishReason, NodeId, RequestId

#: A worker may be loading its model, and a long answer takes its time; the stop button is there for the impatient.
_SECONDS = 600.0
MOST = 200
MOST_OF_ONE = 4


class Began(msgspec.Struct, frozen=True):
    """Something of an answer came: from now on it can be rated, and found in the log, also when it is stopped."""

    request_id: RequestId


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an answer took, as the page shows it."""

    request_id: RequestId
    prompt_tokens: int
    completion_tokens: int
    #: In credits.
    cost: str
    #: Where there was enough to measure.
    tokens_per_second: float | None = None
    #: What else there is to know about how it ended.
    note: str = ""


class Failed(msgspec.Struct, frozen=True):
    """Why there is no more of an answer, and what to do."""

    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class InTheNameOf:
    """A way to the mesh with one person's credential: what ``Asking`` asks with."""

    caller: Caller
    credential: Credential

    async def call(
        self, method: Method[Request, Reply], request: Request, *, to: NodeId | None = None, deadline_seconds: float = 10
    ) -> Reply:
        return await self.caller.call(method, request, to=to, deadline_seconds=deadline_seconds, credential=self.credential)

    def stream(
        self, method: StreamMethod[Request, Item, End], request: Request, *, deadline_seconds: float = 300
    ) -> AbstractAsyncContextManager[Answer[Item, End]]:
        return self.caller.stream(method, request, deadline_seconds=deadline_seconds, credential=self.credential)


def crowd() -> Crowd:
    """Answers at once, of everybody and of one person; the gateway has limits of its own."""
    return Crowd(MOST, MOST_OF_ONE, "too many answers are being written for you at once", "stop one of them, or wait for it", 5)


def events(
    way: InTheNameOf, request: InferenceRequest, room: AbstractContextManager[None]
) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
    """All events of one answer. Raises nothing of its own: what goes wrong is an event, too."""
    return aclosing(_events(way, ProcessInferenceRequest(request, idempotency_key=str(uuid4())), room))


async def _events(way: InTheNameOf, asked: ProcessInferenceRequest, room: AbstractContextManager[None]) -> AsyncGenerator[bytes]:
    asking = Asking(way, random.Random())  # noqa: S311 - spreads load
    try:
        with room:
            async with asking.ask(asked, seconds=_SECONDS, lost=lambda _began: None) as answer:
                async for chunk in answer:
                    # Again where another gateway has gone on with it, under an id of its own.
                    if chunk.request_id is not None:
                        yield event("began", Began(chunk.request_id))
                    if chunk.waiting:
                        yield event("waiting", {"message": chunk.waiting})
                    if chunk.text:
                        yield event("chunk", {"text": chunk.text})
                yield event("usage", told(answer.end))
    except errors.AimeshError as error:
        yield event("problem", Failed(errors.code_of(error), error.message, error.hint))


def told(result: InferenceResult) -> Told:
    return Told(
        request_id=result.request_id,
        prompt_tokens=result.usage.prompt_tokens,
        completion_tokens=result.usage.completion_tokens,
        cost=amounts.written(result.cost_micro),
        tokens_per_second=_speed(result),
        note=_note(result),
    )


def _speed(result: InferenceResult) -> float | None:
    seconds = (result.response_time_ms - result.first_token_ms) / 1000
    # The first token comes at the start of that time, so one less was made in it.
    made = result.usage.completion_tokens - 1
    return made / seconds if seconds > 0 and made > 0 and not result.cached else None


def _note(result: InferenceResult) -> str:
    if result.cached:
        return "Answered from the cache."
    if result.finish_reason is not FinishReason.LENGTH:
        return ""
    if result.clamped_to is not None:
        return "It ends here because your credits reach for no more."
    return "It ends here because the most tokens were reached."
