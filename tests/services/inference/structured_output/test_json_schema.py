"""Which JSON llguidance accepts for a schema, and which schemas are refused first."""

import json
from string import ascii_uppercase

import pytest

from services.inference.structured_output import json_schema
from services.inference.structured_output.lark import FormatRefused
from shared import errors
from tests.services.inference.structured_output.byte_answers import BYTES, compact, fits, grammar_of

NODE = {
    "$defs": {"node": {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}}, "required": ["v"]}}
}
CLOSED = {"additionalProperties": False}
A_OR_B = {"a": {"type": "integer"}, "b": {"type": "boolean"}}


@pytest.mark.parametrize(
    ("wanted", "taken", "refused"),
    [
        pytest.param({}, [1, "a", None, [], {"a": [{}, 1.5]}, True, -3e5], [], id="an empty schema is any value"),
        pytest.param(True, [1, {"a": 1}], [], id="true is any value"),
        pytest.param({"type": "object"}, [{}, {"a": {"b": [1]}}], [[], 1], id="any object"),
        pytest.param({"type": "array"}, [[], [1, "a", [2]]], [{}, "a"], id="any array"),
        pytest.param({"type": "boolean"}, [True, False], [0, "true", None], id="a boolean"),
        pytest.param({"type": "null"}, [None], [0, False], id="null"),
        pytest.param({"type": ["string", "null"]}, ["a", None], [1, [None]], id="a list of types"),
        pytest.param({"type": "string", "nullable": True}, ["a", None], [1], id="nullable, as OpenAPI writes it"),
        pytest.param(
            {"type": "object", "properties": A_OR_B},
            [{}, {"a": 1}, {"b": True}, {"a": 1, "b": False}],
            [{"c": 1}, {"a": "1"}],
            id="optional properties",
        ),
        pytest.param(
            {"type": "object", "properties": A_OR_B, "required": ["b"]},
            [{"b": True}, {"a": 1, "b": True}],
            [{}, {"a": 1}],
            id="the second one required",
        ),
        pytest.param(
            {"type": "object", "properties": A_OR_B, "required": ["a"]},
            [{"a": 1}, {"a": 1, "b": True}],
            [{}, {"b": True}],
            id="the first one required",
        ),
        pytest.param(
            {"type": "object", "properties": A_OR_B, "required": ["a", "b"]},
            [{"a": 1, "b": True}],
            [{"a": 1}, {"b": True, "a": 1}],
            id="all required, in the schema's order",
        ),
        pytest.param({"properties": A_OR_B}, [{"a": 1}], ["a", 1], id="properties without a type are an object's"),
        pytest.param(
            {"type": "object", "properties": A_OR_B, "additionalProperties": True},
            [{"a": 1, "c": [1]}, {"c": 1, "d": 2}, {}],
            [{"a": "x"}],
            id="and any others",
        ),
        pytest.param(
            {"type": "object", "properties": A_OR_B, "additionalProperties": {"type": "string"}},
            [{"a": 1, "c": "x"}, {"ab": "x"}, {"": "x"}],
            [{"c": 1}, {"b": "x"}],
            id="and others of a type",
        ),
        pytest.param({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"x": 1, "y": 2}], [{"x": "1"}], id="a map"),
        pytest.param(
            {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 2},
            [{"x": 1}, {"x": 1, "y": 2}],
            [{}, {"x": 1, "y": 2, "z": 3}],
            id="a map of one or two",
        ),
        pytest.param(
            {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}, "additionalProperties": {"type": "null"}},
            [{"ab": None}],
            [{"A": None}],
            id="names that fit a pattern",
        ),
        pytest.param({"type": "object", **CLOSED}, [{}], [{"a": 1}], id="an object without properties"),
        pytest.param(
            {"type": "object", "required": ["x"]}, [{"x": 1}, {"x": "a", "y": 2}], [{}, {"y": 1}], id="required without being described"
        ),
        pytest.param({"type": "object", "properties": {"a": False, "b": {}}}, [{"b": 1}], [{"a": 1}], id="a property that may not be"),
        pytest.param(
            {"type": "object", "properties": {'q"\\ü': {"type": "null"}}, "required": ['q"\\ü']},
            [{'q"\\ü': None}],
            [{"q": None}],
            id="a name that JSON and GBNF escape",
        ),
        pytest.param({"type": "array", "items": {"type": "integer"}}, [[], [1], [1, 2, 3]], [["a"], [1, None]], id="items"),
        pytest.param(
            {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
            [[1, 2], [1, 2, 3]],
            [[], [1], [1, 2, 3, 4]],
            id="two or three items",
        ),
        pytest.param({"type": "array", "items": {"type": "integer"}, "maxItems": 0}, [[]], [[1]], id="no items"),
        pytest.param({"type": "array", "items": {"type": "integer"}, "maxItems": 1}, [[], [1]], [[1, 2]], id="one item at most"),
        pytest.param({"type": "array", "items": False}, [[]], [[1]], id="items that may not be"),
        pytest.param(
            {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]},
            [[1, "a"], [1]],
            [["a", 1], [1, "a", 2]],
            id="a tuple, whose end may be left out",
        ),
        pytest.param(
            {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "string"}, "maxItems": 3},
            [[], [1], [1, "a", "b"]],
            [[1, 2], [1, "a", "b", "c"]],
            id="a tuple and more",
        ),
        pytest.param(
            {"type": "array", "items": [{"type": "integer"}, {"type": "string"}], "additionalItems": False},
            [[1, "a"]],
            [[1, "a", 2]],
            id="a tuple as it was written before 2020",
        ),
        pytest.param(
            {"enum": ["a", "ab", "b", 1, 12, 1.5, None, True, {"k": [1]}, 'q"']},
            ["a", "ab", "b", 1, 12, 1.5, None, True, {"k": [1]}, 'q"'],
            ["", "abc", 2, 121, False],
            id="an enum of all kinds",
        ),
        pytest.param({"type": "string", "enum": ["a", 1]}, ["a"], [1], id="an enum's values that are of the type"),
        pytest.param({"const": "x\ny"}, ["x\ny"], ["x", "xy"], id="a constant"),
        pytest.param({"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "string"}}]}, [1, ["a"]], ["a", [1]], id="anyOf"),
        pytest.param({"oneOf": [{"const": 1}, {"const": 2}]}, [1, 2], [3], id="oneOf"),
        pytest.param(
            {"type": "object", "properties": A_OR_B, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
            [{"a": 1}, {"b": True}, {"a": 1, "b": True}],
            [{}],
            id="anyOf of what is required",
        ),
        pytest.param(
            {"type": "integer", "anyOf": [{"minimum": 5}, {"type": "string"}, False]},
            [5, 77],
            [4, "a"],
            id="anyOf with an alternative that cannot be",
        ),
        pytest.param(
            {
                "allOf": [
                    {"properties": {"a": {"type": "number"}}, "required": ["a"]},
                    {"properties": {"a": {"type": "integer"}, "b": {"enum": [1, 2]}}},
                ]
            },
            [{"a": 1}, {"a": 1, "b": 2}],
            [{}, {"a": 1.5}, {"a": 1, "b": 3}],
            id="allOf of objects",
        ),
        pytest.param(
            {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5, "type": ["integer", "null"]}]},
            [3, 5],
            [2, 6, None],
            id="allOf of bounds",
        ),
        pytest.param({"allOf": [{"enum": [1, 2, 3]}, {"enum": [2, 3, 4]}]}, [2, 3], [1, 4], id="allOf of enums"),
        pytest.param(
            {"$defs": {"t": {"type": "string", "minLength": 1}}, "allOf": [{"$ref": "#/$defs/t"}], "description": "x"},
            ["a"],
            ["", 1],
            id="allOf of one, as pydantic writes it",
        ),
        pytest.param({"definitions": {"a/b~c": {"const": 1}}, "$ref": "#/definitions/a~1b~0c"}, [1], [2], id="a pointer with escapes"),
        pytest.param(
            {**NODE, "$ref": "#/$defs/node"},
            [{"v": 1}, {"v": 1, "next": {"v": 2, "next": {"v": 3}}}],
            [{"next": {"v": 1}}, {"v": 1, "next": {}}],
            id="a recursive list",
        ),
        pytest.param(
            {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}},
            [{}, {"kids": [{}, {"kids": []}]}],
            [{"kids": [1]}],
            id="a recursive tree",
        ),
        pytest.param({"type": "string", "enum": None, "items": None}, ["a"], [1, None], id="keywords that are null are left out"),
        pytest.param({"type": "null", "const": None}, [None], [1], id="but a constant may be null"),
        pytest.param({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "äöü", '"\\'], ["a", "abcd"], id="two or three characters"),
        pytest.param({"type": "string", "maxLength": 0}, [""], ["a"], id="no characters"),
        pytest.param({"type": "string", "maxLength": 3_000}, ["", "a" * 3_000], ["a" * 3_001], id="maxLength 3,000"),
        pytest.param({"type": "string", "minLength": 2}, ["ab", "a" * 50], ["a"], id="at least two characters"),
        pytest.param({"type": "string", "format": "date"}, ["2026-11-20"], ["2026-13-01", "2026-1-1", "20261120"], id="a date"),
        pytest.param({"type": "string", "format": "time"}, ["23:59:59Z", "01:02:03.5+01:00"], ["24:00:00Z", "01:02Z"], id="a time"),
        pytest.param({"type": "string", "format": "date-time"}, ["2026-11-20T01:02:03Z"], ["2026-11-20"], id="a date and time"),
        pytest.param({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"], id="a UUID"),
        pytest.param({"type": "string", "format": "email"}, ["a.b+c@example.co.uk"], ["a@", "@b.c", "a b@c.d"], id="an address of email"),
        pytest.param({"type": "string", "format": "ipv4"}, ["192.168.0.255"], ["256.1.1.1", "1.2.3"], id="an IPv4 address"),
        pytest.param({"type": "string", "format": "uri"}, ["https://example.com/a?b=c"], ["x", 1], id="a URI"),
        pytest.param({"type": "integer", "format": "int32"}, [5], ["5"], id="a format of another type is an annotation"),
        pytest.param({"allOf": [{"pattern": "^a"}, {"pattern": "b$"}]}, ["ab", "axb"], ["a", "b"], id="two patterns"),
        pytest.param({"pattern": "a|b"}, ["xax", "b"], ["x", ""], id="a pattern without anchors"),
        pytest.param({"pattern": r"^\d\s\w$"}, ["1 _"], ["1_"], id="classes"),
        pytest.param({"pattern": r'^["\\]$'}, ['"', "\\"], ["a"], id="a pattern of what JSON escapes"),
        pytest.param({"type": "number", "multipleOf": 0.5}, [1, 1.5], [1.2], id="multipleOf"),
        pytest.param(
            {"type": "object", "patternProperties": {"^x-": {"type": "integer"}}, "additionalProperties": False},
            [{}, {"x-a": 1}],
            [{"x-a": "1"}, {"a": 1}],
            id="patternProperties",
        ),
        pytest.param({"type": "object", "propertyNames": {"type": "string"}}, [{"a": 1}], [1], id="propertyNames as zod writes it"),
        pytest.param(
            {
                "$defs": {"base": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
                "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {"type": "boolean"}}, "required": ["b"]}],
            },
            [{"a": 1, "b": True}],
            [{"a": 1}, {"a": True, "b": True}],
            id="allOf of a definition and more properties",
        ),
        pytest.param(
            {"$schema": "https://example.com/own", "$id": "https://example.com/x", "x-defs": {"n": {"const": 1}}, "$ref": "#/x-defs/n"},
            [1],
            [2],
            id="a $ref into an unknown keyword, and addresses that nothing fetches",
        ),
        pytest.param({"type": "string", "pattern": "^[a-z]{2}-\\d+$"}, ["ab-1", "zz-123"], ["ab", "AB-1", "xab-1"], id="a pattern"),
        pytest.param({"type": "integer"}, [0, -5, 10**18], ["1", None], id="an integer"),
        pytest.param({"type": "integer", "minimum": 1, "maximum": 100}, [1, 9, 10, 99, 100], [0, 101, -1, 1000], id="from 1 to 100"),
        pytest.param({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 5}, [1, 4], [0, 5], id="exclusive bounds"),
        pytest.param({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, [1], [0], id="exclusive bounds of draft 4"),
        pytest.param({"type": "integer", "minimum": 1.5}, [2], [1], id="an integer above a fraction"),
        pytest.param({"type": "number"}, [0, -1.5, 1e30, 2.5e-7], ["1"], id="a number"),
        pytest.param({"type": "number", "minimum": 0, "maximum": 1}, [0, 0.5, 1], [1.5, -0.1, 2], id="a probability"),
        pytest.param({"type": "number", "minimum": -90, "maximum": 90}, [-90, -89.9, 0, 90], [90.1, -91, 100], id="a latitude"),
        pytest.param(
            {"type": "string", "title": "t", "default": 1, "examples": [], "$comment": "", "x-order": 3, "format": None},
            ["a"],
            [1],
            id="annotations are passed over",
        ),
    ],
)
def test_accepted_values(wanted: object, taken: list[object], refused: list[object]) -> None:
    grammar = grammar_of(wanted)
    assert [value for value in taken if not fits(grammar, compact(value))] == []
    assert [value for value in refused if fits(grammar, compact(value))] == []


@pytest.mark.parametrize(
    ("text", "is_taken"),
    [
        ('{"a":1,"b":[1,2]}', True),
        ('{"a": 1, "b": [1, 2]}', True),
        ('{"a":  1}', False),
        ('{ "a":1}', False),
        ('{"a":1 }', False),
        ('{"a":1}\n', False),
        ('{"a":01}', False),
        ('{"a":1.}', False),
        ('{"a":"\t"}', False),
        ('{"a":"\\ud800"}', False),
        ('{"a":"\\t\\""}', True),
    ],
)
def test_only_compact_json_is_generated(text: str, is_taken: bool) -> None:
    assert fits(grammar_of({"type": "object"}), text) == is_taken


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        pytest.param(3, r"^\$: a schema must be an object", id="no schema"),
        pytest.param({"properties": {"a": {"type": "strnig"}}}, r"^\$\.properties\.a\.type must be one of", id="a misspelt type"),
        pytest.param({"properties": {"a": {"not": {}}}}, r"^\$\.properties\.a: `not` is not supported", id="not"),
        pytest.param({"items": {"if": {}, "then": {}}}, r"^\$\.items: `if` is not supported", id="if"),
        pytest.param({"items": {"uniqueItems": True}}, r"^\$\.items: `uniqueItems` is not supported", id="uniqueItems"),
        pytest.param({"items": {"contains": {}}}, r"^\$\.items: `contains` is not supported", id="contains"),
        pytest.param({"x-guidance": {"lenient": True}, "not": {}}, "is not supported", id="llguidance's own option to ignore keywords"),
        pytest.param({"properties": {"a": {"format": "regex"}}}, r"^\$\.properties\.a\.format must be one of date-time", id="a format"),
        pytest.param({"propertyNames": {"minLength": 2}}, r"^\$: `propertyNames` is only", id="propertyNames with more than a pattern"),
        pytest.param({"nullable": True, "enum": ["a"]}, r"^\$: `nullable` needs `type`", id="nullable without a type"),
        pytest.param({"multipleOf": 0}, r"\$\.multipleOf must be more than 0", id="a multiple of nothing"),
        pytest.param({"multipleOf": 99991}, r"at most 10000", id="a multiple that compiles for seconds"),
        pytest.param({"patternProperties": {f"^{n}": {} for n in range(17)}}, "has 17 patterns, at most 16", id="many patterns"),
        pytest.param({"pattern": "a" * 257}, "has 257 characters, at most 256", id="a long pattern"),
        pytest.param({"$ref": "#/$defs/none"}, "points to nothing", id="a $ref to nothing"),
        pytest.param({"$ref": "https://example.com/schema"}, "must point into this schema", id="a $ref to elsewhere"),
        pytest.param({"type": "string", "pattern": "(?<=x)y"}, r"^\$\.pattern: look-around", id="a lookbehind"),
        pytest.param({"type": "string", "minLength": 5, "maxLength": 4}, "minLength 5 is above maxLength 4", id="lengths that cross"),
        pytest.param(
            {"type": "string", "minLength": 1001}, r"\$\.minLength: 1001 is more than the maximum of 1000", id="a long least length"
        ),
        pytest.param({"type": "string", "maxLength": -1}, r"\$\.maxLength must be a non-negative whole number", id="a negative length"),
        pytest.param({"type": "string", "maxLength": "9"}, r"\$\.maxLength must be a non-negative whole number", id="a length in quotes"),
        pytest.param({"type": "integer", "minimum": 5, "maximum": 4}, r"\$: minimum 5 is above maximum 4", id="bounds that cross"),
        pytest.param({"type": "integer", "minimum": "5"}, r"\$\.minimum must be a number", id="a bound in quotes"),
        pytest.param({"type": "array", "minItems": 3, "maxItems": 2}, r"\$: minItems 3 is above maxItems 2", id="sizes that cross"),
        pytest.param({"type": "object", "properties": [], "required": []}, r"\$\.properties must be an object", id="properties as a list"),
        pytest.param({"type": "object", "required": [1]}, r"\$\.required must be a list of strings", id="required that are no names"),
        pytest.param({"enum": []}, r"\$\.enum must be a list with at least one", id="an empty enum"),
        pytest.param({"enum": list(range(501))}, "has 501 values, at most 500", id="a long enum"),
        pytest.param(
            {"properties": {f"p{n}": {"enum": list(range(n, n + 150))} for n in range(7)}}, "more than 1000 values", id="many enums"
        ),
        pytest.param({"anyOf": []}, r"\$\.anyOf must be a list", id="an empty anyOf"),
        pytest.param(False, "no value fits `false`", id="false"),
    ],
)
def test_refused_schemas(wanted: object, message: str) -> None:
    with pytest.raises(FormatRefused, match=message):
        grammar_of(wanted)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(
            [f"{first}{second}" for first in ascii_uppercase for second in ascii_uppercase][:249], id="the codes of all countries"
        ),
        pytest.param([f"{n:030}" for n in range(500)], id="as many and as long as OpenAI takes"),
        pytest.param([f"{n:061}" for n in range(250)], id="fewer may be longer"),
    ],
)
def test_long_enum_accepts_exactly_its_values(values: list[str]) -> None:
    grammar = grammar_of({"enum": values})
    for value in (values[0], values[77], values[-1]):
        assert fits(grammar, json.dumps(value))
        assert not fits(grammar, json.dumps(f"{value}0"))
    assert not fits(grammar, '""')


