"""Parses requests to OpenAI's Responses API. Pure.

Nothing is stored, so clients must send the whole conversation each time.
"""

from typing import Literal

import msgspec

from services.gateway.admission.prompt_admission import BadField
from services.gateway.http_api import request_bodies
from services.gateway.openai_api import messages as openai_tools
from services.gateway.openai_api import parameters as openai_parameters
from services.gateway.openai_api import response_items as openai_response_items
from services.gateway.openai_api.messages import Chosen, JsonObject
from services.gateway.openai_api.response_items import Item
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage, OutputFormat
from shared.types import ModelName


class FunctionTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    #: A JSON schema.
    parameters: JsonObject | None = None
    #: Accepted and ignored: the arguments of a required call always match.
    strict: bool | None = None
    description: str | None = None
    type: Literal["function"] = "function"


class ChosenFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    name: str


class AllowedFunctions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    mode: Literal["auto", "required"]
    tools: tuple[ChosenFunction, ...]


class TextFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"] = "text"
    #: The next four are for json_schema.
    name: str | msgspec.UnsetType = msgspec.UNSET
    schema: JsonObject | msgspec.UnsetType = msgspec.UNSET
    description: str | msgspec.UnsetType | None = msgspec.UNSET
    #: Accepted and ignored: an answer always matches its schema.
    strict: bool | msgspec.UnsetType | None = msgspec.UNSET


class TextBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseStreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: Accepted and ignored.
    include_obfuscation: bool | None = None


ToolChoiceBody = Literal["none", "auto", "required"] | ChosenFunction | AllowedFunctions


class ResponseBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request. Other parameters that have no effect here (user, store, …) are accepted; see ``parameters``."""

    #: A text, or the whole conversation.
    input: str | tuple[Item, ...]
    #: A system message before the input.
    instructions: str | None = None
    model: ModelName | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: tuple[str, ...] = ()
    text: TextBody = TextBody()
    tools: tuple[FunctionTool, ...] = ()
    tool_choice: ToolChoiceBody = "auto"
    #: If false, only the first call is returned.
    parallel_tool_calls: bool = True
    #: Returned with the response.
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    #: Its effort must be none.
    reasoning: JsonObject | None = None
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None

    @property
    def with_logprobs(self) -> bool:
        return self.top_logprobs is not None or openai_parameters.INCLUDABLE[0] in self.include


def read(content: bytes) -> ResponseBody:
    """Parse the body. Raises BadRequest that names the field."""
    found = openai_parameters.without(request_bodies.read_object(content), openai_parameters.RESPONSES, ResponseBody)
    openai_tools.ensure_functions(found.get("tools"))
    if "input" in found:
        found["input"] = openai_response_items.tidy(found["input"])
    body = request_bodies.convert(found, ResponseBody)
    for name in body.include:
        if name not in openai_parameters.INCLUDABLE:
            raise BadField("include", f"contains {name[:64]!r}, which is not supported")
    if body.reasoning is not None and body.reasoning.get("effort") not in (None, "none"):
        raise BadField("reasoning.effort", "must be none; the thinking time of a model can't be set")
    if body.stream_options is not None and not body.stream:
        raise BadField("stream_options", "requires stream=true")
    return body


def to_request(body: ResponseBody) -> InferenceRequest:
    """Convert the request. Raises BadRequest that names the field."""
    openai_parameters.ensure_tokens("max_output_tokens", body.max_output_tokens)
    tools, tool_choice = _tools(body)
    instructions = (ChatMessage("system", body.instructions),) if body.instructions else ()
    return InferenceRequest(
        messages=(*instructions, *openai_response_items.to_messages(body.input)),
        model=body.model,
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_logprobs=(body.top_logprobs or 0) if body.with_logprobs else None,
        format=_format(body.text.format),
        tools=tools,
        tool_choice=tool_choice,
    )


def _format(body: TextFormat | None) -> OutputFormat | None:
    if body is None:
        return None
    if body.type == "json_schema" and body.schema is msgspec.UNSET:
        raise BadField("text.format.schema", "is missing")
    return openai_tools.json_format(body.type, None if body.schema is msgspec.UNSET else body.schema)


def _tools(body: ResponseBody) -> Chosen:
    tools = tuple(openai_tools.tool(one.name, one.description, one.parameters) for one in body.tools)
    match body.tool_choice:
        case ChosenFunction(name=name):
            return openai_tools.choose_of(tools, (name,), "required")
        case AllowedFunctions(mode=mode, tools=allowed):
            return openai_tools.choose_of(tools, tuple(one.name for one in allowed), mode)
        case choice:
            return openai_tools.choose(tools, choice)
