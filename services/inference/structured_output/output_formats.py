"""Turns a request's format or tools into a grammar for llguidance, or names the field that isn't possible.  Pure."""

import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import assert_never

import msgspec

from services.inference.structured_output import call_grammar, gbnf, json_schema, lark
from services.inference.structured_output.lark import FormatRefused
from shared import errors
from shared.api.generation import FormatKind, OutputFormat, Tool

#: The longest error message: names in a schema may be as long as the schema.
MAX_CHARACTERS = 400
MAX_REGEX_CHARACTERS = 4096
MAX_CHOICES = 500
MAX_CHOICE_CHARACTERS = 15_000

#: Grammars of calls: an agent always sends the same tools, and 128 of them take 0.7 s of processor time.
MAX_REMEMBERED = 16
#: Begins the generic form of tool calls (`generic_form`).
GENERIC_CALLS = '{"tool_calls": ['
#: The field that asks for a kind, and what helps if it isn't possible.
_FIELDS = {
    FormatKind.JSON: ("format.schema", ""),
    FormatKind.JSON_SCHEMA: ("format.schema", "simplify the schema there"),
    FormatKind.GBNF: ("format.grammar", "the grammar must be GBNF for llama.cpp"),
    FormatKind.REGEX: ("guided_regex", "the answer must match the whole regular expression, without look-around and back-references"),
    FormatKind.CHOICE: ("guided_choice", "send a list of texts"),
}


def grammar_of(wanted: OutputFormat) -> str:
    """Raises BadRequest."""
    match wanted.kind:
        case FormatKind.JSON | FormatKind.JSON_SCHEMA:
            return lark.grammar(_json(wanted))
        case FormatKind.GBNF:
            return _refusing(wanted.kind, lambda: gbnf.to_lark(wanted.text))
        case FormatKind.REGEX:
            return lark.grammar(_refusing(wanted.kind, lambda: _regex(wanted.text)))
        case FormatKind.CHOICE:
            return lark.grammar("CHOICE", _refusing(wanted.kind, lambda: f"CHOICE: {_choices(wanted.text)}"))
        case _:
            assert_never(wanted.kind)


@lru_cache(MAX_REMEMBERED)
def grammar_of_calls(parser: str, tools: tuple[Tool, ...], wanted: OutputFormat | None, *, parallel: bool, strict: bool) -> str:
    """Build the grammar of tool calls that llama.cpp's parser reads, or of an answer in a JSON format. Raises BadRequest."""
    otherwise = "" if wanted is None else _json(wanted)
    schemas = {tool.name: _object_schema(position, tool) for position, tool in enumerate(tools)}
    build = partial(call_grammar.to_lark, parser, schemas, parallel=parallel, strict=strict, otherwise=otherwise)
    return _refusing(FormatKind.JSON_SCHEMA, build, "tools")


def grammar_of_generic_calls(tools: tuple[Tool, ...], wanted: OutputFormat | None, *, parallel: bool) -> str:
    """Build the grammar of calls as `generic_form` has them, or of an answer in a JSON format. Raises BadRequest."""
    names = [f"c{position}" for position in range(len(tools))]
    more = f'(", " call){{0,{call_grammar.MAX_CALLS - 1}}}' if parallel else ""
    calls = f'calls: {_json_tokens(GENERIC_CALLS)} call {more} "]" "}}"'
    each = [f"{name}: {_generic_call(position, tool)}" for position, (name, tool) in enumerate(zip(names, tools, strict=True))]
    start = "calls" if wanted is None else f"calls | {_json(wanted)}"
    return lark.grammar(start, calls, f"call: {' | '.join(names)}", *each)


def _generic_call(position: int, tool: Tool) -> str:
    before = _json_tokens(f'{{"name": {msgspec.json.encode(tool.name).decode()}, "arguments": ')
    schema = _object_schema(position, tool)
    return f'{before} %json {_refusing(FormatKind.JSON_SCHEMA, lambda: json_schema.prepared(schema), "tools")} "}}"'


def _json_tokens(text: str) -> str:
    """Write JSON in the terminals of `%json`: llguidance couldn't return from a longer one to another form of the answer."""
    return " ".join(lark.literal(token) for token in re.findall(r'"(?:[^"\\\\]|\\\\.)*"|[:,] ?|.', text))


def _object_schema(position: int, tool: Tool) -> str:
    # `prompt_plan` has decoded it before.
    schema = msgspec.json.decode(tool.parameters or "{}", type=dict[str, object])
    if schema.setdefault("type", "object") != "object":
        raise errors.BadRequest(
            f"tools[{position}].function.parameters must be the JSON schema of an object", hint='its "type" is "object"'
        )
    if not schema.get("properties") and "additionalProperties" not in schema:
        schema["additionalProperties"] = False
    return msgspec.json.encode(schema).decode()


def _json(wanted: OutputFormat) -> str:
    text = '{"type":"object"}' if wanted.kind is FormatKind.JSON else wanted.text
    return f"%json {_refusing(wanted.kind, lambda: json_schema.prepared(text))}"


def _regex(text: str) -> str:
    if not text or len(text) > MAX_REGEX_CHARACTERS:
        raise FormatRefused(f"must have 1 to {MAX_REGEX_CHARACTERS} characters")
    lark.ensure_text(text, "the regular expression")
    return lark.regex(text)


def _choices(text: str) -> str:
    try:
        choices = msgspec.json.decode(text, type=list[str])
    except (msgspec.DecodeError, RecursionError):
        choices = []
    if not 0 < len(choices) <= MAX_CHOICES or not all(choices):
        raise FormatRefused(f"must be a list of 1 to {MAX_CHOICES} texts that aren't empty")
    if (characters := sum(len(choice) for choice in choices)) > MAX_CHOICE_CHARACTERS:
        raise FormatRefused(f"has {characters} characters, at most {MAX_CHOICE_CHARACTERS}")
    return " | ".join(map(lark.literal, choices))


def _refusing(kind: FormatKind, build: Callable[[], str], field: str | None = None) -> str:
    own_field, hint = _FIELDS[kind]
    try:
        return build()
    except FormatRefused as refused:
        raise errors.BadRequest(f"{field or own_field}: {short(str(refused))}", hint=hint) from None


def short(message: str) -> str:
    """Cut the middle: the place is at the start and the reason at the end."""
    half = MAX_CHARACTERS // 2
    return message if len(message) <= MAX_CHARACTERS else f"{message[:half]} … {message[-half:]}"
