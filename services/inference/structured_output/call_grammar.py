"""Writes the grammar of a template's tool calls, from llama.cpp's parser of them and the schemas of the tools.  Pure.

llama.cpp's own grammars let some templates write any text as an argument, leave arguments out, or repeat them. Here each argument fits its
schema and comes at most once, in the schema's order. What is around the arguments is written as llama.cpp does.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote

import msgspec

from services.inference.structured_output import gbnf, json_schema, lark
from services.inference.structured_output.json_schema import Json, Schema
from services.inference.structured_output.lark import FormatRefused

#: A small model may never stop: of calls, of digits in an id, and of characters where any text may be around arguments.
MAX_CALLS, _MAX_DIGITS, _MAX_CHARACTERS = 16, 3, 64
#: As in llama.cpp. Not a part of other terminals: where it could belong to two, llguidance would see only the longer one.
_SPACE = r": / |\n{1,2}[ \t]{0,20}/"
_UNIONS = ("anyOf", "oneOf", "allOf")
#: A maxLength that no answer reaches.
_UNLIMITED = 1_000_000
_ANY_OBJECT = '{"type":"object"}'
_GEMMA_QUOTE = '<|"|>'


class _Part(msgspec.Struct, frozen=True):
    """A node of llama.cpp's parser."""

    type: str
    child: int | None = None
    children: tuple[int, ...] = ()
    literal: str = ""
    min_count: int = 1
    max_count: int = 1
    pattern: str = ""
    delimiter: str = ""
    delimiters: tuple[str, ...] = ()
    name: str = ""
    trigger: bool = False
    tag: str = ""
    grammar: str = ""


class _Arena(msgspec.Struct, frozen=True):
    parsers: list[_Part]
    rules: dict[str, int]


class _SavedParser(msgspec.Struct, frozen=True):
    arena: str


@dataclass(frozen=True, slots=True)
class _Place:
    """What a part of the parser is about."""

    tool: str = ""
    #: To an argument's schema in that of the tool.
    pointer: str = ""
    #: The only argument to write, if there is a choice of several.
    only: int | None = None
    #: The parser also reads JSON where a text is.
    is_mixed: bool = False
    #: What the next text can't begin with.
    never: str = ""


def to_lark(parser: str, schemas: Mapping[str, str], *, parallel: bool, strict: bool, otherwise: str = "") -> str:
    """Write the grammar of calls that a parser (`RenderedPrompt.parser`) reads. ``schemas`` are those of the tools by name; without
    ``strict``, an unsupported schema allows any JSON. ``otherwise``: see `gbnf.to_lark`. Raises FormatRefused."""
    try:
        return _CallWriter(_arena(parser), schemas, parallel=parallel, strict=strict).write(otherwise)
    except (msgspec.MsgspecError, RecursionError, LookupError) as error:
        raise FormatRefused(f"the grammar of calls can't be written: {error}") from error


def literals(parser: str) -> tuple[str, ...]:
    """Return the texts that are around the arguments of calls."""
    writer = _CallWriter(_arena(parser), {}, parallel=True, strict=False)
    parts = [part for trigger in writer.triggers() for part in writer.find(trigger, "literal")]
    return tuple(writer.parts[part].literal for part in parts)


def _arena(parser: str) -> _Arena:
    return msgspec.json.decode(msgspec.json.decode(parser, type=_SavedParser).arena, type=_Arena)


