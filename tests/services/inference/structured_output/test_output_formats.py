import json

import pytest

from services.inference.structured_output import lark, output_formats
from shared import errors
from shared.api.generation import FormatKind, OutputFormat, Tool
from tests.services.inference.structured_output import tool_schemas
from tests.services.inference.structured_output.byte_answers import BYTES, MARK, constraints, fits


def test_json_is_any_object() -> None:
    grammar = output_formats.grammar_of(OutputFormat(FormatKind.JSON))
    assert fits(grammar, '{"a":[1,{"b":null}]}')
    assert not fits(grammar, "[1]")


@pytest.mark.parametrize("name", tool_schemas.SCHEMAS)
def test_tools_of_real_servers_fit_the_limits(name: str) -> None:
    BYTES.compile(output_formats.grammar_of(OutputFormat(FormatKind.JSON_SCHEMA, json.dumps(tool_schemas.SCHEMAS[name]))))


def test_all_tools_together_fit_the_limits() -> None:
    tools = tuple(
        Tool(name, "", json.dumps(wanted)) for name, wanted in tool_schemas.SCHEMAS.items() if wanted.get("type", "object") == "object"
    )
    assert len(tools) >= 10
    BYTES.compile(output_formats.grammar_of_generic_calls(tools, None, parallel=True), "tools")


#: In llama.cpp's form.
PARTS: list[dict[str, object]] = [
    {"type": "literal", "literal": "<call>"},
    {"type": "literal", "literal": "f"},
    {"type": "tag", "tag": "tool-name", "child": 1},
    {"type": "schema", "child": 0},
    {"type": "tag", "tag": "tool-args", "child": 3},
    {"type": "literal", "literal": "</call>"},
    {"type": "sequence", "children": [0, 2, 4, 5]},
    {"type": "rule", "name": "call", "child": 6, "trigger": True},
]
PARSER = json.dumps({"arena": json.dumps({"parsers": PARTS, "rules": {"call": 7}})})


def tagged(parameters: object, wanted: OutputFormat | None) -> str:
    tools = (Tool("f", "", json.dumps(parameters)),)
    return output_formats.grammar_of_calls(PARSER, tools, wanted, parallel=False, strict=True)


def generic(parameters: object, wanted: OutputFormat | None, *, parallel: bool = False) -> str:
    return output_formats.grammar_of_generic_calls((Tool("f", "", json.dumps(parameters)), Tool("g")), wanted, parallel=parallel)


def test_an_answer_with_tools_is_a_call_or_has_the_format() -> None:
    parameters = {"properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}
    wanted = {
        "type": "object",
        "properties": {"y": {"$ref": "#/$defs/n"}},
        "required": ["y"],
        "additionalProperties": False,
        "$defs": {"n": {"type": "boolean"}},
    }
    asked = OutputFormat(FormatKind.JSON_SCHEMA, json.dumps(wanted))
    call = '{"tool_calls": [{"name": "f", "arguments": {"x":1}}]}'
    for grammar, calls in ((generic(parameters, asked), call), (tagged(parameters, asked), '<call>f{"x":1}</call>')):
        assert fits(grammar, calls)
        assert fits(grammar, '{"y":true}')
        for other in ('{"y":1}', "hello", calls.replace("1", "true"), calls.replace('"f"', '"h"').replace("<call>f", "<call>h")):
            assert not fits(grammar, other)
    assert fits(tagged(parameters, OutputFormat(FormatKind.JSON)), '{"any":[1]}')


def test_generic_calls_may_be_several_up_to_a_limit() -> None:
    one = '{"name": "g", "arguments": {}}'
    for count, parallel, is_taken in ((1, False, True), (2, False, False), (2, True, True), (16, True, True), (17, True, False)):
        text = f'{{"tool_calls": [{", ".join([one] * count)}]}}'
        assert fits(generic({}, None, parallel=parallel), text) is is_taken


@pytest.mark.parametrize(("schemas", "field"), [(({"not": {}}, "{}"), "tools"), (({}, '{"not":{}}'), "format.schema")])
def test_a_refusal_names_the_schema_of_the_tool_or_of_the_format(schemas: tuple[object, str], field: str) -> None:
    with pytest.raises(errors.BadRequest, match=rf"^{field}: "):
        generic(schemas[0], OutputFormat(FormatKind.JSON_SCHEMA, schemas[1]))


def test_parameters_of_another_type_are_refused() -> None:
    with pytest.raises(errors.BadRequest, match=r"^tools\[0\]\.function\.parameters must"):
        generic({"type": "string"}, None)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        pytest.param(
            OutputFormat(FormatKind.JSON_SCHEMA, '{"properties":{"a":{"type":"text"}}}'),
            r"^format\.schema: \$\.properties\.a\.type must be one of",
            id="the place in a schema",
        ),
        pytest.param(OutputFormat(FormatKind.JSON_SCHEMA, " " * 70_000), r"^format\.schema: the schema has 70000", id="a large schema"),
        pytest.param(OutputFormat(FormatKind.GBNF, "root ::= x"), r"^format\.grammar: the rule x is used", id="the place in a grammar"),
        pytest.param(OutputFormat(FormatKind.GBNF, ""), r"^format\.grammar: there is no rule `root`", id="no grammar"),
        pytest.param(OutputFormat(FormatKind.REGEX, ""), "^guided_regex: must have 1 to", id="no regular expression"),
        pytest.param(OutputFormat(FormatKind.REGEX, "a" * 5000), "^guided_regex: must have 1 to 4096", id="a long regular expression"),
        pytest.param(OutputFormat(FormatKind.REGEX, "a\0"), "^guided_regex: .*not text", id="a regular expression that is not text"),
        pytest.param(OutputFormat(FormatKind.CHOICE, "[]"), "^guided_choice: must be a list of 1 to 500", id="no choice"),
        pytest.param(OutputFormat(FormatKind.CHOICE, '["a",""]'), "^guided_choice: must be a list", id="a choice of nothing"),
        pytest.param(OutputFormat(FormatKind.CHOICE, "[1]"), "^guided_choice: must be a list", id="a choice that is no text"),
        pytest.param(OutputFormat(FormatKind.CHOICE, json.dumps(["x" * 15_001])), "15001 characters, at most", id="a long choice"),
    ],
)
def test_error_names_the_field(wanted: OutputFormat, message: str) -> None:
    with pytest.raises(errors.BadRequest, match=message) as raised:
        output_formats.grammar_of(wanted)
    assert raised.value.hint


