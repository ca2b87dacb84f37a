"""Formats answers for OpenAI's Responses API. Pure."""

from collections.abc import Sequence

from services.gateway.http_api.response_formats import AnswerFacts, ErrorBody, ServerSentEvent, TokenChoice, logprobs_of
from services.gateway.openai_api import response_events
from services.gateway.openai_api.response_events import OutputCall, OutputItem, OutputMessage, OutputTextPart, Response
from services.gateway.openai_api.response_request import ResponseBody, TextBody, TextFormat
from shared.api.gateway import InferenceResult
from shared.api.generation import ToolCall
from shared.api.inference import Chunk
from shared.types import FinishReason

#: The API's error code for our error types.
_CODES = {"rate_limit_error": "rate_limit_exceeded", "insufficient_quota": "rate_limit_exceeded", "invalid_request_error": "invalid_prompt"}
#: Why an answer has no proper end.
_INCOMPLETE = {FinishReason.LENGTH: "max_output_tokens", FinishReason.CONTENT_FILTER: "content_filter"}


class ResponsesFormat:
    """Formats one answer: the text is one message, and each call an item; items are in order of their start."""

    def __init__(self, body: ResponseBody) -> None:
        self._body = body
        self._about: AnswerFacts | None = None
        self._sequence = 0
        #: Items in order; None stands for the message.
        self._items: list[OutputCall | None] = []
        self._texts: list[str] = []
        self._logprobs: list[TokenChoice] = []
        self._is_begun = False

    def begin(self, about: AnswerFacts) -> None:
        self._about = about

    def gather(self, chunk: Chunk) -> None:
        self._add(chunk)

    def events(self, chunk: Chunk) -> Sequence[ServerSentEvent]:
        if chunk.answer:
            return ()
        events = self._beginning()
        if chunk.text or chunk.logprobs:
            events += self._message_beginning()
            item, index = self._message_id, self._items.index(None)
            logprobs = logprobs_of(chunk.logprobs)
            events.append(_event(response_events.TextDelta("response.output_text.delta", self._next(), item, index, chunk.text, logprobs)))
        for call in self._add(chunk):
            events += self._call_events(call)
        return events

    def last_events(self, result: InferenceResult) -> Sequence[ServerSentEvent]:
        events = self._beginning()
        if not self._items:
            events += self._message_beginning()
        status = _status(result)
        if None in self._items:
            events += self._message_end(status)
        name = f"response.{status}"
        return (*events, _event(response_events.ResponseEvent(name, self._next(), self.whole(result))))

    def failed(self, error: ErrorBody) -> Sequence[ServerSentEvent]:
        found = error.error
        if self._about is None:
            return (ServerSentEvent(response_events.ErrorEvent(self._next(), found.code, found.message, found.param), "error"),)
        problem = response_events.ResponseProblem(_CODES.get(found.type, "server_error"), found.message)
        response = self._response("failed", output=self._output("incomplete"), error=problem)
        return (*self._beginning(), _event(response_events.ResponseEvent("response.failed", self._next(), response)))

    def whole(self, result: InferenceResult) -> Response:
        if not self._items:
            self._items.append(None)
        status = _status(result)
        return self._response(
            status,
            output=self._output(status),
            usage=response_events.ResponseUsage.of(result.usage),
            incomplete_details=response_events.Incomplete(_INCOMPLETE[result.finish_reason]) if status == "incomplete" else None,
            completed_at=self._facts().created + result.response_time_ms // 1000 if status == "completed" else None,
        )

    def _add(self, chunk: Chunk) -> Sequence[OutputCall]:
        if chunk.answer:
            return ()
        self._texts.append(chunk.text)
        self._logprobs += logprobs_of(chunk.logprobs)
        if chunk.text and None not in self._items:
            self._items.append(None)
        calls: list[OutputCall] = []
        for call in chunk.tool_calls:
            if self._body.parallel_tool_calls or not any(self._items):
                calls.append(self._call(call))
                self._items.append(calls[-1])
        return calls

    def _call(self, call: ToolCall) -> OutputCall:
        number = sum(item is not None for item in self._items)
        return OutputCall(f"fc_{self._facts().request_id.hex}{number:03d}", "completed", call.id, call.name, call.arguments)

    def _beginning(self) -> list[ServerSentEvent]:
        if self._is_begun:
            return []
        self._is_begun = True
        names = ("response.created", "response.in_progress")
        return [_event(response_events.ResponseEvent(name, self._next(), self._response("in_progress"))) for name in names]

    def _message_beginning(self) -> list[ServerSentEvent]:
        if None in self._items:
            return []
        self._items.append(None)
        index = len(self._items) - 1
        message = OutputMessage(self._message_id, "in_progress", ())
        part = OutputTextPart("")
        return [
            _event(response_events.ItemEvent("response.output_item.added", self._next(), index, message)),
            _event(response_events.PartEvent("response.content_part.added", self._next(), self._message_id, index, part)),
        ]

    def _message_end(self, status: str) -> list[ServerSentEvent]:
        index, item = self._items.index(None), self._message_id
        message = self._message(status)
        (part,) = message.content
        return [
            _event(response_events.TextDone("response.output_text.done", self._next(), item, index, part.text, part.logprobs)),
            _event(response_events.PartEvent("response.content_part.done", self._next(), item, index, part)),
            _event(response_events.ItemEvent("response.output_item.done", self._next(), index, message)),
        ]

    def _call_events(self, call: OutputCall) -> list[ServerSentEvent]:
        index = self._items.index(call)
        started = OutputCall(call.id, "in_progress", call.call_id, call.name, "")
        name = "response.function_call_arguments"
        return [
            _event(response_events.ItemEvent("response.output_item.added", self._next(), index, started)),
            _event(response_events.ArgumentsDelta(f"{name}.delta", self._next(), call.id, index, call.arguments)),
            _event(response_events.ArgumentsDone(f"{name}.done", self._next(), call.id, index, call.name, call.arguments)),
            _event(response_events.ItemEvent("response.output_item.done", self._next(), index, call)),
        ]

    @property
    def _message_id(self) -> str:
        return f"msg_{self._facts().request_id.hex}"

    def _message(self, status: str) -> OutputMessage:
        logprobs = tuple(self._logprobs) if self._body.with_logprobs else ()
        return OutputMessage(self._message_id, status, (OutputTextPart("".join(self._texts), logprobs=logprobs),))

    def _output(self, status: str) -> tuple[OutputItem, ...]:
        return tuple(self._message(status) if item is None else item for item in self._items)

    def _response(
        self,
        status: str,
        *,
        output: tuple[OutputItem, ...] = (),
        usage: response_events.ResponseUsage | None = None,
        error: response_events.ResponseProblem | None = None,
        incomplete_details: response_events.Incomplete | None = None,
        completed_at: int | None = None,
    ) -> Response:
        about, body = self._facts(), self._body
        return Response(
            id=f"resp_{about.request_id.hex}",
            created_at=about.created,
            status=status,
            completed_at=completed_at,
            error=error,
            incomplete_details=incomplete_details,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            model=about.model,
            output=output,
            parallel_tool_calls=body.parallel_tool_calls,
            temperature=body.temperature,
            text=TextBody(body.text.format or TextFormat(), body.text.verbosity or "medium"),
            tool_choice=body.tool_choice,
            tools=body.tools,
            top_logprobs=body.top_logprobs or 0,
            top_p=body.top_p,
            usage=usage,
            metadata=body.metadata,
        )

    def _next(self) -> int:
        number = self._sequence
        self._sequence += 1
        return number

    def _facts(self) -> AnswerFacts:
        assert self._about is not None  # `begin` was called
        return self._about


def _event(content: response_events.StreamEvent) -> ServerSentEvent:
    return ServerSentEvent(content, content.type)


def _status(result: InferenceResult) -> str:
    return "incomplete" if result.finish_reason in _INCOMPLETE else "completed"
