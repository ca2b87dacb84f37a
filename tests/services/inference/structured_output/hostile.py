"""Hostile formats: schemas and grammars that nest, repeat, duplicate and recurse."""

import json
import random

from shared.api.generation import FormatKind, OutputFormat


def corpus() -> dict[str, OutputFormat]:
    """Return formats by name; always the same."""
    formats = {f"schema: {name}": OutputFormat(FormatKind.JSON_SCHEMA, text) for name, text in _schemas().items()}
    formats |= {f"grammar: {name}": OutputFormat(FormatKind.GBNF, text) for name, text in _grammars().items()}
    formats |= {f"regex: {pattern[:20]}": OutputFormat(FormatKind.REGEX, pattern) for pattern in _PATTERNS}
    formats |= {
        f"choice: {text[:20]}": OutputFormat(FormatKind.CHOICE, text) for text in ("[" * 1_000_000, '{"a":1}', json.dumps(["a"] * 500))
    }
    return formats | _mutations()


def _grammars() -> dict[str, str]:
    texts = {
        "60,000 open parentheses": "root ::= " + "(" * 60_000,
        "60,000 nested parentheses": "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000,
        "a chain of 5,000 rules": "root ::= r0\n" + "".join(f"r{n} ::= r{n + 1}\n" for n in range(5000)) + 'r5000 ::= "a"',
        "a chain of 400 rules": "root ::= r0\n" + "".join(f"r{n} ::= r{n + 1}\n" for n in range(400)) + 'r400 ::= "a"',
        "a million quotes": '"' * 1_000_000,
        "a token that chokes the sampler": 'root ::= "a" <[5]>',
        "stacks that double with every letter": 'root ::= [a-z] root "x" | [a-z] root "y" | "z"',
        "500 alternatives": "root ::= " + " | ".join(f'[a-z] "{n}"' for n in range(500)),
        "nothing fits": 'root ::= [\\x00] "a"',
        "a rule that never ends": 'root ::= "a" root',
    }
    for depth in (1, 10, 63, 64, 65, 500):
        texts[f"{depth} parentheses"] = "root ::= " + "(" * depth + '"a"' + ")" * depth
        texts[f"{depth} parentheses with a star each"] = "root ::= " + "(" * depth + '"a"' + ")*" * depth
        texts[f"{depth} alternatives of nothing"] = "root ::= " + "|" * depth + '"a"'
        texts[f"a cycle of {depth} rules"] = "root ::= r0\n" + "".join(f"r{n} ::= r{(n + 1) % depth}\n" for n in range(depth))
        texts[f"{depth} rules that double"] = (
            "root ::= r0\n" + "".join(f"r{n} ::= r{n + 1} | r{n + 1}\n" for n in range(depth)) + f'r{depth} ::= "a"'
        )
        texts[f"{depth} optional parts"] = "root ::= " + '"a"? ' * depth + '"b"'
    for least, most in ((0, 0), (0, 1000), (1000, 1000), (1000, 1), (0, 1001), (2000, 2000), (0, 2**31), (0, 2**64), (2**64, 2**64 + 1)):
        texts[f"{least} to {most} repeats"] = f'root ::= "a"{{{least},{most}}}'
        texts[f"{least} to {most} repeats of repeats"] = f'root ::= (("a"{{{least},{most}}} "b"){{{least},{most}}} "c"){{{least},{most}}}'
        texts[f"{least} to {most} repeats of a rule"] = (
            f'root ::= a{{{least},{most}}}\na ::= b{{{least},{most}}}\nb ::= "x"{{{least},{most}}}'
        )
    for body in (
        "",
        "a",
        "*",
        "a*",
        '""*',
        "[",
        "[]",
        "[^]",
        '"',
        '"\\',
        '"\\x',
        '"\\q"',
        "<",
        "<a",
        "!",
        "{1}",
        '"a"{',
        '"a"{1',
        '"a"{1,',
        "::=",
        "root",
        "|",
        ")",
        "#",
    ):
        texts[f"root ::= {body}"] = f"root ::= {body}"
    return texts


_PATTERNS = [
    *("(?<=x)y", "(?<!x)y", "(?=x)", "(?!x)", "(?i)a", r"\1", r"\p{L}", "\\", "^" * 100, "a" * 5000, "(" * 200, "[" * 200),
    *("(a+)+$", "(a|a)*$", "(a*)*$", "^(([a-z])+.)+[A-Z]([a-z])+$", "(.*)*", "(x+x+)+y"),
    *(".{1000}", "a{1,1000}{1,1000}", "((a{1000}){1000}){1000}", "(.{0,1000}|.{0,999}){0,1000}"),
]


