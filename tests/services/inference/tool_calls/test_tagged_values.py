import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.tool_calls import tagged_values
from shared.api.generation import Tool


def value_of(text: str, schema: object) -> object:
    value: object = json.loads(tagged_values.arguments_of({"a": text}, {"a": schema}))["a"]
    return value


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        pytest.param("5", {"type": "string"}, "5", id="a text stays a text"),
        pytest.param("null", {"type": "string"}, "null", id="also where it looks like nothing"),
        pytest.param('"q"', {"type": "string"}, '"q"', id="with its quotes"),
        pytest.param("5", {"enum": ["5", "6"]}, "5", id="a choice of texts"),
        pytest.param("5", {"const": "5"}, "5", id="one text"),
        pytest.param("5", {"anyOf": [{"type": "string"}, {"const": "x"}]}, "5", id="texts of two kinds"),
        pytest.param(" 5\n", {"type": "integer"}, 5, id="a number between blanks"),
        pytest.param("5", {"type": ["string", "integer"]}, 5, id="a number or a text: a number"),
        pytest.param("5.5", {"type": ["string", "integer"]}, "5.5", id="a number or a text: no such number"),
        pytest.param("5", {"type": ["string", "boolean"]}, "5", id="a text or no number"),
        pytest.param("null", {"type": ["string", "null"]}, None, id="a text or nothing: nothing"),
        pytest.param("null", {"anyOf": [{"type": "string"}, {"type": "null"}]}, None, id="the same with anyOf"),
        pytest.param("some", {"type": ["string", "null"]}, "some", id="a text or nothing: a text"),
        pytest.param("True", {"type": "boolean"}, True, id="as Python writes it"),
        pytest.param("None", {"type": ["integer", "null"]}, None, id="nothing as Python writes it"),
        pytest.param("None", {}, "None", id="a word where nothing is said"),
        pytest.param('{"b": [1]}', {"type": "object"}, {"b": [1]}, id="an object"),
        pytest.param("[1, ", {"type": "array"}, "[1, ", id="half a list is a text"),
        pytest.param("soon", {"type": "integer"}, "soon", id="no number is a text"),
        pytest.param("7", None, 7, id="a parameter without a schema"),
        pytest.param("7", {"$ref": "#/$defs/x"}, 7, id="a reference"),
        pytest.param("7", {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/x"}]}, 7, id="a text or a reference"),
        pytest.param("7", True, 7, id="anything"),
        pytest.param("1e999", {"type": "number"}, "1e999", id="a number that is none"),
        pytest.param("[" * 5_000, {"type": "array"}, "[" * 5_000, id="deeper than can be read"),
    ],
)
def test_value_between_tags(text: str, schema: object, value: object) -> None:
    assert value_of(text, schema) == value
    assert type(value_of(text, schema)) is type(value)


def test_numbers_keep_all_their_digits() -> None:
    written = "123456789012345678901234567890.1000000000000000000001"
    assert tagged_values.arguments_of({"a": written}, {"a": {"type": "number"}}) == f'{{"a": {written}}}'


def test_names_are_encoded_as_json() -> None:
    assert json.loads(tagged_values.arguments_of({'"\n': "1", "é": "x"}, {})) == {'"\n': 1, "é": "x"}


@pytest.mark.parametrize("parameters", ["", "{}", "7", "{", '{"properties": 7}', "[" * 5_000])
def test_tool_without_parameter_schema(parameters: str) -> None:
    assert tagged_values.properties_of(Tool("f", "", parameters)) == {}


schemas = st.recursive(
    st.sampled_from(["string", "integer", "null", "x"]) | st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "anyOf", "enum", "const"]), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), st.text() | st.sampled_from(["1", "null", "True"])), st.dictionaries(st.text(max_size=1), schemas))
def test_any_text_and_any_schema_give_an_object(values: dict[str, str], properties: dict[str, object]) -> None:
    assert json.loads(tagged_values.arguments_of(values, properties)).keys() == values.keys()