@pytest.mark.parametrize(
    ("pattern", "taken", "refused"),
    [
        pytest.param("[a-z]+b", ["ab", "zbb"], ["b", "ab ", "xa"], id="the whole answer"),
        pytest.param("^a|b$", ["a", "b"], ["ab"], id="anchors"),
        pytest.param(r"\d{2}/\d\/\\/", ["12/3/\\/"], ["12/3"], id="slashes, and what stands before them"),
        pytest.param("a\nb\\\nc", ["a\nb\nc"], ["ab"], id="line breaks"),
        pytest.param("(?i)yes", ["YES", "yes"], ["no"], id="a flag"),
    ],
)
def test_an_answer_matches_a_regular_expression(pattern: str, taken: list[str], refused: list[str]) -> None:
    grammar = output_formats.grammar_of(OutputFormat(FormatKind.REGEX, pattern))
    assert [text for text in taken if not fits(grammar, text)] == []
    assert [text for text in refused if fits(grammar, text)] == []


def test_an_answer_is_one_of_the_choices() -> None:
    choices = ["a", "ab", 'say "ü"\n', "c|d", "\\x"]
    grammar = output_formats.grammar_of(OutputFormat(FormatKind.CHOICE, json.dumps(choices)))
    assert all(fits(grammar, choice) for choice in choices)
    assert not any(fits(grammar, other) for other in ("", "abb", "c", "d", "x"))


def test_a_shown_special_token_is_text() -> None:
    for shown in (True, False):
        constraint = constraints(shown=shown).start(lark.grammar('"<mark>1"'))
        assert constraint.allows(MARK) is shown
        assert constraint.allows(ord("<"))
    constraint = constraints(shown=True).start(lark.grammar('"<mark>1"'))
    constraint.accept(MARK)
    assert constraint.allows(ord("1"))


def test_a_special_token_is_no_text() -> None:
    constraint = constraints().start(output_formats.grammar_of(OutputFormat(FormatKind.REGEX, ".*")))
    assert not constraint.allows(MARK)
    constraint.accept(ord("<"))
    assert constraint.allows(ord("m"))


def test_very_long_name_is_shortened_in_the_error() -> None:
    with pytest.raises(errors.BadRequest, match="must be one of") as raised:
        output_formats.grammar_of(OutputFormat(FormatKind.JSON_SCHEMA, json.dumps({"properties": {"x" * 60_000: {"type": "text"}}})))
    assert len(raised.value.message) < 500
