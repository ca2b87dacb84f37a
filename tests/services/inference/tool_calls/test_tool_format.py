import json

import jsonschema
import pytest

from services.inference.engine.prompt import ChatTemplate
from services.inference.structured_output import output_formats
from services.inference.tool_calls import tool_format
from services.inference.tool_calls.tool_call_parser import ParsedText, ToolCallParser
from services.inference.tool_calls.tool_format import ToolStyle
from shared import errors
from shared.api.generation import Tool, ToolCall
from tests.services.inference.engine import chat_templates, tool_style_templates

WEATHER = Tool("get_weather", "", '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}')
CLOCK = Tool("clock")
TREE = Tool(
    "plant",
    "",
    json.dumps(
        {
            "properties": {"tree": {"$ref": "#/$defs/tree"}, "old": {"$ref": "#/definitions/age"}, "like": {"$ref": "#/properties/tree"}},
            "$defs": {"tree": {"type": "object", "properties": {"below": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}},
            "definitions": {"age": {"type": "integer", "minimum": 0}},
            "required": ["tree"],
        }
    ),
)


def schema_of(style: ToolStyle, *tools: Tool) -> dict[str, object]:
    schema: dict[str, object] = json.loads(tool_format.grammar_schema(tools, style).schema)
    return schema


def accepts(schema: dict[str, object], value: object) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


@pytest.mark.parametrize(
    ("source", "style"),
    [
        pytest.param(chat_templates.HERMES, ToolStyle.HERMES, id="hermes"),
        pytest.param(chat_templates.LLAMA, ToolStyle.LLAMA, id="llama"),
        pytest.param(chat_templates.MISTRAL, ToolStyle.MISTRAL, id="mistral"),
        pytest.param(tool_style_templates.FUNCTION_TAGS, ToolStyle.FUNCTION_TAGS, id="coder"),
        pytest.param(tool_style_templates.KEY_TAGS, ToolStyle.KEY_TAGS, id="glm"),
        pytest.param(tool_style_templates.KEY_TAGS_TIGHT, ToolStyle.KEY_TAGS, id="glm without breaks"),
        pytest.param(tool_style_templates.MISTRAL_NAMED, ToolStyle.MISTRAL_NAMED, id="newer mistral"),
        pytest.param(tool_style_templates.MISTRAL_WITH_ID, ToolStyle.MISTRAL_NAMED, id="newer mistral with ids"),
        pytest.param(tool_style_templates.DEEPSEEK_FENCED, ToolStyle.DEEPSEEK_FENCED, id="deepseek"),
        pytest.param(tool_style_templates.DEEPSEEK, ToolStyle.DEEPSEEK, id="newer deepseek"),
        pytest.param(tool_style_templates.HARMONY, ToolStyle.HARMONY, id="gpt-oss"),
        pytest.param(chat_templates.GEMMA, ToolStyle.GENERIC, id="gemma"),
        pytest.param(chat_templates.packaged(), ToolStyle.GENERIC, id="packaged"),
        pytest.param(
            "{{ tools }}{% for m in messages %}{% for c in m.tool_calls or [] %}"
            "<tool_call><function={{ c.function.name }}>{{ c.function.arguments }}{% endfor %}{% endfor %}",
            ToolStyle.GENERIC,
            id="tags of its own kind",
        ),
        pytest.param(
            '{{ tools }} Write <tool_call>{"name": .., "arguments": ..}</tool_call>', ToolStyle.HERMES, id="only in its instructions"
        ),
        pytest.param("{{ tools }} Write <tool_call><function=..> with arguments", ToolStyle.GENERIC, id="another way in its instructions"),
        pytest.param("{{ tools }} Begin with [TOOL_CALLS]", ToolStyle.MISTRAL, id="mistral's instructions"),
        pytest.param("{{ tools }} Begin with [TOOL_CALLS]name[ARGS]", ToolStyle.MISTRAL_NAMED, id="mistral's newer instructions"),
        pytest.param(
            "{{ tools }} Write <tool_call><function=..><parameter=..> with arguments", ToolStyle.FUNCTION_TAGS, id="coder's instructions"
        ),
        pytest.param("{{ tools }} Write <tool_call>name<arg_key>..<arg_value>.. as arguments", ToolStyle.KEY_TAGS, id="glm's instructions"),
        pytest.param(
            "{{ tools }} <｜tool▁call▁begin｜>function<｜tool▁sep｜>name ```json", ToolStyle.DEEPSEEK_FENCED, id="deepseek's instructions"
        ),
        pytest.param("{{ tools }} <｜tool▁call▁begin｜>name<｜tool▁sep｜>", ToolStyle.DEEPSEEK, id="deepseek's newer instructions"),
        pytest.param("{{ tools }} <|channel|>commentary to=functions.name", ToolStyle.HARMONY, id="gpt-oss's instructions"),
        pytest.param('{{ tools }} <|python_tag|>{"name": .., "parameters": ..}', ToolStyle.LLAMA, id="llama's instructions"),
    ],
)
def test_style_is_read_from_the_template(source: str, style: ToolStyle) -> None:
    template = ChatTemplate(source, bos="<s>", eos="</s>")
    assert tool_format.style_of(source, template.rendered_call) is style


ARGUMENTS = {"city": "a"}
CALL = {"name": "get_weather", "arguments": ARGUMENTS}
LIST, LIST_END = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
COMMENTARY, MESSAGE = "<|channel|>commentary to=functions", " <|constrain|>json<|message|>"


def read_back(style: ToolStyle, answer: str, tools: tuple[Tool, ...]) -> ParsedText:
    parser = ToolCallParser(style, tools, lambda: "i")
    parsed = (parser.push(answer), parser.finish())
    return ParsedText("".join(part.text for part in parsed), parsed[0].calls + parsed[1].calls)


def check_format(style: ToolStyle, tools: tuple[Tool, ...], prefix: str, value: object, suffix: str) -> None:
    """That a call must be written so, that a grammar can say it, and that it is read as the call it is."""
    written = tool_format.grammar_schema(tools, style)
    assert (written.prefix, written.suffix) == (prefix, suffix)
    assert accepts(json.loads(written.schema), value)
    assert output_formats.grammar_of_schema(written.schema, field="tools", before=prefix, after=suffix)
    answer = prefix + json.dumps(value) + suffix
    assert read_back(style, answer, tools) == ParsedText("", (ToolCall("i", "get_weather", '{"city": "a"}'),))


@pytest.mark.parametrize(
    ("style", "prefix", "suffix", "call"),
    [
        (ToolStyle.HERMES, "<tool_call>\n", "\n</tool_call>", CALL),
        (ToolStyle.FUNCTION_TAGS, "<tool_call>\n", "\n</tool_call>", CALL),
        (ToolStyle.KEY_TAGS, "<tool_call>\n", "\n</tool_call>", CALL),
        (ToolStyle.LLAMA, "", "", {"name": "get_weather", "parameters": ARGUMENTS}),
        (ToolStyle.MISTRAL, "[TOOL_CALLS]", "", [CALL]),
        (ToolStyle.MISTRAL_NAMED, "[TOOL_CALLS]", "", [CALL]),
        (ToolStyle.DEEPSEEK_FENCED, LIST, LIST_END, CALL),
        (ToolStyle.DEEPSEEK, LIST, LIST_END, CALL),
        (ToolStyle.HARMONY, COMMENTARY + MESSAGE, "", CALL),
        (ToolStyle.GENERIC, "", "", CALL),
    ],
)
def test_name_is_in_the_json_if_there_are_several_tools(style: ToolStyle, prefix: str, suffix: str, call: object) -> None:
    check_format(style, (WEATHER, CLOCK, TREE), prefix, call, suffix)
    if not tool_format.SHAPES[style].before_arguments:
        check_format(style, (WEATHER,), prefix, call, suffix)


@pytest.mark.parametrize(
    ("style", "prefix", "suffix"),
    [
        (ToolStyle.MISTRAL_NAMED, "[TOOL_CALLS]get_weather[ARGS]", ""),
        (ToolStyle.DEEPSEEK_FENCED, f"{LIST}function<｜tool▁sep｜>get_weather\n```json\n", f"\n```{LIST_END}"),
        (ToolStyle.DEEPSEEK, f"{LIST}get_weather<｜tool▁sep｜>", LIST_END),
        (ToolStyle.HARMONY, f"{COMMENTARY}.get_weather{MESSAGE}", ""),
    ],
)
def test_name_of_the_only_tool_is_where_the_style_puts_it(style: ToolStyle, prefix: str, suffix: str) -> None:
    check_format(style, (WEATHER,), prefix, ARGUMENTS, suffix)


def test_arguments_of_the_only_tool_keep_their_references() -> None:
    schema = schema_of(ToolStyle.DEEPSEEK, TREE)
    assert accepts(schema, {"tree": {"below": [{"below": []}]}, "old": 3, "like": {}})
    assert not accepts(schema, {"tree": {"below": [{"below": 1}]}})
    assert not accepts(schema, {})


@pytest.mark.parametrize(
    ("call", "accepted"),
    [
        pytest.param({"name": "get_weather", "arguments": {"city": "a"}}, True, id="a tool with its arguments"),
        pytest.param({"name": "clock", "arguments": {}}, True, id="a tool without parameters"),
        pytest.param({"name": "clock", "arguments": {"city": "a"}}, False, id="another tool's arguments"),
        pytest.param({"name": "get_weather", "arguments": {}}, False, id="an argument missing"),
        pytest.param({"name": "get_weather"}, False, id="all arguments missing"),
        pytest.param({"name": "nothing", "arguments": {}}, False, id="no such tool"),
        pytest.param({"name": "clock", "arguments": {}, "more": 1}, False, id="something more"),
        pytest.param({"name": "plant", "arguments": {"tree": {"below": [{"below": []}]}, "old": 3, "like": {}}}, True, id="references"),
        pytest.param({"name": "plant", "arguments": {"tree": {"below": [{"below": 1}]}}}, False, id="wrong below a reference"),
        pytest.param({"name": "plant", "arguments": {"tree": {}, "old": -1}}, False, id="wrong in an older definition"),
        pytest.param({"name": "plant", "arguments": {"tree": {}, "like": 1}}, False, id="wrong in a reference to a property"),
    ],
)
def test_schema_of_several_tools(call: object, accepted: bool) -> None:
    assert accepts(schema_of(ToolStyle.GENERIC, WEATHER, CLOCK, TREE), call) is accepted
    assert accepts(schema_of(ToolStyle.MISTRAL, WEATHER, CLOCK, TREE), [call]) is accepted


def test_definitions_of_two_tools_stay_separate() -> None:
    texts = Tool("texts", "", '{"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "string"}}}')
    numbers = Tool("numbers", "", '{"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "number"}}}')
    schema = schema_of(ToolStyle.GENERIC, texts, numbers)
    assert accepts(schema, {"name": "texts", "arguments": {"a": "b"}})
    assert accepts(schema, {"name": "numbers", "arguments": {"a": 1}})
    assert not accepts(schema, {"name": "texts", "arguments": {"a": 1}})
    assert not accepts(schema, {"name": "numbers", "arguments": {"a": "b"}})


def test_schema_may_refer_to_itself() -> None:
    schema = schema_of(ToolStyle.LLAMA, Tool("nest", "", '{"properties": {"a": {"$ref": "#"}}, "additionalProperties": false}'))
    assert accepts(schema, {"name": "nest", "parameters": {"a": {"a": {}}}})
    assert not accepts(schema, {"name": "nest", "parameters": {"a": {"b": {}}}})


def test_parameter_may_have_the_name_of_a_keyword() -> None:
    tool = Tool("f", "", '{"properties": {"default": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "string"}}}')
    assert accepts(schema_of(ToolStyle.GENERIC, tool), {"name": "f", "arguments": {"default": "a"}})
    assert not accepts(schema_of(ToolStyle.GENERIC, tool), {"name": "f", "arguments": {"default": 1}})


def test_lookalike_references_are_left_alone() -> None:
    parameters = {
        "type": "object",
        "properties": {"$ref": {"const": {"$ref": "#/$defs/x"}}, "b": {"enum": [{"$ref": "#"}], "default": {"$ref": "#"}}},
    }
    tool = Tool("f", "", json.dumps(parameters))
    assert schema_of(ToolStyle.GENERIC, tool)["properties"] == {"name": {"const": "f"}, "arguments": parameters}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        pytest.param('{"type": "string"}', r"tools\[1\]\.function\.parameters must describe an object", id="a text"),
        pytest.param(
            '{"type": ["object", "null"]}', r"tools\[1\]\.function\.parameters must describe an object", id="an object or nothing"
        ),
        pytest.param("7", r"tools\[1\]\.function\.parameters must be a JSON schema", id="a number"),
        pytest.param('{"items":' * 50 + "{}" + "}" * 50, "nested deeper than 32", id="too deep"),
    ],
)
def test_unusable_parameters(parameters: str, message: str) -> None:
    with pytest.raises(errors.BadRequest, match=message):
        tool_format.grammar_schema((CLOCK, Tool("f", "", parameters)), ToolStyle.GENERIC)
    with pytest.raises(errors.BadRequest, match=message.replace(r"\[1\]", r"\[0\]")):
        tool_format.grammar_schema((Tool("f", "", parameters),), ToolStyle.HARMONY)


def test_marks_that_the_engine_must_show() -> None:
    lists = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")
    tags = ("<tool_call>", "</tool_call>")
    assert {style: shape.spellings for style, shape in tool_format.SHAPES.items()} == {
        ToolStyle.HERMES: tags,
        ToolStyle.FUNCTION_TAGS: tags,
        ToolStyle.KEY_TAGS: (*tags, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        ToolStyle.LLAMA: ("<|python_tag|>",),
        ToolStyle.MISTRAL: ("[TOOL_CALLS]",),
        ToolStyle.MISTRAL_NAMED: ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
        ToolStyle.DEEPSEEK_FENCED: lists,
        ToolStyle.DEEPSEEK: lists,
        ToolStyle.HARMONY: ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>"),
        ToolStyle.GENERIC: (),
    }
