"""The /v1 routes: OpenAI's chat API, so that its clients work when they are given this address."""

import time
from collections.abc import Callable

import msgspec

from services.gateway import http_errors, openai_chat
from services.gateway.http_app import Access, Route
from services.gateway.http_call import HttpCall
from services.gateway.openai_answers import (
    ChatChunk,
    ChatCompletion,
    ChatUsage,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    Gathered,
    Model,
    Models,
    logprobs_of,
)
from services.gateway.openai_chat import ChatBody
from services.gateway.pipeline import Pipeline, Running
from shared.api.gateway import ServedModel
from shared.api.inference import Chunk
from shared.types import FinishReason

_encode = msgspec.json.Encoder().encode
_NOTHING = Delta()


class OpenAi:
    """The handlers of /v1. ``served`` gives the models, the default first."""

    def __init__(self, pipeline: Pipeline, served: Callable[[], tuple[ServedModel, ...]], *, request_seconds: float) -> None:
        self._pipeline = pipeline
        self._served = served
        self._request_seconds = request_seconds
        self._started_at = int(time.time())

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                verb="POST", path="/v1/chat/completions", access=Access.CREDENTIAL, handler=self._chat, method="processInferenceRequest",
                summary="OpenAI's chat completions", body=ChatBody, answer=ChatCompletion, streams=True,
            ),
            Route(
                verb="GET", path="/v1/models", access=Access.CREDENTIAL, handler=self._models, method="listModels",
                summary="The models that are served, the default first", answer=Models,
            ),
        )  # fmt: skip

    async def _chat(self, call: HttpCall) -> None:
        chat = openai_chat.read(call.body)
        request = openai_chat.to_request(chat)
        gathered = [Gathered() for _ in range(request.n or 1)]
        events = _Events(call, gathered, include_usage=chat.stream_options is not None and chat.stream_options.include_usage)
        async with self._pipeline.run(call.caller, request, seconds=self._request_seconds) as running:
            if running.allowance is not None:
                call.add_headers(http_errors.allowance_headers(running.allowance))
            async for chunk in running:
                if chunk.answer >= len(gathered):
                    continue  # a worker that gives more answers than were asked for
                if chat.stream:
                    await events.take(running, chunk)
                else:
                    gathered[chunk.answer].take(chunk)
        if chat.stream:
            await events.end(running)
        else:
            await call.answer(_completion(running, gathered, with_logprobs=chat.logprobs))

    async def _models(self, call: HttpCall) -> None:
        await call.answer(Models(tuple(Model(model.name, self._started_at, model.only_embeds) for model in self._served())))


class _Events:
    """One streamed answer. Nothing is sent before the first text, or the first word of what it waits for: until then an error
    still has a status of its own."""

    def __init__(self, call: HttpCall, gathered: list[Gathered], *, include_usage: bool) -> None:
        self._call = call
        self._gathered = gathered
        self._include_usage = include_usage
        #: The answers whose first chunk is sent.
        self._begun: set[int] = set()

    async def take(self, running: Running, chunk: Chunk) -> None:
        if chunk.waiting:
            await self._call.send_comment(chunk.waiting)
            return
        await self._begin(running, chunk.answer)
        delta = self._gathered[chunk.answer].take(chunk)
        logprobs = ChoiceLogprobs(logprobs_of(chunk.logprobs)) if chunk.logprobs else None
        if delta != _NOTHING or logprobs is not None:
            await self._send(running, ChunkChoice(delta, index=chunk.answer, logprobs=logprobs))

    async def end(self, running: Running) -> None:
        for index, reason in enumerate(_reasons(running, self._gathered)):
            await self._begin(running, index)
            await self._send(running, ChunkChoice(Delta(), finish_reason=self._gathered[index].finish_reason(reason), index=index))
        if self._include_usage:
            usage = ChatUsage.of(running.result.usage)
            await self._call.send_event(_encode(_chunk(running, (), usage)))
        await self._call.send_event(b"[DONE]")
        await self._call.end_events()

    async def _begin(self, running: Running, index: int) -> None:
        if index not in self._begun:
            self._begun.add(index)
            await self._send(running, ChunkChoice(Delta(role="assistant", content=""), index=index))

    async def _send(self, running: Running, choice: ChunkChoice) -> None:
        await self._call.send_event(_encode(_chunk(running, (choice,), None if self._include_usage else msgspec.UNSET)))


def _chunk(running: Running, choices: tuple[ChunkChoice, ...], usage: ChatUsage | msgspec.UnsetType | None) -> ChatChunk:
    assert running.model is not None
    return ChatChunk(f"chatcmpl-{running.request_id.hex}", int(running.began_at.timestamp()), running.model, choices, usage)


def _completion(running: Running, gathered: list[Gathered], *, with_logprobs: bool) -> ChatCompletion:
    result = running.result
    choices = tuple(
        gathered[index].choice(index, reason, with_logprobs=with_logprobs) for index, reason in enumerate(_reasons(running, gathered))
    )
    created = int(running.began_at.timestamp())
    return ChatCompletion(f"chatcmpl-{running.request_id.hex}", created, result.model, choices, ChatUsage.of(result.usage))


def _reasons(running: Running, gathered: list[Gathered]) -> tuple[FinishReason, ...]:
    """One for each answer that was asked for, however many the worker tells of."""
    found = running.result.finish_reasons or (running.result.finish_reason,)
    return tuple(found[index] if index < len(found) else found[0] for index in range(len(gathered)))
