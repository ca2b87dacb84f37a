import json

import pytest

from services.inference.structured_output import output_formats
from services.inference.tool_calls import tool_format
from services.inference.tool_calls.tool_format import CallFormat, ToolStyle
from shared import errors
from shared.api.generation import FormatKind, OutputFormat, Tool
from tests.services.inference.structured_output import tool_schemas
from tests.services.inference.structured_output.gbnf_texts import fits


def test_json_is_any_object() -> None:
    grammar = output_formats.grammar_of(OutputFormat(FormatKind.JSON))
    assert fits(grammar, '{"a":[1,{"b":null}]}')
    assert not fits(grammar, "[1]")


def test_grammar_is_passed_on_unchanged() -> None:
    assert output_formats.grammar_of(OutputFormat(FormatKind.GBNF, 'root ::= "a"')) == 'root ::= "a"'


@pytest.mark.parametrize("name", tool_schemas.SCHEMAS)
def test_tools_of_real_servers_fit_the_limits(name: str) -> None:
    assert output_formats.grammar_of(OutputFormat(FormatKind.JSON_SCHEMA, json.dumps(tool_schemas.SCHEMAS[name])))


def test_all_tools_together_fit_the_limits() -> None:
    calls = [
        {"properties": {"name": {"const": name}, "arguments": wanted}, "required": ["name", "arguments"]} for name, wanted in ALONE.items()
    ]
    assert output_formats.grammar_of_schema(json.dumps({"anyOf": calls}), before="<tool_call>", after="</tool_call>")


@pytest.mark.parametrize("style", [ToolStyle.HERMES, ToolStyle.GENERIC])
def test_an_answer_with_tools_is_a_call_or_has_the_format(style: ToolStyle) -> None:
    parameters = {"type": "object", "properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}
    wanted = {
        "type": "object",
        "properties": {"y": {"$ref": "#/$defs/n"}},
        "required": ["y"],
        "additionalProperties": False,
        "$defs": {"n": {"type": "boolean"}},
    }
    call = tool_format.grammar_schema((Tool("f", "", json.dumps(parameters)),), style)
    grammar = output_formats.grammar_of_either(call, OutputFormat(FormatKind.JSON_SCHEMA, json.dumps(wanted)))
    assert fits(grammar, call.prefix + '{"name":"f","arguments":{"x":1}}' + call.suffix)
    assert fits(grammar, '{"y":true}')
    for other in ('{"y":1}', "hello", '{"name":"g","arguments":{}}', '{"name":"f","arguments":{"x":true}}'):
        assert not fits(grammar, other)
    assert fits(output_formats.grammar_of_either(call, OutputFormat(FormatKind.JSON)), '{"any":[1]}')


@pytest.mark.parametrize(("schemas", "field"), [(('{"not":{}}', "{}"), "tools"), (("{}", '{"not":{}}'), "format.schema")])
def test_a_refusal_names_the_schema_of_the_tool_or_of_the_format(schemas: tuple[str, str], field: str) -> None:
    with pytest.raises(errors.BadRequest, match=rf"^{field}: "):
        output_formats.grammar_of_either(CallFormat("", schemas[0], ""), OutputFormat(FormatKind.JSON_SCHEMA, schemas[1]))


#: A $ref points into the whole schema, so those with definitions of their own stand alone.
ALONE = {name: wanted for name, wanted in tool_schemas.SCHEMAS.items() if "$ref" not in json.dumps(wanted)}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        pytest.param(
            OutputFormat(FormatKind.JSON_SCHEMA, '{"properties":{"a":{"type":"text"}}}'),
            r"^format\.schema: \$\.properties\.a\.type must be one of",
            id="the place in a schema",
        ),
        pytest.param(OutputFormat(FormatKind.JSON_SCHEMA, " " * 70_000), r"^format\.schema: the schema has 70000", id="a large schema"),
        pytest.param(
            OutputFormat(FormatKind.JSON_SCHEMA, json.dumps({"enum": [str(n) * 120 for n in range(100, 200)]})),
            r"^format\.schema: the grammar has \d+ bytes, at most 32768",
            id="a schema whose grammar is large",
        ),
        pytest.param(
            OutputFormat(FormatKind.JSON_SCHEMA, '{"$ref":"#"}'), r"^format\.schema: .* starts with itself", id="a schema that is itself"
        ),
        pytest.param(OutputFormat(FormatKind.GBNF, "root ::= x"), r"^format\.grammar: the rule x is used", id="the place in a grammar"),
        pytest.param(OutputFormat(FormatKind.GBNF, ""), r"^format\.grammar: there is no rule `root`", id="no grammar"),
    ],
)
def test_error_names_the_field(wanted: OutputFormat, message: str) -> None:
    with pytest.raises(errors.BadRequest, match=message) as raised:
        output_formats.grammar_of(wanted)
    assert raised.value.hint


def test_very_long_name_is_shortened_in_the_error() -> None:
    with pytest.raises(errors.BadRequest, match="must be one of") as raised:
        output_formats.grammar_of_schema(json.dumps({"properties": {"x" * 60_000: {"type": "text"}}}))
    assert len(raised.value.message) < 500
