"""Random schemas: only valid values are accepted, and generated text is valid. jsonschema is the reference."""

import json
import random
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests import tiers
from tests.services.inference.structured_output import tool_schemas
from tests.services.inference.structured_output.byte_answers import compact, drawn, fits, grammar_of

names = st.text(alphabet='abcä"\\_', max_size=4)
texts = st.text(alphabet=st.characters(min_codepoint=0x20, exclude_categories=["Cs"]), max_size=6)
scalar_schemas: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.just({"type": "number"}),
    st.tuples(st.integers(-2000, 2000), st.integers(0, 3000)).map(
        lambda pair: {"type": "integer", "minimum": pair[0], "maximum": sum(pair)}
    ),
    st.tuples(st.integers(-99, 99), st.integers(0, 200)).map(lambda pair: {"type": "number", "minimum": pair[0], "maximum": sum(pair)}),
    st.tuples(st.integers(0, 4), st.integers(0, 4)).map(lambda pair: {"type": "string", "minLength": pair[0], "maxLength": sum(pair)}),
    st.lists(st.one_of(texts, st.integers(), st.none()), min_size=1, max_size=6).map(lambda values: {"enum": values}),
)


def _compound(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def an_object(properties: dict[str, dict[str, Any]], pick: int, is_open: bool) -> dict[str, Any]:
        required = [name for index, name in enumerate(properties) if pick >> index & 1]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": is_open}

    return st.one_of(
        st.builds(an_object, st.dictionaries(names, inner, max_size=4), st.integers(0, 15), st.booleans()),
        st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
            lambda t: {"type": "array", "items": t[0], "minItems": t[1], "maxItems": t[1] + t[2]}
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda several: {"type": "array", "prefixItems": several, "items": False}),
        st.lists(inner, min_size=1, max_size=3).map(lambda several: {"anyOf": several}),
    )


schemas = st.recursive(scalar_schemas, _compound, max_leaves=8)


def instance(wanted: dict[str, Any], rng: random.Random) -> Any:
    """Return a value that fits a schema of `schemas`."""
    if "anyOf" in wanted:
        return instance(rng.choice(wanted["anyOf"]), rng)
    if "enum" in wanted:
        return rng.choice(wanted["enum"])
    low, high = wanted.get("minimum", -1000), wanted.get("maximum", 1000)
    draw: dict[str, Callable[[], Any]] = {
        "null": lambda: None,
        "boolean": lambda: rng.random() < 0.5,
        "integer": lambda: rng.randint(low, high),
        "number": lambda: rng.choice([low, high, _shortest(round(rng.uniform(low, high), 3))]),
        "string": lambda: "".join(rng.choices('aZ"\\/ä中🦊\n', k=rng.randint(wanted["minLength"], wanted["maxLength"]))),
        "array": lambda: [instance(item, rng) for item in _items(wanted, rng)],
        "object": lambda: {
            name: instance(value, rng) for name, value in wanted["properties"].items() if name in wanted["required"] or rng.random() < 0.5
        },
    }
    return draw[wanted["type"]]()


def _shortest(number: float) -> float:
    """Return a whole number as an int: of a number that is the only one, or of 0 as a maximum, llguidance accepts 5 and not 5.0."""
    return int(number) if number.is_integer() else number


def _items(wanted: dict[str, Any], rng: random.Random) -> list[dict[str, Any]]:
    fixed: list[dict[str, Any]] | None = wanted.get("prefixItems")
    return fixed or [wanted["items"]] * rng.randint(wanted["minItems"], wanted["maxItems"])


def mutated(value: Any, rng: random.Random) -> Any:
    """Return the value with one part changed."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(list(value))
        without = {key: kept for key, kept in value.items() if key != name}
        return without if rng.random() < 0.3 else {**value, name: mutated(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return value[:at] + ([] if rng.random() < 0.3 else [mutated(value[at], rng)]) + value[at + 1 :]
    return rng.choice([None, True, 7, -123456, 0.25, "", "other text", [], [1, 2, 3, 4, 5, 6], {}, {"unknown": 1}])


@given(schemas, st.randoms(use_true_random=False))
@example({"type": "number", "minimum": 5, "maximum": 5}, random.Random(3))  # draws a float
def test_only_valid_values_are_accepted(wanted: dict[str, Any], rng: random.Random) -> None:
    grammar = grammar_of(wanted)
    validator = jsonschema.Draft202012Validator(wanted)
    value = instance(wanted, rng)
    assert validator.is_valid(value)
    assert fits(grammar, compact(value))
    for _ in range(5):
        other = mutated(value, rng)
        assert validator.is_valid(other) or not fits(grammar, compact(other))


@given(schemas, st.randoms(use_true_random=False))
def test_generated_text_is_valid(wanted: dict[str, Any], rng: random.Random) -> None:
    text = drawn(grammar_of(wanted), rng)
    jsonschema.validate(json.loads(text), wanted, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("name", tool_schemas.SCHEMAS)
def test_generated_tool_call_is_valid(name: str) -> None:
    wanted = tool_schemas.SCHEMAS[name]
    grammar = grammar_of(wanted)
    for seed in range(tiers.volume(20)):
        text = drawn(grammar, random.Random(seed))
        assert fits(grammar, text)
        jsonschema.validate(json.loads(text), wanted, jsonschema.Draft202012Validator)
