"""Stream one model answer to the playground, as the events that the page's script reads.

The request runs with the user's credential. If a gateway fails, another one resumes the answer (shared/rpc/resumable_stream.py). Closing
the stream early stops the worker.
"""

import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing
from dataclasses import dataclass
from uuid import uuid4

import msgspec

from services.web.http.event_response import event
from services.web.mesh_calls import MeshAnswer, MeshCalls
from shared import amounts, errors
from shared.api.gateway import InferenceRequest, InferenceResult, ProcessInferenceRequest
from shared.api.method import End, Item, Method, Reply, Request, StreamMethod
from shared.rpc.resumable_stream import StreamRequest
from shared.timing.concurrency_limit import ConcurrencyLimit
from shared.types import Credential, FinishReason, NodeId, RequestId

#: Long enough for a worker to load its model and write a long answer. Users can press Stop.
_SECONDS = 600.0
MOST = 200
MOST_OF_ONE = 4


class AnswerBegan(msgspec.Struct, frozen=True):
    """Tells the page the request id with the first chunk, so that users can rate an answer that they stop."""

    request_id: RequestId


class AnswerUsage(msgspec.Struct, frozen=True, omit_defaults=True):
    """The usage of an answer, as the page shows it."""

    request_id: RequestId
    prompt_tokens: int
    completion_tokens: int
    cost: str
    #: None if the answer was too short to measure.
    tokens_per_second: float | None = None
    #: Why the answer ended, where that matters.
    note: str = ""


class AnswerFailed(msgspec.Struct, frozen=True):
    """Why an answer failed, and what to do."""

    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class UserCaller:
    """A caller bound to one user's credential, as ``StreamRequest`` needs it."""

    caller: MeshCalls
    credential: Credential

    async def call(
        self, method: Method[Request, Reply], request: Request, *, to: NodeId | None = None, deadline_seconds: float = 10
    ) -> Reply:
        return await self.caller.call(method, request, to=to, deadline_seconds=deadline_seconds, credential=self.credential)

    def stream(
        self, method: StreamMethod[Request, Item, End], request: Request, *, deadline_seconds: float = 300
    ) -> AbstractAsyncContextManager[MeshAnswer[Item, End]]:
        return self.caller.stream(method, request, deadline_seconds=deadline_seconds, credential=self.credential)


def answer_limit() -> ConcurrencyLimit:
    """Return the limiter for concurrent answers, in total and per user. The gateway has its own limits."""
    return ConcurrencyLimit(MOST, MOST_OF_ONE)


def refusal() -> errors.Overloaded:
    return errors.Overloaded("you have too many running answers", hint="stop one, or wait until it ends", retry_after_seconds=5)


def events(
    caller: UserCaller, request: InferenceRequest, slot: AbstractContextManager[None]
) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
    """Return all events of one answer. Errors are events too, so this raises none."""
    return aclosing(_events(caller, ProcessInferenceRequest(request, idempotency_key=str(uuid4())), slot))


async def _events(caller: UserCaller, request: ProcessInferenceRequest, slot: AbstractContextManager[None]) -> AsyncGenerator[bytes]:
    asking = StreamRequest(caller, random.Random())  # noqa: S311 - spreads load
    try:
        with slot:
            async with asking.ask(request, seconds=_SECONDS, lost=lambda _began: None) as answer:
                async for chunk in answer:
                    # Sent again when another gateway resumes the answer under a new id.
                    if chunk.request_id is not None:
                        yield event("began", AnswerBegan(chunk.request_id))
                    if chunk.waiting:
                        yield event("waiting", {"message": chunk.waiting})
                    if chunk.text:
                        yield event("chunk", {"text": chunk.text})
                yield event("usage", describe_usage(answer.end))
    except errors.AimeshError as error:
        yield event("problem", AnswerFailed(errors.code_of(error), error.message, error.hint))


def describe_usage(result: InferenceResult) -> AnswerUsage:
    return AnswerUsage(
        request_id=result.request_id,
        prompt_tokens=result.usage.prompt_tokens,
        completion_tokens=result.usage.completion_tokens,
        cost=amounts.written(result.cost_micro),
        tokens_per_second=_speed(result),
        note=_note(result),
    )


def _speed(result: InferenceResult) -> float | None:
    seconds = (result.response_time_ms - result.first_token_ms) / 1000
    # The measured time starts with the first token, so it covers one token less.
    made = result.usage.completion_tokens - 1
    return made / seconds if seconds > 0 and made > 0 and not result.cached else None


def _note(result: InferenceResult) -> str:
    if result.cached:
        return "Served from cache."
    if result.finish_reason is not FinishReason.LENGTH:
        return ""
    if result.clamped_to is not None:
        return "Stopped: you’re out of credits."
    return "Stopped at the max tokens limit."
