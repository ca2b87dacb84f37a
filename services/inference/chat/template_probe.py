"""Tests at load whether llama.cpp reads the calls that a template writes: it renders a call, parses it back, and compares."""

from collections.abc import Iterator

import msgspec

from services.inference.chat.chat_messages import ParseAnswer, ParsedAnswer, RenderedPrompt, RenderPrompt, Row
from services.inference.chat.library import ChatLibrary, NotUnderstood, OpenedTemplate

_NAME, _ARGUMENTS, THOUGHT = "probe_tool", {"text": "a b", "count": 3}, "I think so."
_PROPERTIES = {"text": {"type": "string"}, "count": {"type": "integer"}}
_SCHEMA = {"type": "object", "properties": _PROPERTIES, "required": [*_PROPERTIES]}
TOOL: Row = {"type": "function", "function": {"name": _NAME, "description": "Probes.", "parameters": _SCHEMA}}
HELLO: Row = {"role": "user", "content": "Hello."}
YES: Row = {"role": "assistant", "content": "Yes."}
#: Some templates take only ids of this form.
SHORT_ID = "123456789"


def reads_calls(library: ChatLibrary, template: OpenedTemplate) -> bool:
    """Whether a call comes back, with and without thoughts."""
    try:
        return all(_comes_back(library, template, thinking=thinking) for thinking in (False, True))
    except NotUnderstood:
        return False


def messages(call_id: str) -> tuple[Row, ...]:
    """Return a chat with a call of the probe tool, and its result."""
    function = {"name": _NAME, "arguments": msgspec.json.encode(_ARGUMENTS).decode()}
    called: Row = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "id": call_id, "function": function}],
    }
    return (HELLO, called, {"role": "tool", "content": THOUGHT, "tool_call_id": call_id, "name": _NAME})


def _comes_back(library: ChatLibrary, template: OpenedTemplate, *, thinking: bool) -> bool:
    said = messages(SHORT_ID)[:2]
    if thinking:
        said[1]["reasoning_content"] = THOUGHT
    asked = template.render(RenderPrompt((HELLO,), (TOOL,), thinking=thinking))
    answered = template.render(RenderPrompt(said, (TOOL,), thinking=thinking, answer=False)).prompt
    return any(_is_call(_longest(library, asked.parser, answer), answer) for answer in cuts(asked, answered))


def cuts(asked: RenderedPrompt, answered: str) -> Iterator[str]:
    """Yield what may be the model's answer: the rendered messages, cut off behind the prompt."""
    beginning = asked.generation_prompt
    if answered.startswith(asked.prompt):
        yield answered[len(asked.prompt) :]
    before_thoughts, opened, _ = beginning.partition(asked.thinking_start) if asked.thinking_start else (beginning, "", "")
    head = asked.prompt.removesuffix(beginning) + before_thoughts
    if opened and answered.startswith(head):
        # The prompt opens thoughts, and may close them: then the answer has none. The messages may have none.
        body = answered[len(head) :]
        yield from (body.partition(end)[2] if end in beginning else end + body for end in asked.thinking_ends)
        yield body.removeprefix(opened)
    if beginning and beginning in answered:
        yield answered.rpartition(beginning)[2]


def _longest(library: ChatLibrary, parser: str, answer: str) -> ParsedAnswer:
    """Parse as much of the answer as can be: behind a call follow the tokens that end a turn, which aren't part of an answer's text."""
    best, understood, end = ParsedAnswer(), 0, len(answer) + 1
    while end - understood > 1:
        middle = len(answer) if end > len(answer) else (understood + end) // 2
        try:
            best, understood = library.parse(ParseAnswer(parser, answer[:middle])), middle
        except NotUnderstood:
            end = middle
    return best


def _is_call(read: ParsedAnswer, answer: str) -> bool:
    if len(read.calls) != 1 or read.calls[0].name != _NAME or (THOUGHT in answer and THOUGHT not in read.reasoning):
        return False
    try:
        return bool(msgspec.json.decode(read.calls[0].arguments) == _ARGUMENTS)
    except msgspec.DecodeError:
        return False
