"""Turns a request's format into a grammar, or names the field that isn't possible.  Pure."""

from typing import assert_never

from services.inference.structured_output import gbnf, grammar_limits, schema
from services.inference.structured_output.gbnf import SchemaRefused
from services.inference.tool_calls.tool_format import CallFormat
from shared import errors
from shared.api.generation import FormatKind, OutputFormat

#: Of an error message: names in a schema may be as long as the schema.
MOST_CHARACTERS = 400

SCHEMA_FIELD = "format.schema"
GRAMMAR_FIELD = "format.grammar"


def grammar_of(wanted: OutputFormat) -> str:
    """Raises BadRequest."""
    match wanted.kind:
        case FormatKind.JSON:
            return any_object()
        case FormatKind.JSON_SCHEMA:
            return grammar_of_schema(wanted.text)
        case FormatKind.GBNF:
            return _checked(wanted.text, GRAMMAR_FIELD)
        case _:
            assert_never(wanted.kind)


def grammar_of_schema(text: str, *, field: str = SCHEMA_FIELD, before: str = "", after: str = "") -> str:
    """Build the grammar for JSON that fits a schema, between two fixed texts. Raises BadRequest, which starts with the field."""
    rules = gbnf.GbnfRules()
    grammar = rules.render(_expression(rules, text, field, before, after))
    return _checked(grammar, field, hint=_HINTS[SCHEMA_FIELD])


def grammar_of_either(call: CallFormat, wanted: OutputFormat) -> str:
    """Build the grammar for an answer that is a tool call or has a JSON format. Raises BadRequest."""
    rules = gbnf.GbnfRules()
    called = _expression(rules, call.schema, "tools", call.prefix, call.suffix)
    answer = _expression(rules, wanted.text, SCHEMA_FIELD) if wanted.kind is FormatKind.JSON_SCHEMA else rules.built_in("object")
    return _checked(rules.render(f"{called} | {answer}"), f"tools and {SCHEMA_FIELD}", hint=_HINTS[SCHEMA_FIELD])


def any_object() -> str:
    rules = gbnf.GbnfRules()
    return rules.render(rules.built_in("object"))


def _expression(rules: gbnf.GbnfRules, text: str, field: str, before: str = "", after: str = "") -> str:
    try:
        return schema.expression_of(text, rules, before=before, after=after)
    except SchemaRefused as refused:
        raise errors.BadRequest(f"{field}: {_short(str(refused))}", hint=_HINTS[SCHEMA_FIELD]) from None


_HINTS = {
    SCHEMA_FIELD: "simplify the schema there; a $ref may only refer to itself through a property or an item",
    GRAMMAR_FIELD: "the grammar must be GBNF for llama.cpp",
}


def _checked(grammar: str, field: str, hint: str = _HINTS[GRAMMAR_FIELD]) -> str:
    try:
        grammar_limits.check(grammar)
    except SchemaRefused as refused:
        raise errors.BadRequest(f"{field}: {_short(str(refused))}", hint=hint) from None
    return grammar


def _short(message: str) -> str:
    """Cut the middle: the place is at the start and the reason at the end."""
    half = MOST_CHARACTERS // 2
    return message if len(message) <= MOST_CHARACTERS else f"{message[:half]} … {message[-half:]}"
