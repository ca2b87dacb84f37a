"""The /v1 routes: OpenAI's chat API, so that its clients work when they are given this address."""

import time
from collections.abc import Callable

import msgspec

from services.gateway import http_errors, openai_chat
from services.gateway.http_app import Access, Route
from services.gateway.http_call import HttpCall
from services.gateway.openai_chat import (
    AnswerMessage,
    ChatBody,
    ChatChunk,
    ChatCompletion,
    ChatUsage,
    Choice,
    ChunkChoice,
    Delta,
    Model,
    Models,
)
from services.gateway.pipeline import Pipeline, Running
from shared.types import ModelName

_encode = msgspec.json.Encoder().encode


class OpenAi:
    """The handlers of /v1. ``served`` gives the models, the default first."""

    def __init__(self, pipeline: Pipeline, served: Callable[[], tuple[ModelName, ...]], *, request_seconds: float) -> None:
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
        events = _Events(call, include_usage=chat.stream_options is not None and chat.stream_options.include_usage)
        texts: list[str] = []
        async with self._pipeline.run(call.caller, request, seconds=self._request_seconds) as running:
            if running.allowance is not None:
                call.add_headers(http_errors.allowance_headers(running.allowance))
            async for text in running:
                if chat.stream:
                    await events.text(running, text)
                else:
                    texts.append(text)
        if chat.stream:
            await events.end(running)
        else:
            await call.answer(_completion(running, "".join(texts)))

    async def _models(self, call: HttpCall) -> None:
        await call.answer(Models(tuple(Model(name, self._started_at) for name in self._served())))


class _Events:
    """One streamed answer. Nothing is sent before the first text: until then an error still has a status of its own."""

    def __init__(self, call: HttpCall, *, include_usage: bool) -> None:
        self._call = call
        self._include_usage = include_usage
        self._is_first = True

    async def text(self, running: Running, text: str) -> None:
        if self._is_first:
            self._is_first = False
            await self._send(running, ChunkChoice(Delta(role="assistant", content="")))
        await self._send(running, ChunkChoice(Delta(content=text)))

    async def end(self, running: Running) -> None:
        if self._is_first:
            await self._send(running, ChunkChoice(Delta(role="assistant", content="")))
        await self._send(running, ChunkChoice(Delta(), finish_reason=running.result.finish_reason))
        if self._include_usage:
            usage = ChatUsage.of(running.result.usage)
            await self._call.send_event(_encode(_chunk(running, (), usage)))
        await self._call.send_event(b"[DONE]")
        await self._call.end_events()

    async def _send(self, running: Running, choice: ChunkChoice) -> None:
        await self._call.send_event(_encode(_chunk(running, (choice,), None if self._include_usage else msgspec.UNSET)))


def _chunk(running: Running, choices: tuple[ChunkChoice, ...], usage: ChatUsage | msgspec.UnsetType | None) -> ChatChunk:
    assert running.model is not None
    return ChatChunk(f"chatcmpl-{running.request_id.hex}", int(running.began_at.timestamp()), running.model, choices, usage)


def _completion(running: Running, text: str) -> ChatCompletion:
    result = running.result
    choice = Choice(AnswerMessage(text), result.finish_reason)
    created = int(running.began_at.timestamp())
    return ChatCompletion(f"chatcmpl-{running.request_id.hex}", created, result.model, (choice,), ChatUsage.of(result.usage))
