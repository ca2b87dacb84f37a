"""Turns a JSON schema into a grammar of the JSON texts that fit it.  Pure.

The JSON is compact: at most one space after `:` and `,`, properties in the schema's order, no additional properties unless
additionalProperties allows them, all of prefixItems. Without `type`, other keywords imply it. The grammar excludes some valid texts, but
all its texts are valid, except for keywords in `keywords.PASSED_OVER`, bounds with decimals (rounded outward), sizes beside `pattern` or
`format`, and minProperties and maxProperties beside named properties.
"""

from collections import deque
from collections.abc import Callable, Mapping
from urllib.parse import unquote

import msgspec

from services.inference.structured_output import gbnf, keywords, scalars
from services.inference.structured_output.gbnf import SchemaRefused
from services.inference.structured_output.keywords import Json, Schema

#: SECURITY.md, T6. Real tool schemas have a few kilobytes, mostly descriptions.
MOST_BYTES = 64 * 1024
#: Nesting depth of subschemas; a $ref starts at 0 again.
MOST_DEEP = 16
#: Converted subschemas; a subschema that is used twice counts once.
MOST_SUBSCHEMAS = 500
#: In one enum, and in all together. Measured with SmolLM2's 49,152 tokens: 500 values compile in 10 ms, and a step in which all can
#: follow takes llama.cpp 40 ms, or 350 ms if all start with different characters.
MOST_ENUM_VALUES = 500
MOST_VALUES = 1000
#: Limits the characters of enums with more values than this. Both are OpenAI's limits.
LONG_ENUM_VALUES = 250
MOST_ENUM_CHARACTERS = 15_000


def expression_of(text: str, rules: gbnf.GbnfRules, *, before: str = "", after: str = "") -> str:
    """Add the rules for JSON that fits a schema to a grammar, and return its expression, between two fixed texts. Raises SchemaRefused,
    which names the place."""
    size = len(text.encode("utf-8", "replace"))
    if size > MOST_BYTES:
        raise SchemaRefused(f"the schema has {size} bytes, at most {MOST_BYTES}")
    try:
        document: Json = msgspec.json.decode(text.encode("utf-8", "replace"))
    except (msgspec.DecodeError, RecursionError) as error:
        raise SchemaRefused(f"the schema is not valid JSON: {error}") from error
    return _SchemaConversion(document, rules).run(before, after)