@pytest.mark.parametrize("text", ["", "{", "nul", '{"type":"object"} x', "[" * 100_000, "{'a': 1}"])
def test_invalid_json_is_refused(text: str) -> None:
    with pytest.raises(FormatRefused):
        json_schema.prepared(text)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        pytest.param({"type": "array", "items": False, "minItems": 1}, "prefix items do not satisfy minItems|Unsatisfiable", id="no items"),
        pytest.param({"properties": {"a": False}, "required": ["a"]}, "required property 'a' is unsatisfiable", id="a required false"),
        pytest.param({"type": "string", "enum": [1]}, "Unsatisfiable schema", id="an enum of another type"),
        pytest.param({"anyOf": [False]}, "Unsatisfiable schema", id="anyOf of nothing"),
        pytest.param({"allOf": [{"type": "string"}, {"type": "array"}]}, "incompatible types", id="allOf that contradicts itself"),
        pytest.param({"$ref": "#"}, "no answer fits it", id="a schema that is itself"),
        pytest.param({"allOf": [{"$ref": "#"}, {"type": "object"}]}, "circular references", id="an allOf of itself"),
        pytest.param(
            {"properties": {"a": {}, "b": {}, "c": {}}, "minProperties": 2},
            "min/maxProperties only",
            id="some of the properties",
        ),
        pytest.param({"pattern": r"(a)\1"}, "backreferences are not supported", id="a back-reference"),
        pytest.param({"pattern": "(a"}, "unclosed group", id="half a pattern"),
    ],
)
def test_schemas_that_llguidance_refuses(wanted: object, message: str) -> None:
    with pytest.raises(errors.BadRequest, match=f"^format: .*({message})") as raised:
        BYTES.compile(grammar_of(wanted))
    assert len(raised.value.message) < 500
    assert "guidance" not in raised.value.message
