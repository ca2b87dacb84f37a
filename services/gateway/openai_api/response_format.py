"""Formats answers for OpenAI's Responses API. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec

from services.gateway.facts.call_parts import CallParts
from services.gateway.http_api.response_formats import AnswerFormat, ErrorBody, ServerSentEvent, TokenChoice, logprobs_of
from services.gateway.openai_api import response_events, response_request, response_tools
from services.gateway.openai_api.response_request import ResponseBody, StoredItem, TextFormat
from services.gateway.openai_api.response_tools import CustomInput, CustomTool
from shared import errors
from shared.api.gateway import InferenceResult
from shared.api.generation import ToolCall, ToolCallPart
from shared.api.inference import Chunk
from shared.types import FinishReason

#: The API's error code for our error types.
_CODES = {"rate_limit_error": "rate_limit_exceeded", "insufficient_quota": "rate_limit_exceeded", "invalid_request_error": "invalid_prompt"}
#: Why an answer has no proper end.
_INCOMPLETE = {FinishReason.LENGTH: "max_output_tokens", FinishReason.CONTENT_FILTER: "content_filter"}


_INPUT_DELTA = "response.custom_tool_call_input.delta"

#: An item: its kind, and its number among them.
_Item = tuple[Literal["reasoning", "message", "call"], int]
_MESSAGE: _Item = ("message", 0)


class ResponsesFormat(AnswerFormat):
    """Formats one answer: thoughts are an item, the text is one message, and each call an item; items are in order of their start."""

    def __init__(self, body: ResponseBody, *, is_stored: bool = False) -> None:
        """``is_stored``: whether the items will be stored. Set the attribute when it is known whether they are."""
        self._body = body
        self.is_stored = is_stored
        self._sequence = 0
        self._items: list[_Item] = []
        #: Thoughts or a call that end when something else begins. The message ends with the answer.
        self._open: _Item | None = None
        #: The statuses of the items that have ended.
        self._statuses: dict[_Item, str] = {}
        self._thoughts: list[list[str]] = []
        self._texts: list[str] = []
        self._logprobs: list[TokenChoice] = []
        self._calls = CallParts(parallel=body.parallel_tool_calls)
        self._tools = response_tools.offered(body.offered())
        #: Of the calls of custom tools, by their number.
        self._inputs: dict[int, CustomInput] = {}
        self._is_begun = False

    def events(self, chunk: Chunk) -> Sequence[ServerSentEvent]:
        if chunk.answer:
            return ()
        events = self._beginning()
        if chunk.reasoning:
            events += self._think(chunk.reasoning)
        if chunk.text or (chunk.logprobs and not chunk.reasoning):
            events += self._say(chunk.text, logprobs_of(chunk.logprobs))
        for part in self._calls.add(chunk):
            events += self._call(part)
        return events

    def last_events(self, result: InferenceResult) -> Sequence[ServerSentEvent]:
        status = _status(result)
        events = [*self._beginning(), *self._close(status)]
        if not self._items:
            events += self._message_beginning()
        if _MESSAGE in self._items:
            events += self._end(_MESSAGE, status)
        name = f"response.{status}"
        return (*events, _event(response_events.ResponseEvent(name, self._next(), self.whole(result))))

    def failed(self, error: ErrorBody) -> Sequence[ServerSentEvent]:
        if not self.has_begun:
            found = error.error
            return (ServerSentEvent(response_events.ErrorEvent(self._next(), found.code, found.message, found.param), "error"),)
        response = msgspec.structs.replace(self.without_output("failed"), output=self._output("incomplete"), error=problem_of(error))
        return (*self._beginning(), _event(response_events.ResponseEvent("response.failed", self._next(), response)))

    def whole(self, result: InferenceResult) -> response_events.Response:
        status = _status(result)
        self._close(status)
        if not self._items:
            self._items.append(_MESSAGE)
        return msgspec.structs.replace(
            self.without_output(status),
            output=self._output(status),
            usage=response_events.ResponseUsage.of(result.usage),
            incomplete_details=response_events.Incomplete(_INCOMPLETE[result.finish_reason]) if status == "incomplete" else None,
            completed_at=self.about.created + result.response_time_ms // 1000 if status == "completed" else None,
        )

    def stored_items(self) -> Mapping[str, bytes]:
        """Return the items as a later request takes them, by their ids."""
        shown = self._output("completed") or (self._shown(_MESSAGE, "completed"),)
        return {item.id: msgspec.json.encode(_as_input(item)) for item in shown}

    def _beginning(self) -> list[ServerSentEvent]:
        if self._is_begun:
            return []
        self._is_begun = True
        names = ("response.created", "response.in_progress")
        return [_event(response_events.ResponseEvent(name, self._next(), self.without_output("in_progress"))) for name in names]

    def _think(self, text: str) -> list[ServerSentEvent]:
        events = []
        if self._open is None or self._open[0] != "reasoning":
            item: _Item = ("reasoning", len(self._thoughts))
            self._thoughts.append([])
            events = self._open_item(item, response_events.OutputReasoning(self._id(item), "in_progress", ()))
            events.append(self._part_event("added", item, response_events.ReasoningTextPart("")))
            if self._body.with_summary:
                events.append(self._summary_event("added", item, response_events.SummaryPart("")))
        assert self._open is not None
        self._thoughts[-1].append(text)
        events.append(self._placed(response_events.ReasoningDelta, "response.reasoning_text.delta", self._open, text))
        if self._body.with_summary:
            events.append(self._placed(response_events.SummaryDelta, "response.reasoning_summary_text.delta", self._open, text))
        return events

    def _say(self, text: str, logprobs: tuple[TokenChoice, ...]) -> list[ServerSentEvent]:
        events = [*self._close(), *self._message_beginning()]
        self._texts.append(text)
        self._logprobs += logprobs
        return [*events, self._placed(response_events.TextDelta, "response.output_text.delta", _MESSAGE, text, logprobs)]

    def _call(self, part: ToolCallPart) -> list[ServerSentEvent]:
        item: _Item = ("call", part.index)
        events = []
        if item not in self._items:
            if (tool := self._tools.get(part.name)) is not None and isinstance(tool.body, CustomTool):
                self._inputs[part.index] = CustomInput()
            events = self._open_item(item, self._shown_call(item, "in_progress", ToolCall(part.id, part.name, "")))
        custom = self._inputs.get(part.index)
        name = "response.function_call_arguments.delta" if custom is None else _INPUT_DELTA
        if delta := part.arguments if custom is None else custom.add(part.arguments):
            events.append(self._placed(response_events.ArgumentsDelta, name, item, delta))
        return events

    def _open_item(self, item: _Item, shown: response_events.OutputItem) -> list[ServerSentEvent]:
        events = self._close()
        self._open = item
        return [*events, self._begin(item, shown)]

    def _begin(self, item: _Item, shown: response_events.OutputItem) -> ServerSentEvent:
        self._items.append(item)
        return _event(response_events.ItemEvent("response.output_item.added", self._next(), len(self._items) - 1, shown))

    def _close(self, status: str = "completed") -> list[ServerSentEvent]:
        """End the open thoughts or call."""
        item, self._open = self._open, None
        if item is None:
            return []
        self._statuses[item] = status
        return self._end(item, status)

    def _end(self, item: _Item, status: str) -> list[ServerSentEvent]:
        shown = self._shown(item, status)
        events: list[ServerSentEvent] = []
        match shown:
            case response_events.OutputCall():
                name = "response.function_call_arguments.done"
                events.append(self._placed(response_events.ArgumentsDone, name, item, shown.name, shown.arguments))
            case response_events.OutputCustomCall():
                if rest := self._inputs[item[1]].rest:
                    events.append(self._placed(response_events.ArgumentsDelta, _INPUT_DELTA, item, rest))
                name = "response.custom_tool_call_input.done"
                events.append(self._placed(response_events.CustomInputDone, name, item, shown.input))
            case response_events.OutputReasoning():
                text = shown.content[0].text
                events.append(self._placed(response_events.ReasoningDone, "response.reasoning_text.done", item, text))
                events.append(self._part_event("done", item, shown.content[0]))
                for part in shown.summary:
                    events.append(self._placed(response_events.SummaryDone, "response.reasoning_summary_text.done", item, text))
                    events.append(self._summary_event("done", item, part))
            case response_events.OutputMessage(content=(part,)):
                events.append(self._placed(response_events.TextDone, "response.output_text.done", item, part.text, part.logprobs))
                events.append(self._part_event("done", item, part))
        return [*events, _event(response_events.ItemEvent("response.output_item.done", self._next(), self._items.index(item), shown))]

    def _message_beginning(self) -> list[ServerSentEvent]:
        if _MESSAGE in self._items:
            return []
        message = response_events.OutputMessage(self._id(_MESSAGE), "in_progress", ())
        return [self._begin(_MESSAGE, message), self._part_event("added", _MESSAGE, response_events.OutputTextPart(""))]

    def _part_event(
        self, what: str, item: _Item, part: response_events.OutputTextPart | response_events.ReasoningTextPart
    ) -> ServerSentEvent:
        return self._placed(response_events.PartEvent, f"response.content_part.{what}", item, part)

    def _summary_event(self, what: str, item: _Item, part: response_events.SummaryPart) -> ServerSentEvent:
        return self._placed(response_events.SummaryPartEvent, f"response.reasoning_summary_part.{what}", item, part)

    def _placed(self, kind: Callable[..., response_events.StreamEvent], name: str, item: _Item, *content: object) -> ServerSentEvent:
        return _event(kind(name, self._next(), self._id(item), self._items.index(item), *content))

    def _id(self, item: _Item) -> str:
        kind, number = item
        name = self.about.request_id.hex
        if kind == "message":
            return f"msg_{name}"
        return f"{'rs' if kind == 'reasoning' else 'ctc' if number in self._inputs else 'fc'}_{name}{number:03d}"

    def _shown(self, item: _Item, status: str) -> response_events.OutputItem:
        kind, number = item
        if kind == "message":
            logprobs = tuple(self._logprobs) if self._body.with_logprobs else ()
            return response_events.OutputMessage(
                self._id(item), status, (response_events.OutputTextPart("".join(self._texts), logprobs=logprobs),)
            )
        if kind == "reasoning":
            text = "".join(self._thoughts[number])
            summary = (response_events.SummaryPart(text),) if self._body.with_summary else ()
            return response_events.OutputReasoning(self._id(item), status, (response_events.ReasoningTextPart(text),), summary)
        return self._shown_call(item, status, self._calls.calls[number])

    def _shown_call(self, item: _Item, status: str, call: ToolCall) -> response_events.OutputCall | response_events.OutputCustomCall:
        tool = self._tools.get(call.name)
        name = call.name if tool is None else tool.body.name
        namespace = msgspec.UNSET if tool is None or tool.namespace is None else tool.namespace.name
        if (custom := self._inputs.get(item[1])) is not None:
            return response_events.OutputCustomCall(self._id(item), status, call.id, name, custom.text, namespace)
        return response_events.OutputCall(self._id(item), status, call.id, name, call.arguments, namespace)

    def _output(self, status: str) -> tuple[response_events.OutputItem, ...]:
        return tuple(self._shown(item, self._statuses.get(item, status)) for item in self._items)

    @property
    def response_id(self) -> str:
        return f"resp_{self.about.request_id.hex}"

    def without_output(self, status: str) -> response_events.Response:
        about, body = self.about, self._body
        return response_events.Response(
            id=self.response_id,
            created_at=about.created,
            status=status,
            service_tier=about.service_tier,
            store=self.is_stored,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            model=about.model,
            parallel_tool_calls=body.parallel_tool_calls,
            previous_response_id=body.previous_response_id,
            reasoning=response_events.Reasoning(body.effort, None if body.reasoning is None else body.reasoning.summary),
            temperature=body.temperature,
            text=response_events.ResponseText(body.text.format or TextFormat()),
            tool_choice=body.tool_choice,
            tools=body.tools,
            top_logprobs=body.top_logprobs or 0,
            top_p=body.top_p,
            metadata=body.metadata,
        )

    def _next(self) -> int:
        number = self._sequence
        self._sequence += 1
        return number


def problem_of(error: ErrorBody) -> response_events.ResponseProblem:
    found = error.error
    code = found.code if found.code == errors.ContextExceeded.code else _CODES.get(found.type, "server_error")
    return response_events.ResponseProblem(code, found.message)


def _event(content: response_events.StreamEvent) -> ServerSentEvent:
    return ServerSentEvent(content, content.type)


def _as_input(item: response_events.OutputItem) -> StoredItem:
    match item:
        case response_events.OutputMessage():
            return response_request.MessageItem("assistant", item.content[0].text)
        case response_events.OutputReasoning():
            return response_request.ReasoningItem((response_request.ReasoningText(item.content[0].text),))
        case response_events.OutputCustomCall():
            return response_request.CustomCallItem(item.call_id, item.name, item.input, item.namespace or None)
        case response_events.OutputCall():
            return response_request.FunctionCallItem(item.call_id, item.name, item.arguments, item.namespace or None)


def _status(result: InferenceResult) -> str:
    return "incomplete" if result.finish_reason in _INCOMPLETE else "completed"