class _SchemaConversion:
    """The conversion of one schema."""

    def __init__(self, document: Json, rules: gbnf.GbnfRules) -> None:
        self._document = document
        self._rules = rules
        #: $ref -> rule of its target; each is converted once, so that schemas can be recursive.
        self._references: dict[str, str] = {}
        #: Named rules without a body yet.
        self._waiting: deque[Callable[[], None]] = deque()
        #: id of a subschema -> the subschema, to keep its id valid, and its expression.
        self._converted: dict[int, tuple[Schema, str]] = {}
        self._subschemas = 0
        self._values = 0

    def run(self, before: str, after: str) -> str:
        root = self._convert(self._document, "$", 0)
        fixed = [gbnf.literal(text) if text else "" for text in (before, after)]
        while self._waiting:
            self._waiting.popleft()()
        return f"{fixed[0]} {root} {fixed[1]}".strip()

    def _convert(self, schema: Json, path: str, depth: int) -> str:
        if schema is True or schema == {}:
            return self._rules.built_in("value")
        if schema is False:
            raise SchemaRefused(f"{path}: no value fits `false`")
        if not isinstance(schema, dict):
            raise SchemaRefused(f"{path}: a schema must be an object, true or false")
        if id(schema) not in self._converted:
            self._enter(schema, path, depth)
            self._converted[id(schema)] = schema, self._rules.place(self._expression(schema, path, depth))
        return self._converted[id(schema)][1]

    def _expression(self, schema: Schema, path: str, depth: int) -> str:
        constraints = keywords.constraints(schema)
        if constraints.keys() == {"$ref"}:
            return self._refer(keywords.text_of(schema, "$ref", path) or "", path)
        if constraints.keys() == {"allOf"} and len(parts := keywords.list_of(schema, "allOf", path)) == 1:
            return self._convert(parts[0], f"{path}.allOf[0]", depth + 1)
        if constraints.keys() & {"$ref", "allOf"} or (len(constraints) > 1 and constraints.keys() & {"anyOf", "oneOf"}):
            # What is merged here may lead back to here, where the name is then known.
            name = self._rules.reserve()
            self._converted[id(schema)] = schema, name
            self._waiting.append(lambda: self._rules.define(name, self._settled(schema, path, 0)))
            return name
        return self._settled(schema, path, depth)

    def _settled(self, schema: Schema, path: str, depth: int) -> str:
        try:
            settled = self._settle(schema, path, depth)
        except keywords.Contradiction:
            raise SchemaRefused(f"{path}: no value fits all of this at once") from None
        for keyword in ("anyOf", "oneOf"):
            if keyword in settled:
                return self._alternatives(settled, keyword, path, depth)
        if "const" in settled or "enum" in settled:
            return self._fixed(settled, path)
        return self._typed(settled, path, depth)

    def _enter(self, schema: Schema, path: str, depth: int) -> None:
        self._subschemas += 1
        if self._subschemas > MOST_SUBSCHEMAS:
            raise SchemaRefused(f"{path}: more than {MOST_SUBSCHEMAS} subschemas, counted with what allOf, anyOf and $ref lead to")
        if depth > MOST_DEEP:
            raise SchemaRefused(f"{path}: nested deeper than {MOST_DEEP} subschemas, or leads back to itself")
        keywords.check_possible(schema, path)

    def _refer(self, reference: str, path: str) -> str:
        if reference not in self._references:
            target = self._target(reference, path)
            self._references[reference] = name = self._rules.reserve()
            at = "$" + reference.removeprefix("#").replace("/", ".")
            self._waiting.append(lambda: self._rules.define(name, self._convert(target, at, 0)))
        return self._references[reference]

    def _target(self, reference: str, path: str) -> Json:
        """Only places of this very schema: nothing is fetched."""
        pointer, found = reference.removeprefix("#"), self._document
        if not reference.startswith("#") or (pointer and not pointer.startswith("/")):
            raise SchemaRefused(f"{path}: $ref {_short(reference)} must point into this schema, as #/$defs/name does")
        for part in pointer.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and name in found:
                found = found[name]
            elif isinstance(found, list) and name.isdecimal() and len(name) < 6 and int(name) < len(found):
                found = found[int(name)]
            else:
                raise SchemaRefused(f"{path}: $ref {_short(reference)} points to nothing")
        return found

    def _settle(self, schema: Schema, path: str, depth: int) -> Schema:
        """The schema with what its $ref and allOf say merged into it. Raises Contradiction."""
        settled = {key: value for key, value in keywords.constraints(schema).items() if key not in ("$ref", "allOf")}
        parts = [(part, f"{path}.allOf[{index}]") for index, part in enumerate(keywords.list_of(schema, "allOf", path))]
        if (reference := keywords.text_of(schema, "$ref", path)) is not None:
            parts.append((self._target(reference, path), path))
        for part, place in parts:
            if part is False:
                raise keywords.Contradiction
            if isinstance(part, dict):
                self._enter(part, place, depth + 1)
                settled = keywords.merged(settled, self._settle(part, place, depth + 1), path)
            elif part is not True:
                raise SchemaRefused(f"{place}: a schema must be an object, true or false")
        return settled

    def _alternatives(self, schema: Schema, keyword: str, path: str, depth: int) -> str:
        """Convert anyOf, and oneOf like anyOf; keywords beside it apply to each alternative."""
        beside = {key: value for key, value in schema.items() if key != keyword}
        expressions = []
        for index, alternative in enumerate(keywords.list_of(schema, keyword, path)):
            place = f"{path}.{keyword}[{index}]"
            if alternative is False:
                continue
            if not beside or alternative is True:
                expressions.append(self._convert(beside or alternative, place, depth + 1))
            elif isinstance(alternative, dict):
                try:
                    one = keywords.merged(beside, self._settle(alternative, place, depth + 1), place)
                except keywords.Contradiction:
                    continue
                expressions.append(self._convert(one, place, depth + 1))
            else:
                raise SchemaRefused(f"{place}: a schema must be an object, true or false")
        if not expressions:
            raise SchemaRefused(f"{path}.{keyword}: no value fits any of these")
        return gbnf.one_of(expressions)

    def _fixed(self, schema: Schema, path: str) -> str:
        """Convert const and enum; of other keywords, only the type applies."""
        values = [schema["const"]] if "const" in schema else keywords.list_of(schema, "enum", path)
        if len(values) > MOST_ENUM_VALUES:
            raise SchemaRefused(f"{path}.enum has {len(values)} values, at most {MOST_ENUM_VALUES}")
        characters = sum(len(value if isinstance(value, str) else msgspec.json.encode(value)) for value in values)
        if len(values) > LONG_ENUM_VALUES and characters > MOST_ENUM_CHARACTERS:
            raise SchemaRefused(
                f"{path}.enum has {len(values)} values of {characters} characters together; "
                f"with more than {LONG_ENUM_VALUES} values, at most {MOST_ENUM_CHARACTERS}"
            )
        self._values += len(values)
        if self._values > MOST_VALUES:
            raise SchemaRefused(f"{path}.enum: more than {MOST_VALUES} values in all enums together")
        types = keywords.types_of(schema, path) if "type" in schema else []
        fitting = [value for value in values if not types or any(keywords.is_of_type(value, name) for name in types)]
        if not fitting:
            raise SchemaRefused(f"{path}: no value of the enum is of the type {' or '.join(types)}")
        return gbnf.choice([msgspec.json.encode(value).decode() for value in fitting])

    def _typed(self, schema: Schema, path: str, depth: int) -> str:
        convert: Mapping[str, Callable[[], str]] = {
            "object": lambda: self._object(schema, path, depth),
            "array": lambda: self._array(schema, path, depth),
            "string": lambda: scalars.string(schema, path, self._rules),
            "integer": lambda: scalars.integer(schema, path, self._rules),
            "number": lambda: scalars.number(schema, path, self._rules),
            "boolean": lambda: self._rules.built_in("boolean"),
            "null": lambda: self._rules.built_in("null"),
        }
        types = keywords.types_of(schema, path)
        return gbnf.one_of([convert[name]() for name in types]) if types else self._rules.built_in("value")

    def _object(self, schema: Schema, path: str, depth: int) -> str:
        properties = dict(keywords.mapping_of(schema, "properties", path))
        required = keywords.texts_of(schema, "required", path)
        additional = schema.get("additionalProperties", not properties)
        for name in required:
            if properties.setdefault(name, additional if additional is not False else True) is False:
                raise SchemaRefused(f"{path}: the property {_short(name)} is required, but no value fits it")
        members = []
        for name, value in properties.items():
            if value is not False:
                key = gbnf.literal(msgspec.json.encode(name).decode() + ":")
                member = f"{key} {self._gap()} {self._convert(value, f'{path}.properties.{name}', depth + 1)}"
                members.append((self._rules.place(member), name in required))
        extra = None if additional is False else self._extra_member(schema, additional, list(properties), path, depth)
        if not properties and extra == self._rules.built_in("member") and not {"minProperties", "maxProperties"} & schema.keys():
            return self._rules.built_in("object")
        if not members:
            least = keywords.count_of(schema, "minProperties", path) or 0
            most = keywords.count_of(schema, "maxProperties", path)
            return f'"{{" {self._listed(extra, least, most, path)} "}}"'
        return f'"{{" {self._members(members, extra)} "}}"'

    def _extra_member(self, schema: Schema, additional: Json, named: list[str], path: str, depth: int) -> str:
        """Return a property that the schema doesn't name."""
        names = schema.get("propertyNames", True)
        if additional is True and names is True and not named:
            return self._rules.built_in("member")
        if names is not True:
            try:
                names = keywords.both({"type": "string"}, names, f"{path}.propertyNames")
            except keywords.Contradiction:
                raise SchemaRefused(f"{path}.propertyNames: names are strings") from None
            key = self._convert(names, f"{path}.propertyNames", depth + 1)
        else:
            key = self._rules.quoted_other_than(named)
        return f'{key} ":" {self._gap()} {self._convert(additional, f"{path}.additionalProperties", depth + 1)}'

    def _members(self, members: list[tuple[str, bool]], extra: str | None) -> str:
        """Return the members in order, with optional ones, and commas between them."""
        comma = f'"," {self._gap()}'
        tail = "" if extra is None else self._rules.repeated(f"{comma} {extra}", 0, None)
        required = [index for index, (_, is_required) in enumerate(members) if is_required]
        if required:
            first = required[0]
            before = [f"({member} {comma})?" for member, _ in members[:first]]
            after = [f"{comma} {member}" if is_required else f"({comma} {member})?" for member, is_required in members[first + 1 :]]
            return " ".join([*before, members[first][0], *after, tail]).rstrip()
        # All are optional, so any of them may be the first; the rest of the chain is shared.
        rest, beginnings = tail, [] if extra is None else [f"{self._rules.place(extra)} {tail}"]
        for index in range(len(members) - 1, -1, -1):
            member = members[index][0]
            beginnings.append(f"{member} {rest}".rstrip())
            if index > 0:
                rest = self._rules.named(f"({comma} {member})? {rest}".rstrip())
        return f"({' | '.join(reversed(beginnings))})?"

    def _array(self, schema: Schema, path: str, depth: int) -> str:
        # Before 2020, prefixItems was a list in `items`, and items was additionalItems.
        is_old = isinstance(schema.get("items"), list)
        prefix_key, items_key = ("items", "additionalItems") if is_old else ("prefixItems", "items")
        prefix = keywords.list_of(schema, prefix_key, path) if prefix_key in schema else []
        least = keywords.count_of(schema, "minItems", path) or 0
        most = keywords.count_of(schema, "maxItems", path)
        if most is not None and most < len(prefix):
            prefix = prefix[:most]
        written = [self._convert(item, f"{path}.{prefix_key}[{index}]", depth + 1) for index, item in enumerate(prefix)]
        items = schema.get(items_key, not prefix or least > len(prefix))
        rest_most = None if most is None else most - len(prefix)
        if items is False:
            rest, rest_most = None, 0
        else:
            rest = self._convert(items, f"{path}.{items_key}", depth + 1)
        _check_bounds(least, most if rest is not None else len(prefix), f"{path}.minItems")
        if not written:
            return f'"[" {self._listed(rest, least, rest_most, path)} "]"'
        comma = f'"," {self._gap()}'
        more = "" if rest is None or rest_most == 0 else self._rules.repeated(f"{comma} {rest}", max(0, least - len(prefix)), rest_most)
        return " ".join(['"["', f" {comma} ".join(written), more, '"]"'])

    def _listed(self, one: str | None, least: int, most: int | None, path: str) -> str:
        _check_bounds(least, 0 if one is None else most, path)
        if one is None or most == 0:
            return '""'
        further = (
            self._rules.repeated(f'"," {self._gap()} {one}', max(0, least - 1), None if most is None else most - 1) if most != 1 else ""
        )
        listed = f"{one} {further}".rstrip()
        return listed if least else f"({listed})?"

    def _gap(self) -> str:
        return self._rules.built_in("gap")


def _check_bounds(least: int, most: int | None, path: str) -> None:
    if most is not None and least > most:
        raise SchemaRefused(f"{path}: at least {least} and at most {most} is not possible")
    if least > gbnf.MOST_REPEATS:
        raise SchemaRefused(f"{path}: {least} is more than the maximum of {gbnf.MOST_REPEATS}")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")