class _CallWriter:
    def __init__(self, arena: _Arena, schemas: Mapping[str, str], *, parallel: bool, strict: bool) -> None:
        self.parts, self._rules, self._texts = arena.parsers, arena.rules, schemas
        self._schemas: dict[str, Json] = {name: msgspec.json.decode(text) for name, text in schemas.items()}
        self._parallel, self._strict = parallel, strict
        self._found: dict[tuple[int, str], tuple[int, ...]] = {}
        #: Names of rules by what they are made of.
        self._made: dict[object, str] = {}
        self._written: list[str] = []
        #: Names of rules in Lark.
        self._given: dict[str, str] = {}
        #: Keeps what it is in from becoming one terminal with others, of which llguidance would only see the longest.
        self._apart = self._give(': ""')
        self._writers: dict[str, Callable[[int, _Place, bool], str]] = {
            "sequence": self._sequence, "choice": self._choice, "repetition": self._repetition, "rule": self._rule, "ref": self._rule,
            "tag": self._tagged, "schema": self._json, "gbnf": self._text_or_json,
        }  # fmt: skip

    def write(self, otherwise: str) -> str:
        for text in self._texts.values() if self._strict else ():
            json_schema.prepared(text)
        if not (triggers := self.triggers()):
            raise FormatRefused("the template has no calls")
        calls = [self._write(at, _Place(), forced=True) for at in triggers]
        text = "\n".join((f"root ::= {' | '.join(calls)}", *self._written))
        given = {name: written for written, name in self._given.items()}
        return gbnf.to_lark(text, factor=gbnf.TOOLS_FACTOR, otherwise=otherwise, given=given)

    def triggers(self) -> tuple[int, ...]:
        """Return the rules that calls begin with."""
        found = [at for at, part in enumerate(self.parts) if part.trigger and self._rules.get(part.name) == at]
        inner = {one for at in found for one in self.find(self._inside(at)[0], "trigger")}
        return tuple(at for at in found if at not in inner)

    def _inside(self, at: int) -> tuple[int, ...]:
        part = self.parts[at]
        if part.type == "ref":
            return (self._rules[part.name],) if part.name in self._rules else ()
        return part.children if part.child is None else (part.child,)

    def find(self, at: int, what: str) -> tuple[int, ...]:
        """Return the outermost parts with a tag or of a type, in their order."""
        if (at, what) not in self._found:
            part = self.parts[at]
            self._found[at, what] = ()
            if what in (part.tag, part.type, "trigger" if part.trigger else None):
                self._found[at, what] = (at,)
            else:
                self._found[at, what] = tuple(dict.fromkeys(found for one in self._inside(at) for found in self.find(one, what)))
        return self._found[at, what]

    def _name(self, at: int, tag: str) -> str:
        return next((self.parts[one].literal for found in self.find(at, tag)[:1] for one in self.find(found, "literal")), "")

    # --- the parts, as llama.cpp writes them ---

    def _write(self, at: int, place: _Place, *, forced: bool = False) -> str:
        """Write a part as GBNF. ``forced``: it must contain a call."""
        part = self.parts[at]
        if not place.tool and len(tools := {self._name(one, "tool-name") for one in self.find(at, "tool-name")}) == 1:
            return f"{self._write(at, _Place(tools.pop()), forced=forced)} {self._apart}"
        if part.type in ("atomic", "ac"):
            return self._write(self._inside(at)[0], place, forced=forced)
        if (write := self._writers.get(part.type)) is not None:
            return write(at, place, forced)
        written = {
            "literal": _quoted(part.literal) if part.literal else "",
            "space": f"({self._give(_SPACE)})?",
            "any": ".",
            "chars": part.pattern + _times(part.min_count, part.max_count),
            "string": rf'([^{part.delimiter}\\] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{{4}})){{0,{_MAX_CHARACTERS}}}',
        }
        return written.get(part.type, "")

    def _choice(self, at: int, place: _Place, forced: bool) -> str:
        kept = [one for one in self._alternatives(at) if place.only is None or place.only in self.find(one, "tool-arg")]
        calling = [one for one in kept if forced and self.find(one, "tool-name")]
        return _either(self._write(one, place, forced=forced) for one in calling or kept)

    def _alternatives(self, at: int) -> Iterator[int]:
        for one in self._inside(at):
            yield from self._alternatives(one) if self.parts[one].type == "choice" else (one,)

    def _rule(self, at: int, place: _Place, forced: bool) -> str:
        rule = self._inside(at)[0] if self.parts[at].type == "ref" else at
        forced = forced and any(self.find(one, "tool-name") for one in self.find(rule, "repetition"))
        return self._named((rule, place, forced), lambda: self._write(self._inside(rule)[0], place, forced=forced))

    def _text_or_json(self, at: int, place: _Place, _: bool) -> str:
        """The parser reads JSON, or else a text, which is the last alternative."""
        return self._write(self._inside(self._inside(at)[0])[-1], replace(place, is_mixed=True)) if self.parts[at].grammar else ""

    def _sequence(self, at: int, place: _Place, forced: bool) -> str:
        children = self._inside(at)
        arguments = self.find(children[0], "tool-arg") if len(children) == 2 and place.tool else ()
        if arguments and not self.find(children[0], "tool-name") and arguments == self.find(children[1], "tool-arg"):
            # Python's way: one or more with commas between them.
            behind = self._inside(children[1])[0]
            places = [replace(place, only=one) for one in arguments]
            pairs = [(self._write(children[0], one), self._write(behind, one)) for one in places]
            return self._list(pairs, [self._is_required(place, one) for one in arguments])
        calling = next((index for index, one in enumerate(children) if forced and self.find(one, "tool-name")), None)
        written, ended = [], ""
        for index, one in enumerate(children):
            part, following = self._only(one), self._only(children[index + 1]).literal if index + 1 < len(children) else ""
            if ended:
                written.append(_quoted(part.literal.removeprefix(ended)))
                ended = ""
            elif part.type == "until" and self._is_text(one, place):
                ended = next((delimiter for delimiter in part.delimiters if following.startswith(delimiter)), "")
                written.append(self._text(ended, place, is_argument=bool(self.find(one, "tool-arg-string-value"))))
            else:
                written.append(self._write(one, place, forced=index == calling))
                place = replace(place, never=self._name(one, "not")) if part.type == "not" else place
        return " ".join(filter(None, written))

    def _is_text(self, at: int, place: _Place) -> bool:
        if self.find(at, "tool-arg-string-value"):
            return self._values(place) is None
        return not self.find(at, "tool-arg-value")

    def _only(self, at: int) -> _Part:
        """Return what a part consists of."""
        part = self.parts[at]
        while part.type in ("atomic", "rule", "ref", "tag") and part.tag not in ("content", "reasoning") and self._inside(at):
            at = self._inside(at)[0]
            part = self.parts[at]
        return part

    def _repetition(self, at: int, place: _Place, forced: bool) -> str:
        child, least, most = self._inside(at)[0], self.parts[at].min_count, self.parts[at].max_count
        arguments = self.find(child, "tool-arg")
        if self.find(child, "tool-name"):
            least = max(least, int(forced))
            most = MAX_CALLS if most < 0 and self._parallel else max(least, min(most, 1))
        elif arguments and most < 0:
            each = [self._write(child, replace(place, only=one)) for one in arguments]
            return " ".join(f"({one}){'' if self._is_required(place, own) else '?'}" for one, own in zip(each, arguments, strict=True))
        body = self._write(child, place, forced=forced) if most else ""
        return f"({body}){_times(least, most)}" if body else ""

    def _tagged(self, at: int, place: _Place, forced: bool) -> str:
        child = self._inside(at)[0]
        match self.parts[at].tag:
            case "reasoning" | "content":
                written = ""
            case "tool-id":
                written = self._write(child, place).replace("[0-9]{1,}", f"[0-9]{{1,{_MAX_DIGITS}}}")
            case "tool-args" if self.parts[child].name == "gemma4-dict":
                written = self._gemma(place)
            case "tool-arg":
                written = f"{self._write(child, self._argument(place, self._name(at, 'tool-arg-name')))} {self._apart}"
            case "tool-arg-item":
                written = self._write(child, replace(place, pointer=f"{self._resolved(place)[0]}/items"))
            case "tool-arg-string-value":
                written = self._one_of(place)
            case "tool-arg-value":
                written = self._json(at, place)
            case _:
                written = self._write(child, place, forced=forced)
        return written

    def _named(self, key: object, write: Callable[[], str]) -> str:
        if key not in self._made:
            # It may contain itself.
            self._made[key] = f"r{len(self._made)}"
            self._written.append(f"{self._made[key]} ::= {write()}")
        return self._made[key]

    def _text_rule(self, written: str) -> str:
        return self._named(written, lambda: written)

    def _list(self, pairs: list[tuple[str, str]], required: list[bool]) -> str:
        """Write one or more of these in their order: how each is written as the first, and behind another."""
        begin, rest = "", ""
        for (first, behind), is_required in zip(reversed(pairs), reversed(required), strict=True):
            start = f"{first} {rest}"
            begin = self._text_rule(start if is_required or not begin else f"{start} | {begin}")
            rest = self._text_rule(f"({behind}){'' if is_required else '?'} {rest}")
        return begin

    # --- arguments ---

    def _resolved(self, place: _Place) -> tuple[str, Schema]:
        """Return where a schema's references lead to, and what is there; an empty schema for anything."""
        return json_schema.resolved(self._schemas.get(place.tool, True), place.pointer)

    def _members(self, place: _Place) -> dict[str, Schema]:
        """Return the schema at a place, or those that it combines, by their place. Each once: they may refer to each other."""
        found: dict[str, Schema] = {}
        waiting = [place.pointer]
        while waiting:
            pointer, schema = json_schema.resolved(self._schemas.get(place.tool, True), waiting.pop())
            if pointer not in found:
                found[pointer] = schema
                waiting += (f"{pointer}/{key}/{index}" for key in _UNIONS for index in range(len(json_schema.list_of(schema.get(key)))))
        return {pointer: schema for pointer, schema in found.items() if "properties" in schema or not schema.keys() & set(_UNIONS)}

    def _argument(self, place: _Place, name: str) -> _Place:
        owners = (pointer for pointer, schema in self._members(place).items() if name in _dict(schema.get("properties")))
        return _Place(place.tool, f"{next(owners, '/unknown')}/properties/{_escaped(name)}")

    def _is_required(self, place: _Place, argument: int) -> bool:
        name = self._name(argument, "tool-arg-name")
        return any(name in json_schema.list_of(schema.get("required")) for schema in self._members(place).values())

    def _json(self, _: int, place: _Place, _forced: bool = False) -> str:
        return self._checked_json(self._texts.get(place.tool, "{}"), place.pointer)

    def _checked_json(self, schema: str, pointer: str = "") -> str:
        try:
            return self._give(f": %json {json_schema.prepared(schema, pointer)}")
        except FormatRefused:
            if self._strict:
                raise
            return self._give(f": %json {json_schema.prepared('{}' if pointer else _ANY_OBJECT)}")

    def _give(self, written: str) -> str:
        return self._given.setdefault(written, f"given-{len(self._given)}")

    def _text(self, delimiter: str, place: _Place, *, is_argument: bool = True) -> str:
        """Write a text and the delimiter that ends it."""
        if not delimiter:
            raise FormatRefused("the template's texts have no end")
        members: list[Schema] = list(self._members(place).values()) if is_argument else [{"maxLength": _MAX_CHARACTERS}]
        schema, never = members[0] if len(members) == 1 else {}, place.never
        if delimiter == _GEMMA_QUOTE:
            schema = {**schema, "type": "string"}
        least, most = _count(schema.get("minLength"), 0), _count(schema.get("maxLength"), -1)
        if least > json_schema.MAX_REPEATS:
            raise FormatRefused(f"${place.pointer}.minLength: {least} is more than the maximum of {json_schema.MAX_REPEATS}")
        count = max(least, 1 if never else 0)
        # The delimiter can't begin where the text may not end yet.
        begin = f"[^{re.escape(delimiter[0] + never[:1])}]{{{count}}}" if count else ""
        text = f"({begin}(?s:.{{0,{max(0, most - count) if 0 <= most < _UNLIMITED else ''}}})){'?' if never and not least else ''}"
        written = f"[lazy]: {lark.regex(text + re.escape(delimiter))}"
        if matching := self._regexes(schema, place):
            # A text that doesn't match would continue behind its delimiter.
            ended = lark.regex(f"(?s:.*){re.escape(delimiter)}(?s:.+)")
            written = " & ".join((written, *(f"({lark.regex(one)} {lark.literal(delimiter)})" for one in matching), f"~{ended}"))
        return self._give(written)

    def _regexes(self, schema: Schema, place: _Place) -> list[str]:
        try:
            return json_schema.regexes(schema, f"${place.pointer}")
        except FormatRefused:
            if self._strict:
                raise
            return []

    def _one_of(self, place: _Place) -> str:
        kept = [one for one in self._values(place) or () if isinstance(one, str) or place.is_mixed]
        texts = [one if isinstance(one, str) else _dumped(one) for one in kept]
        if not texts:
            raise FormatRefused(f"${place.pointer}: no value can be written in the model's format")
        return _either(map(_quoted, texts))

    def _values(self, place: _Place) -> list[Json] | None:
        """Return the values that a text may have; None for any."""
        found: list[Json] = []
        for schema in self._members(place).values():
            types = schema.get("type", "string")
            if "const" in schema or "enum" in schema:
                found += _fixed(schema)
            elif "string" in (types if isinstance(types, list) else [types]):
                return None
            elif types == "null":
                found.append(None)
        return found

    # --- Gemma's dialect of JSON ---

    def _gemma(self, place: _Place) -> str:
        pointer, schema = self._resolved(place)
        place = _Place(place.tool, pointer)
        return self._named(("gemma", place), lambda: self._gemma_value(place, schema))

    def _gemma_value(self, place: _Place, schema: Schema) -> str:
        if "const" in schema or "enum" in schema:
            return _either(_quoted(_gemma_written(value)) for value in _fixed(schema))
        for key in _UNIONS:
            if parts := json_schema.list_of(schema.get(key)):
                count = 1 if key == "allOf" else len(parts)
                return _either(self._gemma(replace(place, pointer=f"{place.pointer}/{key}/{index}")) for index in range(count))
        types = schema.get("type", "object" if "properties" in schema else None)
        return _either(self._gemma_typed(place, schema, kind) for kind in (types if isinstance(types, list) else [types]))

    def _gemma_typed(self, place: _Place, schema: Schema, kind: Json) -> str:
        match kind:
            case "object" if properties := _dict(schema.get("properties")):
                # Its template sorts them.
                names = sorted(properties, key=str.lower)
                places = [replace(place, pointer=f"{place.pointer}/properties/{_escaped(name)}") for name in names]
                written = [f"{_quoted(f'{name}:')} {self._gemma(one)}" for name, one in zip(names, places, strict=True)]
                required = [name in json_schema.list_of(schema.get("required")) for name in names]
                pairs = self._list([(one, f'"," {one}') for one in written], required)
                return f'"{{" ({pairs}){"" if any(required) else "?"} "}}"'
            case "object" if schema.get("additionalProperties") is False:
                return '"{}"'
            case "array" if "items" in schema:
                item = self._gemma(replace(place, pointer=f"{place.pointer}/items"))
                least, most = _count(schema.get("minItems"), 0), _count(schema.get("maxItems"), -1)
                items = f'{item} ("," {item}){_times(max(0, least - 1), max(-1, most - 1))}'
                return f'"[" ({items}){"" if least else "?"} "]"' if most else '"[]"'
            case "string":
                return f"{_quoted(_GEMMA_QUOTE)} {self._text(_GEMMA_QUOTE, place)}"
            case "integer" | "number" | "boolean" | "null":
                return self._checked_json(_dumped({**schema, "type": kind}))
            case _:
                rule = {"object": "gemma4-dict", "array": "gemma4-array"}.get(str(kind), "gemma4-value")
                return self._write(self._rules[rule], place)


