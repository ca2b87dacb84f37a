"""Reads and checks documents: a YAML file, or documents from a program. It runs a program for that, because parsing 1 MiB would stop the
event loop.
"""

import asyncio
import difflib
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

import msgspec
import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from services.gateway.configuration import config_checks
from services.gateway.configuration.config_checks import CheckGuard
from services.gateway.facts.config_snapshot import DocumentKey
from shared import errors, yaml_text
from shared.api.configuration import ConfigDocument
from shared.config_documents import (
    BODIES,
    DEFAULT_MODEL,
    SECTIONS,
    ConfigKind,
    Document,
    DocumentName,
    PlanDocumentName,
    RouteName,
    ServerName,
)
from shared.protocol import null_characters

#: Time limit for the program, which needs at most 2 s for a whole file.
_SECONDS = 20.0
_MAX_MISTAKES = 50
_PROGRAM = (sys.executable, "-m", "services.gateway.config_reader")
_NAMES = {
    ConfigKind.ROUTE: RouteName,
    ConfigKind.MODEL_LIMIT: RouteName,
    ConfigKind.PLAN: PlanDocumentName,
    ConfigKind.SERVER: ServerName,
    ConfigKind.TRUST: RouteName,
}
_NAME_RULE = (
    "use 1 to 100 letters, digits and . _ : / @ - in the name, beginning with a letter or digit; for routes and trust, it may end with *"
)
_RULES = {
    ConfigKind.PLAN: "use 1 to 32 lowercase letters, digits, _ and - in the name, beginning with a letter",
    ConfigKind.SERVER: "use 1 to 32 lowercase letters, digits, _ and - in the name, beginning with a letter or digit",
}
_TAG = "tag:yaml.org,2002:"
_VALUES = {f"{_TAG}{kind}" for kind in ("null", "bool", "int", "float")}
#: Deeper than any document.
_MAX_DEPTH = 20
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Path = tuple[str | int, ...]


class ReadRequest(msgspec.Struct, frozen=True):
    text: str | None = None
    documents: tuple[ConfigDocument, ...] = ()


class ReadDocument(msgspec.Struct, frozen=True):
    kind: ConfigKind
    name: str
    #: JSON; None removes the document.
    body: str | None
    #: 0 if it is not from a file.
    line: int = 0


class ReadResult(msgspec.Struct, frozen=True):
    documents: tuple[ReadDocument, ...] = ()
    mistakes: tuple[str, ...] = ()


async def read(request: ReadRequest) -> dict[DocumentKey, ReadDocument]:
    """Return the documents by key. Raises BadRequest with all mistakes."""
    pipe = asyncio.subprocess.PIPE
    program = await asyncio.create_subprocess_exec(*_PROGRAM, stdin=pipe, stdout=pipe, env={}, start_new_session=True)
    try:
        async with asyncio.timeout(_SECONDS):
            output, _ = await program.communicate(msgspec.msgpack.encode(request))
        result = msgspec.msgpack.decode(output, type=ReadResult)
    except (TimeoutError, msgspec.DecodeError) as error:
        raise errors.BadRequest("the configuration can't be read", hint="simplify the file") from error
    finally:
        if program.returncode is None:
            with suppress(ProcessLookupError):
                program.kill()
            await program.wait()
    if result.mistakes:
        raise bad_config(result.mistakes)
    return {(document.kind, document.name): document for document in result.documents}


def bad_config(mistakes: tuple[str, ...]) -> errors.BadRequest:
    more = f"\n… and {len(mistakes) - _MAX_MISTAKES} more" if len(mistakes) > _MAX_MISTAKES else ""
    count = "one mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    lines = "\n".join(mistakes[:_MAX_MISTAKES])
    return errors.BadRequest(f"the configuration has {count}; nothing was applied:\n{lines}{more}")


