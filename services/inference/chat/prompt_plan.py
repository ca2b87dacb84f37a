"""Turns a job into a request for the chat process, and its reply into a prompt for the engine.  Pure."""

import re
from collections.abc import Mapping

import msgspec

from services.inference import jobs
from services.inference.chat.chat_messages import RenderedPrompt, RenderPrompt, Row, TemplateCapabilities
from services.inference.engine.engine_messages import PreparedPrompt, ThoughtBudget
from services.inference.jobs import GenerationJob
from services.inference.structured_output import output_formats
from shared import errors
from shared.api.generation import THOUGHT_TOKENS, ChatMessage, ReasoningEffort, Sampling, Tool, ToolChoice
from shared.api.inference import RenderChat

_OFF = (ReasoningEffort.NONE, ReasoningEffort.MINIMAL)
#: Templates with such a variable know three efforts.
_VARIABLE = {ReasoningEffort.NONE: "low", ReasoningEffort.MINIMAL: "low", ReasoningEffort.XHIGH: "high"}


class ReasoningDefaults(msgspec.Struct, frozen=True):
    """How a model thinks if a request doesn't say."""

    #: None: as the template has it.
    thinking: bool | None = None
    budget: int | None = None


def request_of(job: GenerationJob, can: TemplateCapabilities, defaults: ReasoningDefaults) -> RenderPrompt:
    """Raises BadRequest, which names the field."""
    asked, effort, variables = job.requested, job.requested.reasoning_effort, dict(job.template_variables)
    if effort is not None and can.supports_reasoning_effort:
        variables.setdefault("reasoning_effort", _VARIABLE.get(effort, str(effort)))
    thinking = variables.pop("enable_thinking", None)
    if not isinstance(thinking, bool):
        thinking = defaults.thinking is not False if effort is None else effort not in _OFF
    return RenderPrompt(
        _shown_rows(job.messages, can),
        tool_rows(asked.tools),
        asked.tool_choice,
        parallel=asked.parallel_tool_calls,
        thinking=thinking,
        variables=variables,
    )


def conversion_of(request: RenderChat, can: TemplateCapabilities, *, marked: bool) -> RenderPrompt:
    """Raises BadRequest, which names the field."""
    answer = request.add_generation_prompt
    return RenderPrompt(_shown_rows(request.messages, can), tool_rows(request.tools), answer=answer, marked=marked)


def prepared(job: GenerationJob, rendered: RenderedPrompt, budget: int | None = None) -> PreparedPrompt:
    """``budget`` is the most tokens of thoughts; None for no limit. Raises BadRequest, which names the field."""
    opened = _opens_thoughts(rendered)
    grammar, triggers, field = _constraint(job.requested, rendered)
    is_optional = bool(triggers)
    must_continue = bool(grammar) and not triggers and opened
    if must_continue:
        # The grammar is for what follows the thoughts.
        triggers = tuple(f"{re.escape(end)}\\s*()" for end in rendered.thinking_ends)
    limit = None
    if (budget is not None or must_continue) and rendered.thinking_start and rendered.thinking_ends:
        limit = ThoughtBudget(budget, "" if opened else rendered.thinking_start, rendered.thinking_ends, must_continue)
    return PreparedPrompt(rendered.prompt, grammar, triggers, field, limit, is_optional)


def _constraint(asked: Sampling, rendered: RenderedPrompt) -> tuple[str, tuple[str, ...], str]:
    """Return a grammar, what starts it, and the field of the request that wants it."""
    is_required = asked.tool_choice is ToolChoice.REQUIRED
    if not asked.tools or asked.tool_choice is ToolChoice.NONE:
        return ("" if asked.format is None else output_formats.grammar_of(asked.format)), (), "format"
    wanted = None if is_required else asked.format
    is_lazy = not is_required and wanted is None
    triggers = tuple(one.value if one.kind.startswith("pattern") else re.escape(one.value) for one in rendered.triggers)
    if is_lazy and not triggers:
        return "", (), "tools"
    try:
        if rendered.generic:
            grammar = output_formats.grammar_of_generic_calls(asked.tools, wanted, parallel=asked.parallel_tool_calls)
        else:
            parallel, strict = asked.parallel_tool_calls, not is_lazy
            grammar = output_formats.grammar_of_calls(rendered.parser, asked.tools, wanted, parallel=parallel, strict=strict)
    except errors.BadRequest:
        if is_lazy:
            return "", (), "tools"
        raise
    return grammar, triggers if is_lazy else (), "tools"


def budget_of(asked: Sampling, defaults: ReasoningDefaults, *, thinking: bool) -> int | None:
    """Return the most tokens of thoughts; None for no limit."""
    if not thinking:
        return 0
    return defaults.budget if asked.reasoning_effort is None else THOUGHT_TOKENS.get(asked.reasoning_effort)


def _opens_thoughts(rendered: RenderedPrompt) -> bool:
    """Whether the answer begins inside thoughts."""
    if not rendered.thinking_start:
        return False
    _, opened, behind = rendered.generation_prompt.rpartition(rendered.thinking_start)
    return bool(opened) and not any(end in behind for end in rendered.thinking_ends)


def _shown_rows(messages: tuple[ChatMessage, ...], can: TemplateCapabilities) -> tuple[Row, ...]:
    return message_rows(messages if can.late_system else jobs.with_instructions_of_user(messages))


def message_rows(messages: tuple[ChatMessage, ...]) -> tuple[Row, ...]:
    """Return messages in OpenAI's form."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return tuple(_message_row(message, names) for message in messages)


def tool_rows(tools: tuple[Tool, ...]) -> tuple[Row, ...]:
    """Raises BadRequest for parameters that are not a JSON object, and for two tools with the same name."""
    names: set[str] = set()
    for position, tool in enumerate(tools):
        if tool.name in names:
            raise errors.BadRequest(f"tools[{position}].function.name is used by another tool", hint="give each tool a unique name")
        names.add(tool.name)
    return tuple(
        {"type": "function", "function": {"name": tool.name, "description": tool.description, "parameters": _parameters(position, tool)}}
        for position, tool in enumerate(tools)
    )


def _message_row(message: ChatMessage, names: Mapping[str, str]) -> Row:
    row: Row = {"role": message.role, "content": message.content}
    if message.images:
        row["images"] = [image.at for image in message.images]
    if message.reasoning:
        row["reasoning_content"] = message.reasoning
    if message.tool_calls:
        row["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        row["tool_call_id"] = message.tool_call_id
        if message.tool_call_id in names:
            row["name"] = names[message.tool_call_id]
    return row


def _parameters(position: int, tool: Tool) -> Row:
    """Return the schema of an object, also for a tool that has none."""
    try:
        decoded = msgspec.json.decode(tool.parameters or "{}", type=dict[str, object])
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise errors.BadRequest(f"tools[{position}].function.parameters must be a JSON schema of an object: {error}") from None
    return decoded or {"type": "object", "properties": {}}