def _gemma_written(value: Json) -> str:
    match value:
        case str():
            return f"{_GEMMA_QUOTE}{value}{_GEMMA_QUOTE}"
        case list():
            return f"[{','.join(map(_gemma_written, value))}]"
        case dict():
            return f"{{{','.join(f'{name}:{_gemma_written(one)}' for name, one in value.items())}}}"
        case _:
            return _dumped(value)


def _quoted(text: str) -> str:
    return '"' + "".join(one if one.isprintable() and one not in '"\\' else f"\\U{ord(one):08x}" for one in text) + '"'


def _either(alternatives: Iterable[str]) -> str:
    return f"({' | '.join(dict.fromkeys(alternatives))})"


def _times(least: int, most: int) -> str:
    return "" if least == most == 1 else f"{{{least},{'' if most < 0 else most}}}"


def _count(value: Json, default: int) -> int:
    return value if isinstance(value, int) else default


def _fixed(schema: Schema) -> list[Json]:
    return [schema["const"]] if "const" in schema else json_schema.list_of(schema["enum"])


def _escaped(name: str) -> str:
    return quote(name.replace("~", "~0").replace("/", "~1"), safe="~")


def _dict(value: Json) -> Schema:
    return value if isinstance(value, dict) else {}


def _dumped(value: Json) -> str:
    return msgspec.json.encode(value).decode()