def read_here(request: ReadRequest, check_guard: CheckGuard) -> ReadResult:
    try:
        found, lines = _parse(request)
    except _BadFileError as error:
        return ReadResult(mistakes=(str(error),))
    mistakes: list[str] = []
    documents: list[ReadDocument] = []
    for path, kind, name, body in found:
        here = [*_name_mistakes(path, kind, name), *(_body_mistakes(path, kind, body, check_guard) if body is not None else ())]
        if not here and null_characters.are_in_json(msgspec.json.encode(body)):
            here = [(path, null_characters.MISTAKE)]
        mistakes += (_located(where, text, lines) for where, text in here)
        if not here:
            documents.append(ReadDocument(kind, name, None if body is None else msgspec.json.encode(body).decode(), lines.get(path, 0)))
    return ReadResult(tuple(documents), tuple(mistakes))


def write(documents: Mapping[DocumentKey, Document]) -> str:
    file: dict[str, object] = {}
    for section, kind in SECTIONS.items():
        bodies = {name: msgspec.to_builtins(body) for (its_kind, name), body in sorted(documents.items()) if its_kind is kind}
        if bodies:
            file[section] = bodies[DEFAULT_MODEL]["model"] if kind is ConfigKind.DEFAULT_MODEL else bodies
    return yaml_text.render(file) if file else ""


# --- mistakes -------------------------------------------------------------------------------------------------------------


def _located(path: Path, text: str, lines: Mapping[Path, int]) -> str:
    where = next((f"line {lines[path[:length]]}, " for length in range(len(path), -1, -1) if path[:length] in lines), "")
    return f"{where}{_written(path)}: {text}"


