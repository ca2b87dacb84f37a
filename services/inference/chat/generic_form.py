"""Tools for a model whose chat template has no place for them, or whose calls llama.cpp can't read.  Pure.

One message describes the tools, and a call is JSON that begins with `{"tool_calls"`. Results go back in messages of the user.
"""

import itertools
import json
import re
from collections.abc import Iterable

from services.inference.chat.chat_messages import ParsedAnswer, ParsedCall, Row

#: Begins a call, for `ParsedAnswer` and for the grammar.
TRIGGER = '{"tool_calls"'
_FUNCTIONS = "You can call these functions. Their parameters are JSON schemas:"
_HOW_TO_CALL = (
    "To call functions, answer only with JSON like this: "
    f'{TRIGGER}: [{{"name": "the function\'s name", "arguments": {{"a parameter": "its value"}}}}]}}'
)
_BEGINNING = re.compile(r'\{"tool_calls"\s*:\s*\[')
_NAME = re.compile(r'[\s,]*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
_END_OF_CALL = re.compile(r"\s*\}")
_decoder = json.JSONDecoder()


def rows(messages: Iterable[Row], tools: tuple[Row, ...], *, with_system: bool) -> tuple[Row, ...]:
    """Write tools, calls and results as plain messages. Neighbors with the same role are joined, because some templates require that
    roles alternate. The tools are in a message of the system, or of the user unless ``with_system``."""
    names: dict[object, object] = {}
    plain = [_plain(message, names) for message in messages]
    if tools:
        functions = [_json(tool["function"]) for tool in tools]
        plain.insert(0, ("system" if with_system else "user", "\n".join((_FUNCTIONS, *functions, _HOW_TO_CALL))))
    groups = itertools.groupby(plain, key=lambda message: message[0])
    return tuple({"role": role, "content": "\n\n".join(text for _, text in neighbors)} for role, neighbors in groups)


def _plain(message: Row, names: dict[object, object]) -> tuple[object, str]:
    content = str(message.get("content") or "")
    if message["role"] == "tool":
        return "user", f"Result of {names.get(message.get('tool_call_id'), 'the function')}: {content}"
    calls = []
    for call in message.get("tool_calls") or ():  # type: ignore[attr-defined]
        function = call["function"]
        names[call["id"]] = function["name"]
        calls.append(f'{{"name": {_json(function["name"])}, "arguments": {function["arguments"] or "{}"}}}')
    written = f"{TRIGGER}: [{', '.join(calls)}]}}" if calls else ""
    return message["role"], "\n".join(text for text in (content, written) if text)


def separated(text: str, read: ParsedAnswer) -> ParsedAnswer:
    """Move the calls in the content of an answer to where they belong. ``text`` is all of the answer."""
    content = read.content
    if (found := _BEGINNING.search(content)) is None:
        # What may become the beginning of a call waits.
        at = content.rfind("{")
        is_open = at >= 0 and (TRIGGER.startswith(content[at:]) or re.fullmatch(r'\{"tool_calls"\s*:?\s*', content[at:]) is not None)
        return _cut(text, read, content[:at], ()) if is_open else read
    return _cut(text, read, content[: found.start()], tuple(_calls(content[found.end() :])))


def _cut(text: str, read: ParsedAnswer, content: str, calls: tuple[ParsedCall, ...]) -> ParsedAnswer:
    behind = len(read.content.rstrip()) - len(content.rstrip())
    return ParsedAnswer(read.reasoning, content.rstrip(), calls, len(text[: max(0, read.end - behind)].rstrip()))


def _calls(text: str) -> Iterable[ParsedCall]:
    at = 0
    while (found := _NAME.match(text, at)) is not None:
        name, at = str(json.loads(found[1])), found.end()
        try:
            _, end = _decoder.raw_decode(text, at)
        except ValueError:
            yield ParsedCall(name, text[at:])
            return
        yield ParsedCall(name, text[at:end])
        if (closed := _END_OF_CALL.match(text, end)) is None:
            return
        at = closed.end()


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
