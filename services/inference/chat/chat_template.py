"""A model's chat template in the chat process: by llama.cpp if it understands the template, or else by Jinja."""

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import msgspec

from services.inference.chat import chat_messages, generic_form, template_probe
from services.inference.chat.chat_messages import ParseAnswer, ParsedAnswer, RenderedPrompt, RenderPrompt, Row
from services.inference.chat.library import ChatLibrary, NotUnderstood, OpenedTemplate
from services.inference.chat.plain_template import PlainTemplate
from services.inference.engine.special_tokens import IMAGE_MARK, MARK, SpecialTokens
from services.inference.structured_output import call_grammar
from shared.api.generation import ToolChoice

_GENERIC = "generic:"
#: Templates of Mistral's models require call ids of exactly so many letters and digits.
_SHORT_ID_CHARACTERS = 9
_CALLERS_TEXTS = frozenset({"content", "reasoning_content", "name"})


class ChatTemplate:
    def __init__(self, library: ChatLibrary | None, opened: chat_messages.OpenTemplate) -> None:
        """Raises NotUnderstood, with the line, if nothing can render a chat with the template."""
        self._library = library
        self._special = SpecialTokens(opened.special)
        hello = RenderPrompt((template_probe.HELLO,))
        self._template: OpenedTemplate | PlainTemplate
        try:
            if library is None or opened.by_jinja or not opened.template:
                raise NotUnderstood("not asked")
            self._template = library.open(msgspec.structs.replace(opened, special=()))
            self._template.render(hello)
        except NotUnderstood:
            self._template = PlainTemplate(opened)
            self._template.render(hello)
        self._reads_calls = (
            library is not None and isinstance(self._template, OpenedTemplate) and template_probe.reads_calls(library, self._template)
        )
        self._short_ids = False
        system: Row = {"role": "system", "content": template_probe.THOUGHT}
        self._shows_system = self._shows((system, template_probe.HELLO))
        late_system = self._shows((template_probe.HELLO, system, template_probe.YES))
        if self._reads_calls:
            # llama.cpp loses what a template writes before `continue`.
            self._reads_calls = self._shows(template_probe.messages(template_probe.SHORT_ID))
            self._short_ids = not self._shows(template_probe.messages("call_0123456789abcdefghijklmn"))
        shown = self._shown(opened.special)
        self.capabilities: chat_messages.TemplateCapabilities = msgspec.structs.replace(
            self._template.capabilities, reads_calls=self._reads_calls, shown=shown, late_system=late_system
        )

    def render(self, request: RenderPrompt) -> RenderedPrompt:
        """Raises NotUnderstood if the template refuses the messages."""
        used = bool(request.tools) or any(row.get("role") == "tool" or row.get("tool_calls") for row in request.messages)
        if not used or self._reads_calls:
            try:
                return self._with_tools(request, is_generic=False)
            except NotUnderstood as refused:
                # Some templates refuse a property without a type, for example.
                if not used:
                    raise
                with suppress(NotUnderstood):
                    return self._with_tools(request, is_generic=True)
                raise refused from None
        return self._with_tools(request, is_generic=True)

    def _with_tools(self, request: RenderPrompt, *, is_generic: bool) -> RenderedPrompt:
        messages, tools = tuple(map(self._marked_message, request.messages)), tuple(map(self._marked_tool, request.tools))
        if is_generic:
            messages = generic_form.rows(messages, tools, with_system=self._shows_system)
        variables = _mapped(request.variables, self._special.mark)
        given = msgspec.structs.replace(request, messages=messages, tools=() if is_generic else tools, variables=variables)
        rendered = self._rendered(given)
        if is_generic and request.tools:
            triggers = (chat_messages.Trigger("word", generic_form.TRIGGER),)
            rendered = msgspec.structs.replace(rendered, generic=True, parser=_GENERIC + rendered.parser, triggers=triggers)
        elif _is_content(rendered, has_tools=bool(request.tools)):
            rendered = msgspec.structs.replace(rendered, parser="")
        return rendered if request.marked else msgspec.structs.replace(rendered, prompt=rendered.prompt.replace(MARK, ""))

    def parse(self, request: ParseAnswer) -> ParsedAnswer:
        """Raises NotUnderstood."""
        parser = request.parser.removeprefix(_GENERIC)
        if parser and self._library is not None:
            read = self._library.parse(ParseAnswer(parser, request.text))
        else:
            read = ParsedAnswer(content=request.text, end=len(request.text.rstrip()))
        return generic_form.separated(request.text, read) if request.parser.startswith(_GENERIC) else read

    def _rendered(self, request: RenderPrompt) -> RenderedPrompt:
        # The parser of a forced call would refuse other answers, such as truncated ones.
        choice = ToolChoice.NONE if request.choice is ToolChoice.NONE else ToolChoice.AUTO
        rendered = self._template.render(msgspec.structs.replace(request, choice=choice))
        triggers = tuple(msgspec.structs.replace(one, value=one.value.replace(MARK, "")) for one in rendered.triggers)
        return msgspec.structs.replace(rendered, triggers=triggers, parser=rendered.parser.replace(MARK, ""))

    def _marked_message(self, row: Row) -> Row:
        mark, marked = self._special.mark, dict(row)
        for key in _CALLERS_TEXTS & row.keys():
            marked[key] = mark(str(row[key]))
        if places := marked.pop("images", ()):
            ends = pairwise((0, *places, None))  # type: ignore[misc]
            marked["content"] = IMAGE_MARK.join(mark(str(row["content"])[begin:end]) for begin, end in ends)
        if "tool_call_id" in row:
            marked["tool_call_id"] = mark(self._id(str(row["tool_call_id"])))
        if "tool_calls" in row:
            marked["tool_calls"] = [self._marked_call(call) for call in row["tool_calls"]]  # type: ignore[attr-defined]
        return marked

    def _marked_call(self, call: Row) -> Row:
        mark, function = self._special.mark, call["function"]
        assert isinstance(function, dict)
        try:
            # Decoded, because a template that decodes `"\\u003c|im_end|>"` also writes a special token.
            arguments = msgspec.json.encode(_mapped(msgspec.json.decode(function["arguments"] or "{}"), mark)).decode()
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            # A model wrote these; a template that accepts text shows them unchanged.
            arguments = mark(function["arguments"])
        return {
            "id": mark(self._id(str(call["id"]))),
            "type": "function",
            "function": {"name": mark(function["name"]), "arguments": arguments},
        }

    def _marked_tool(self, row: Row) -> Row:
        return {**row, "function": {key: _mapped(value, self._special.mark) for key, value in row["function"].items()}}  # type: ignore[attr-defined]

    def _id(self, call_id: str) -> str:
        """Shorten an id if needed, so that messages still refer to the same call."""
        if not self._short_ids or (len(call_id) == _SHORT_ID_CHARACTERS and call_id.isascii() and call_id.isalnum()):
            return call_id
        return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:_SHORT_ID_CHARACTERS]

    def _shows(self, messages: tuple[Row, ...]) -> bool:
        """Whether the template shows all messages, in their order."""
        texts = (re.escape(str(row["content"])) for row in messages)
        try:
            return re.search(".*".join(texts), self._template.render(RenderPrompt(messages)).prompt, re.DOTALL) is not None
        except NotUnderstood:
            return False

    def _shown(self, special: tuple[str, ...]) -> tuple[str, ...]:
        rendered = self._template.render(RenderPrompt((template_probe.HELLO,), (template_probe.TOOL,) if self._reads_calls else ()))
        triggers = [trigger.value.replace("\\", "") for trigger in rendered.triggers]
        calls = call_grammar.literals(rendered.parser) if self._reads_calls else ()
        texts = "\n".join((*rendered.preserved, rendered.thinking_start, *rendered.thinking_ends, *triggers, *calls))
        return tuple(spelling for spelling in special if spelling.strip() and spelling in texts)


def _mapped(value: object, change: Callable[[str], str]) -> object:
    """Change all texts in a JSON value."""
    match value:
        case str():
            return change(value)
        case list() | tuple():
            return [_mapped(item, change) for item in value]
        case dict():
            return {change(key): _mapped(item, change) for key, item in value.items()}
        case _:
            return value


def _is_content(rendered: RenderedPrompt, *, has_tools: bool) -> bool:
    """Whether the parser only removes the prompt, so that an answer needs none."""
    if has_tools or rendered.thinking_start or not rendered.parser:
        return not rendered.parser
    arena = msgspec.json.decode(rendered.parser, type=dict[str, object])["arena"]
    return str(arena).count('"literal"') <= 2