def _written(path: Path) -> str:
    """Return the path for people: routes.assistant.targets[0].share."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part[:100]}" for part in path)
    return "".join(parts).removeprefix(".") or "the file"


def _name_mistakes(path: Path, kind: ConfigKind, name: str) -> Iterator[tuple[Path, str]]:
    if allowed := config_checks.describe_names(kind, name):
        yield path, f"there is no {kind.value} {name[:100]!r}; use {allowed}"
        return
    try:
        msgspec.convert(name, _NAMES.get(kind, DocumentName))
    except msgspec.ValidationError:
        yield path, _RULES.get(kind, _NAME_RULE)


def _body_mistakes(path: Path, kind: ConfigKind, body: object, check_guard: CheckGuard) -> Iterator[tuple[Path, str]]:
    found = list(_type_mistakes(path, BODIES[kind], body))
    yield from found
    if not found:
        for where, text in config_checks.check_body(msgspec.convert(body, BODIES[kind]), check_guard):
            yield (*path, *where), text


def _type_mistakes(path: Path, wanted: object, value: object) -> Iterator[tuple[Path, str]]:
    """Yield all mistakes in a value of a document, each with its path."""
    nested, item = _document_in(wanted), _item_in(wanted)
    if nested is not None and (wanted is nested or isinstance(value, dict)):
        yield from _field_mistakes(path, nested, value)
        return
    if item is not None and isinstance(value, list):
        for position, child in enumerate(value):
            yield from _type_mistakes((*path, position), item, child)
    try:
        msgspec.convert(value, wanted)
    except msgspec.ValidationError as error:
        message, _, deeper = str(error).partition(" - at `$")
        # Deeper mistakes of documents have been found above.
        if not deeper or item is None:
            yield path, message[0].lower() + message[1:] + (f" (at {deeper.removesuffix('`')})" if deeper else "")


def _field_mistakes(path: Path, wanted: type[Document], value: object) -> Iterator[tuple[Path, str]]:
    if not isinstance(value, dict):
        yield path, "write fields here, as name: value"
        return
    fields = {field.name: field for field in msgspec.structs.fields(wanted)}
    for name in value.keys() - fields.keys():
        near = difflib.get_close_matches(str(name), fields, 1)
        yield (*path, str(name)), f"unknown field; {f'did you mean {near[0]}?' if near else 'fields: ' + ', '.join(fields)}"
    for name, field in fields.items():
        if name in value:
            yield from _type_mistakes((*path, name), field.type, value[name])
        elif field.required:
            yield path, f"the field {name} is missing"


def _document_in(wanted: object) -> type[Document] | None:
    """Return the document type that is ``wanted``, alone or beside None."""
    return next((part for part in (wanted, *_parts(wanted)) if isinstance(part, type) and issubclass(part, Document)), None)


def _item_in(wanted: object) -> type[Document] | None:
    """Return the document type of the items of a wanted tuple."""
    return next((_document_in(get_args(part)[0]) for part in (wanted, *_parts(wanted)) if get_origin(part) is tuple), None)


def _parts(wanted: object) -> tuple[object, ...]:
    return get_args(wanted) if get_origin(wanted) in {Union, UnionType, Annotated} else ()


# --- YAML -----------------------------------------------------------------------------------------------------------------


class _BadFileError(Exception):
    """Says what is wrong and in which line, for people."""


_Found = tuple[Path, ConfigKind, str, object]


def _parse(request: ReadRequest) -> tuple[list[_Found], dict[Path, int]]:
    if request.text is None:
        try:
            bodies = [None if document.body is None else msgspec.json.decode(document.body) for document in request.documents]
        except msgspec.DecodeError as error:
            raise _BadFileError(f"a body is not JSON: {error}") from error
        return [
            ((document.kind.value, document.name), document.kind, document.name, body)
            for document, body in zip(request.documents, bodies, strict=True)
        ], {}
    file, lines = _load(request.text)
    if not isinstance(file, dict):
        raise _BadFileError(f"the file: write sections here: {', '.join(SECTIONS)}")
    found: list[_Found] = []
    for section, content in file.items():
        if section not in SECTIONS:
            near = difflib.get_close_matches(str(section), SECTIONS, 1)
            hint = f"did you mean {near[0]}?" if near else f"sections: {', '.join(SECTIONS)}"
            raise _BadFileError(_located((str(section),), f"unknown section; {hint}", lines))
        kind = SECTIONS[section]
        if kind is ConfigKind.DEFAULT_MODEL:
            found.append(((section,), kind, DEFAULT_MODEL, None if content is None else {"model": content}))
        elif not isinstance(content, dict):
            raise _BadFileError(_located((section,), "write documents here, as name: fields", lines))
        else:
            found += (((section, str(name)), kind, str(name), body) for name, body in content.items())
    return found, lines


def _load(text: str) -> tuple[object, dict[Path, int]]:
    """Return the value, and the line of each of its parts by path. Raises _BadFileError."""
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            line = event.start_mark.line if event.start_mark else 0
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise _mistake(line, "anchors and aliases (& and *) are not supported; write the value again")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise _mistake(line, f"nested more than {_MAX_DEPTH} deep")
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[Path, int] = {}
        return (None if node is None else _value(loader, node, (), lines)), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _mistake(0 if mark is None else mark.line, error.problem or "this is not YAML") from error
    except (yaml.YAMLError, ValueError) as error:
        raise _BadFileError(f"the file is not YAML: {str(error).splitlines()[0][:200]}") from error


def _value(loader: yaml.SafeLoader, node: Node, path: Path, lines: dict[Path, int]) -> object:
    lines[path] = node.start_mark.line + 1
    match node:
        case MappingNode() if node.tag == f"{_TAG}map":
            found: dict[str, object] = {}
            for key, child in node.value:
                if not isinstance(key, ScalarNode):
                    raise _mistake(key.start_mark.line, "a name must be text")
                if key.value in found:
                    raise _mistake(key.start_mark.line, f"{key.value[:100]!r} is here twice")
                found[key.value] = _value(loader, child, (*path, key.value), lines)
                lines[*path, key.value] = key.start_mark.line + 1
            return found
        case SequenceNode() if node.tag == f"{_TAG}seq":
            return [_value(loader, child, (*path, position), lines) for position, child in enumerate(node.value)]
        case _ if node.tag in _VALUES:
            return loader.construct_object(node)
        case _ if node.tag in {f"{_TAG}str", f"{_TAG}timestamp", f"{_TAG}value"}:
            return node.value
    raise _mistake(node.start_mark.line, f"the type {node.tag[:60]} is not supported")


def _mistake(line: int, text: str) -> _BadFileError:
    return _BadFileError(f"line {line + 1}: {text}")