def _schemas() -> dict[str, str]:
    texts = {
        "60,000 brackets": "[" * 60_000,
        "a million brackets": "[" * 1_000_000,
        "64,000 patterns": json.dumps({"patternProperties": {f"^{n}": {} for n in range(4000)}}),
        "multiples": '{"type":"number","multipleOf":9973}',
        "many multiples": json.dumps({"allOf": [{"type": "integer", "multipleOf": n} for n in (9973, 9967, 9949, 9941)]}),
        "a multiple of many digits": '{"type":"number","multipleOf":0.0000000123}',
        "alternatives that multiply": json.dumps(
            {"allOf": [{"anyOf": [{"properties": {f"p{i}.{j}": {}}} for j in range(10)]} for i in range(6)]}
        ),
        "patterns that intersect": json.dumps({"allOf": [{"pattern": f"(a|b)*a(a|b){{{n}}}"} for n in range(90, 100)]}),
        "20,000 objects": '{"a":' * 20_000,
        "a number of 50,000 digits": '{"minimum":' + "9" * 50_000 + "}",
        "an endless number": '{"type":"number","minimum":1e400}',
        "a text that never ends": '{"type":"' + "a" * 60_000,
        "maxLength 10,000": '{"type":"string","maxLength":10000}',
        "maxLength 2^63": '{"type":"string","maxLength":9223372036854775807}',
        "minLength 2^63": '{"type":"string","minLength":9223372036854775807}',
        "maxItems 10,000": '{"type":"array","items":{"type":"string","maxLength":1000},"maxItems":10000}',
        "a $ref to itself": '{"$ref":"#"}',
        "two $refs in a ring": '{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}',
        "anyOf of itself": '{"anyOf":[{"$ref":"#"},{"type":"null"}]}',
        "allOf of itself": '{"allOf":[{"$ref":"#"},{"$ref":"#"}]}',
        "names of itself": '{"type":"object","propertyNames":{"$ref":"#"}}',
        "a recursive object": '{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}',
        "three ways that look the same": json.dumps(_twins(3)),
    }
    for pattern in _PATTERNS:
        texts[f"the pattern {pattern[:20]}"] = json.dumps({"type": "string", "pattern": pattern})
    for count in (10, 200, 500, 501, 1000, 5000):
        texts[f"an enum of {count}"] = json.dumps({"enum": [f"value {n}" for n in range(count)]})
        texts[f"an enum of {count} signs"] = json.dumps({"enum": [chr(0x4E00 + n) for n in range(count)]})
        texts[f"{count} properties"] = json.dumps(
            {"type": "object", "properties": {f"p{n}": {"type": "string", "maxLength": n} for n in range(count)}}
        )
        texts[f"{count} required properties"] = json.dumps({"type": "object", "required": [f"p{n}" for n in range(count)]})
        texts[f"{count} alternatives"] = json.dumps({"anyOf": [{"type": "string", "minLength": n % 1000} for n in range(count)]})
        texts[f"{count} definitions in a chain"] = json.dumps(
            {
                "$defs": {f"d{n}": {"type": "array", "items": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(count)} | {f"d{count}": {}},
                "$ref": "#/$defs/d0",
            }
        )
    for depth in (2, 15, 17, 40, 200):
        texts[f"allOf {depth} deep"] = _nested('{"allOf":[', "true", ',{"type":"object"}]}', depth)
        texts[f"anyOf {depth} deep"] = _nested('{"anyOf":[{"type":"null"},', "true", "]}", depth)
        texts[f"items {depth} deep"] = _nested('{"type":"array","items":', "{}", "}", depth)
        texts[f"properties {depth} deep"] = _nested('{"properties":{"a":', "{}", "}}", depth)
        texts[f"a const {depth} deep"] = '{"const":' + _nested("[", "1", "]", depth) + "}"
        texts[f"allOf that doubles {depth} times"] = json.dumps(
            {
                "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(depth)} | {f"d{depth}": {}},
                "$ref": "#/$defs/d0",
            }
        )
    for keyword in (
        "type",
        "properties",
        "required",
        "items",
        "enum",
        "anyOf",
        "allOf",
        "$ref",
        "minLength",
        "minimum",
        "pattern",
        "additionalProperties",
    ):
        value: object
        for value in (None, True, -1, 1.5, "", "x", [], [1], [[]], {}, {"a": 1}):
            texts[f"{keyword}: {json.dumps(value)}"] = json.dumps({keyword: value})
    return texts


def _twins(count: int) -> dict[str, object]:
    """Objects that differ only in their last property, and contain themselves in the first: at every level, all of them stay possible."""
    twins = [{"properties": {"a": {"$ref": "#"}, f"b{n}": {"type": "null"}}, "required": ["a", f"b{n}"]} for n in range(count)]
    return {"anyOf": [*twins, {"type": "null"}]}


def _nested(before: str, inner: str, after: str, depth: int) -> str:
    return before * depth + inner + after * depth


def _mutations() -> dict[str, OutputFormat]:
    """Return grammars with a few characters changed."""
    rng = random.Random(4)
    seed = (
        'root ::= "{" pair ("," pair){0,5} "}"\npair ::= key ":" [0-9a-f]+ | key # comment\nkey ::= "\\"" [^"\\\\]{1,8} "\\"" ("?" | .)*\n'
    )
    found = {}
    for number in range(100):
        text = list(seed)
        for _ in range(rng.randint(1, 4)):
            text[rng.randrange(len(text))] = rng.choice('"[](){}|*+?^-\\:=#<>.,0 9aé\n')
        found[f"mutation {number}"] = OutputFormat(FormatKind.GBNF, "".join(text))
    return found
