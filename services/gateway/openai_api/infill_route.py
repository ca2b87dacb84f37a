"""Serves POST /infill, which completes the text at a cursor, in the form of llama.cpp's server and its editor plugins."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from services.gateway.http_api import answer_delivery, chat_messages
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.http_api.response_formats import AnswerFormat, ServerSentEvent
from services.gateway.http_api.tolerant_json import BodyDialect
from services.gateway.requests.runs import Runs
from shared.api.gateway import InferenceRequest, InferenceResult
from shared.api.generation import MinP, NamedModel, RepeatPenalty, Seed, Stops, Temperature, TopK, TopP
from shared.api.inference import Chunk
from shared.types import FinishReason, ModelName


class ExtraFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Text of another file."""

    text: str
    filename: str = ""


class InfillBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A text with a gap."""

    model: NamedModel | None = None
    #: Before the gap.
    input_prefix: str = ""
    #: Between ``input_prefix`` and the gap.
    prompt: str = ""
    #: After the gap.
    input_suffix: str = ""
    #: Texts of other files.
    input_extra: tuple[ExtraFile, ...] = ()
    #: -1: until the end of the answer, as with llama.cpp's server.
    n_predict: Annotated[int, Meta(ge=-1)] | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    min_p: MinP | None = None
    repeat_penalty: RepeatPenalty | None = None
    seed: Seed | None = None
    stop: Stops = ()
    stream: bool = False


class InfillAnswer(msgspec.Struct, frozen=True):
    """A whole answer, or an event of a stream."""

    content: str
    #: False in all events but the last.
    stop: bool
    model: ModelName
    index: int = 0
    #: ``eos`` or ``limit``; empty before the end.
    stop_type: str = ""
    tokens_predicted: int = 0
    #: The tokens of the prompt.
    tokens_evaluated: int = 0


class InfillRoute:
    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def routes(self) -> tuple[HttpRoute, ...]:
        return (
            HttpRoute("POST", "/infill", self._infill, "processInferenceRequest",
                      "Complete the text at a cursor, as llama.cpp's server does",
                      body=InfillBody, answer=InfillAnswer, streams=True, takes_prompts=True, events=(InfillAnswer,)),
        )  # fmt: skip

    async def _infill(self, call: HttpCall) -> None:
        body = await call.read(DIALECT)
        await answer_delivery.answer(self._runs, call, to_request(body), InfillFormat(), stream=body.stream)


DIALECT = BodyDialect("infill", InfillBody)


def to_request(body: InfillBody) -> InferenceRequest:
    """Convert the request. Raises BadField."""
    extra = "".join(f"{file.filename}\n{file.text}\n\n" for file in body.input_extra)
    return InferenceRequest(
        **chat_messages.shared_parameters(body),
        prompt=extra + body.input_prefix + body.prompt,
        suffix=body.input_suffix,
        raw=True,
        max_tokens=None if body.n_predict == -1 else body.n_predict,
        stop=body.stop,
    )


class InfillFormat(AnswerFormat):
    def __init__(self) -> None:
        self._texts: list[str] = []

    def events(self, chunk: Chunk) -> Sequence[ServerSentEvent]:
        self._texts.append(chunk.text)
        return (ServerSentEvent(InfillAnswer(chunk.text, stop=False, model=self.about.model)),) if chunk.text else ()

    def last_events(self, result: InferenceResult) -> Sequence[ServerSentEvent]:
        return (ServerSentEvent(self._end(result, "")),)

    def whole(self, result: InferenceResult) -> InfillAnswer:
        return self._end(result, "".join(self._texts))

    def _end(self, result: InferenceResult, content: str) -> InfillAnswer:
        kind = "limit" if result.finish_reason is FinishReason.LENGTH else "eos"
        return InfillAnswer(
            content,
            stop=True,
            model=self.about.model,
            stop_type=kind,
            tokens_predicted=result.usage.completion_tokens,
            tokens_evaluated=result.usage.prompt_tokens,
        )
