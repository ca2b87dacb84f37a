"""Reads a ``models.yaml``: a list of models with their names, files and options.  Pure.

It accepts a plain list, a list under ``models:`` or ``inference:`` (with ``gpu_memory`` and ``max_batch_size``), a registry of
services (``service`` and ``path``), and a Kubernetes ConfigMap with such a file.
"""

import difflib
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from yaml import MappingNode, Node, ScalarNode, SequenceNode

from services.inference.engine.engine_messages import KvMode, KvType, KvTypes, SplitMode
from services.inference.models import catalog, quantities, yaml_tree
from services.inference.models.catalog import MAX_CHARACTERS, CatalogReading, Defaults, ModelProgram, RemoteModel
from shared import features
from shared.api import generation
from shared.gguf.gguf_header import MAX_LAYERS
from shared.types import LoadPurpose, ModelName

MAX_DEVICES = 16
MAX_OVERRIDES = 16
MAX_OVERRIDE_CHARACTERS = 200
MAX_MISTAKES = 50

_FLAG = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NOT_A_DIGEST = "must be a SHA-256 of 64 hexadecimal digits; `sha256sum FILE` shows it"

Choice = TypeVar("Choice")


def read(text: str, *, source: str, folder: Path, found: Mapping[str, Path], defaults: Defaults) -> CatalogReading:
    """``source`` is the file's name in messages and ``folder`` its folder; ``found`` has the files of MODELS_DIR, for entries
    without a file."""
    reading = CatalogReading()
    if len(text) > MAX_CHARACTERS:
        reading.mistakes.append(f"{source}: it has {len(text)} characters; at most {MAX_CHARACTERS} are allowed")
        return reading
    file = _File(source, folder, found, defaults, reading)
    try:
        file.read(text)
    except yaml_tree.NotReadable as error:
        reading.mistakes.append(f"{source}: {error}")
    if (more := len(reading.mistakes) - MAX_MISTAKES) > 0:
        reading.mistakes[MAX_MISTAKES:] = [f"{source}: and {more} more mistakes"]
    return reading


# --- readers of a field's value; they raise ValueError with a message for people --------------------------------------------


def _text(value: Node) -> str:
    if not isinstance(value, ScalarNode):
        raise ValueError("must be one value, not a list or fields")
    if not (text := str(value.value).strip()):
        raise ValueError("is empty")
    return text


def _texts(value: Node) -> tuple[str, ...]:
    """Read a list, or one value."""
    return tuple(map(_text, value.value if isinstance(value, SequenceNode) else [value]))


def _path(value: Node) -> Path:
    try:
        return Path(_text(value)).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{_text(value)[:80]!r} starts with the home of an unknown user") from error


def _number(low: int, high: int, **words: int | None) -> Callable[[Node], int | None]:
    """``words`` may stand for a number."""

    def read_number(value: Node) -> int | None:
        text = _text(value)
        if text.lower() in words:
            return words[text.lower()]
        if not re.fullmatch(r"-?[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"{text[:40]!r} is not a whole number from {low} to {high}")
        return int(text)

    return read_number


def _decimal(low: float, high: float) -> Callable[[Node], float]:
    def read_decimal(value: Node) -> float:
        text = _text(value)
        if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?", text) or not low <= float(text) <= high:
            raise ValueError(f"{text[:40]!r} is not a number from {low:g} to {high:g}")
        return float(text)

    return read_decimal


def _one_of(choices: Mapping[str, Choice]) -> Callable[[Node], Choice]:
    def read_choice(value: Node) -> Choice:
        text = _text(value).lower()
        if text not in choices:
            raise ValueError(f"{text[:40]!r} is not one of {', '.join(choices)}")
        return choices[text]

    return read_choice


def _matching(pattern: str, mistake: str) -> Callable[[Node], str]:
    def read_text(value: Node) -> str:
        if not re.fullmatch(pattern, text := _text(value)):
            raise ValueError(mistake)
        return text

    return read_text


def _shares(value: Node) -> tuple[float, ...]:
    texts = _texts(value)
    if not all(re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) for text in texts) or not 0 < len(texts) <= MAX_DEVICES:
        raise ValueError(f"must be up to {MAX_DEVICES} numbers, one share per GPU, such as [3, 1]")
    if not any(shares := tuple(map(float, texts))):
        raise ValueError("must have a share above 0")
    return shares


def _kv_types(value: Node) -> KvTypes:
    texts = _text(value).lower().split("/")
    if len(texts) > 2 or not set(texts) <= set(KvType):
        raise ValueError(f"{_text(value)[:40]!r} must be one of {', '.join(KvType)}, or one for keys and one for values, such as q8_0/q4_0")
    return KvTypes(*map(KvType, texts))


def _overrides(value: Node) -> tuple[str, ...]:
    texts = _texts(value)
    for text in texts:
        pattern, _, device = text.rpartition("=")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern[:40]!r} is not a regular expression: {error}") from error
        if not pattern or not device.isalnum() or len(text) > MAX_OVERRIDE_CHARACTERS or len(texts) > MAX_OVERRIDES:
            raise ValueError(f"must be up to {MAX_OVERRIDES} patterns of tensors with a device, such as ['blk\\.[0-9]\\.ffn=CPU']")
    return texts


def _adapters(value: Node) -> tuple[catalog.CatalogAdapter, ...]:
    """Read the adapters with their own names and relative files."""
    if not isinstance(value, MappingNode):
        raise ValueError("must have a field for each adapter, such as `sql: {file: sql.gguf, scale: 1}`")
    if len(value.value) > catalog.MAX_ADAPTERS:
        raise ValueError(f"has {len(value.value)} adapters; at most {catalog.MAX_ADAPTERS} are allowed")
    adapters = {key.value: _adapter(key.value, fields) for key, fields in value.value}
    if len(adapters) < len(value.value):
        raise ValueError("has an adapter twice")
    return tuple(adapters.values())


def _adapter(name: str, value: Node) -> catalog.CatalogAdapter:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name == "latest":
        raise ValueError(f"{name[:40]!r}: the name of an adapter has letters, digits, dots, dashes and underscores, and isn't `latest`")
    pairs = value.value if isinstance(value, MappingNode) else []
    fields = {key.value: one for key, one in pairs}
    if "file" not in fields or fields.keys() - {"file", "scale"} or len(fields) < len(pairs):
        raise ValueError(f"{name}: an adapter has the fields `file` and `scale`")
    scale = _decimal(0.001, 100)(fields["scale"]) if "scale" in fields else 1.0
    return catalog.CatalogAdapter(ModelName(name), _path(fields["file"]), scale)


def _dialect(value: Node) -> str:
    dialects: Mapping[str, str] = {}
    return _one_of(features.merged(dialects, "worker.part", "DIALECTS"))(value)


def _pointer(value: Node) -> str:
    if not isinstance(value, ScalarNode) or not re.fullmatch(r"(/[^/]{1,100}){0,10}", value.value):
        raise ValueError("must be a JSON pointer such as /output/0/text")
    return str(value.value)


def _command(value: Node) -> tuple[str, ...]:
    words = _texts(value) if isinstance(value, SequenceNode) else tuple(shlex.split(_text(value)))
    if not any("{port}" in word for word in words):
        raise ValueError("needs {port}, where the program takes its port")
    return words


def _vllm(name: str, slots: int) -> tuple[str, ...]:
    return (VLLM, "serve", name, "--served-model-name", name, "--max-num-seqs", str(slots), "--host", "127.0.0.1", "--port", "{port}")


#: The field in the file -> the field of CatalogEntry and its reader.
FIELDS: dict[str, tuple[str, Callable[[Node], object]]] = {
    "name": ("name", lambda value: catalog.check_name(_text(value))),
    "file": ("file", _path),
    "digest": ("digest", lambda value: _matching("(?i:sha256:)?[0-9a-fA-F]{64}", _NOT_A_DIGEST)(value).lower()[-64:]),
    "aliases": ("aliases", lambda value: tuple(map(catalog.check_name, _texts(value)))),
    "context": ("context_tokens", _number(64, 1_048_576)),
    "slots": ("slots", _number(1, 256)),
    "memory": ("memory_bytes", lambda value: quantities.parse_bytes(_text(value))),
    "replicas": ("replicas", _number(1, 16, auto=None)),
    "gpu_layers": ("gpu_layers", _number(-1, 10_000)),
    "cpu_experts": ("cpu_experts", _number(0, MAX_LAYERS, all=MAX_LAYERS)),
    "adapters": ("adapters", _adapters),
    "override_tensor": ("override_tensor", _overrides),
    "split_mode": ("split_mode", _one_of({mode.value: mode for mode in SplitMode})),
    "keep_alive": ("keep_alive_seconds", lambda value: quantities.parse_seconds(_text(value))),
    "pin": ("pinned", _one_of(_FLAG)),
    "preload": ("preload", _one_of(_FLAG)),
    "kv_mode": ("kv_mode", _one_of({mode.value: mode for mode in KvMode})),
    "kv_type": ("kv_type", _kv_types),
    "speculation": ("speculates", _one_of({"auto": True, "off": False})),
    "for": ("purpose", _one_of({purpose.value: purpose for purpose in LoadPurpose})),
    "projector": ("projector", _path),
    "device": ("device", _number(0, MAX_DEVICES - 1)),
    "tensor_split": ("tensor_split", _shares),
    "temperature": ("temperature", _decimal(0, generation.MAX_TEMPERATURE)),
    "top_p": ("top_p", _decimal(0.01, 1)),
    "repeat_penalty": ("repeat_penalty", _decimal(generation.MIN_REPEAT_PENALTY, generation.MAX_REPEAT_PENALTY)),
    "reasoning": ("reasoning", _one_of({"on": True, "off": False, "auto": None})),
    "reasoning_budget": ("reasoning_budget", _number(0, 1_048_576)),
    "gpu_memory": ("memory_bytes", lambda value: quantities.parse_bytes(_text(value))),
    "max_batch_size": ("slots", _number(1, 256)),
    "program": ("command", _command),
    "dialect": ("dialect", _dialect),
    "ready_timeout": ("ready_seconds", lambda value: quantities.parse_seconds(_text(value)) or quantities.MAX_SECONDS),
    "tools": ("tools", _one_of(_FLAG)),
    "service": ("service", _text),
    "path": ("path", _matching(r"/[!-~]{0,499}", "must be a path such as /infer")),
    "answer": ("answer", _pointer),
    "port": ("port", _number(1, 65535)),
    "token_file": ("token_file", _path),
}
#: The fields that only an entry with a service may have, and its others.
_ONLY_SERVICES = ("path", "answer", "port", "token_file")
_OF_SERVICES = frozenset({"name", "aliases", "context_tokens", "slots"})
#: The fields that only an entry with a program may have, and its others.
_ONLY_PROGRAMS = ("command", "dialect", "ready_seconds", "tools")
_OF_PROGRAMS = frozenset(
    {"name", "aliases", "digest", "context_tokens", "slots", "memory_bytes", "replicas", "keep_alive_seconds", "pinned", "preload"}
)
#: The value of `engine` that makes a program of each entry without a file.
VLLM = "vllm"
#: Fields beside the list of models.
_OUTER = ("models", "inference", "engine", "version")


@dataclass(frozen=True, slots=True)
class _File:
    source: str
    folder: Path
    found: Mapping[str, Path]
    defaults: Defaults
    reading: CatalogReading

    def read(self, text: str, *, inner: bool = False) -> None:
        """Raises NotReadable."""
        tree = yaml_tree.read(text)
        if tree is not None and not inner and _word(tree, "kind") == "ConfigMap":
            self._read_config_map(tree)
            return
        where, listed = self._find_list(tree)
        outer = yaml_tree.find(tree, "inference")
        engine = _word(outer, "engine") or _word(tree, "engine")
        for position, item in enumerate(listed):
            self._read_model(item, f"{where}[{position}]", by_vllm=engine == VLLM)

    def _read_config_map(self, tree: Node) -> None:
        data = yaml_tree.find(tree, "data")
        values = [value for _, value in data.value] if isinstance(data, MappingNode) else []
        texts = [value.value for value in values if isinstance(value, ScalarNode)]
        if len(texts) != 1:
            self._mistake(tree, "data", "a ConfigMap must contain exactly one text, the models.yaml")
        else:
            replace(self, source=f"{self.source} (the text in data)").read(texts[0], inner=True)

    def _find_list(self, tree: Node | None) -> tuple[str, list[Node]]:
        """Return the list of models and its name in messages; empty after noting a mistake."""
        where = "models"
        if isinstance(tree, MappingNode):
            self._check_names(tree, _OUTER, "")
            inner = yaml_tree.find(tree, "inference")
            if isinstance(inner, MappingNode):
                self._check_names(inner, _OUTER, "inference.")
                where, tree = "inference.models", inner
            tree = yaml_tree.find(tree, "models")
        if isinstance(tree, SequenceNode):
            return where, tree.value
        line = "" if tree is None else f" line {yaml_tree.line(tree)}"
        self.reading.mistakes.append(f"{self.source}{line}: there is no list of models; start with `models:` and `- name: …` below it")
        return where, []

    def _read_model(self, item: Node, where: str, *, by_vllm: bool) -> None:
        if not isinstance(item, MappingNode):
            self._mistake(item, where, "must have fields, such as `name`")
            return
        self._check_names(item, tuple(FIELDS), f"{where}.")
        noted = len(self.reading.mistakes)
        values = dict(self._values(item, where))
        if "name" not in values:
            if len(self.reading.mistakes) == noted:
                self._mistake(item, where, "has no name")
            return
        if by_vllm and values["name"] not in self.found and not {"file", "service"} & values.keys():
            values.setdefault("command", _vllm(values["name"], values.get("slots") or self.defaults.slots or catalog.SERVER_SLOTS))
        if program := {name: values.pop(name) for name in _ONLY_PROGRAMS if name in values}:
            self._read_program(item, where, program, values)
            return
        values["adapters"] = tuple(self._placed(adapter, values["name"], item, where) for adapter in values.get("adapters", ()))
        given = {name: values.pop(name) for name in _ONLY_SERVICES if name in values}
        service = values.pop("service", None)
        written = values.pop("file", None)
        file = self.found.get(values["name"]) if written is None else self.folder / written
        if file is not None:
            if service is None and given:
                self._mistake(item, f"{where}.{next(iter(given))}", "needs `service`; the model's file is `file:`")
            self.reading.entries.append(self.defaults.entry(file=file, place=self._place(item, where), **values))
        elif service is not None:
            known = {name: value for name, value in values.items() if name in _OF_SERVICES}
            self.reading.elsewhere.append(RemoteModel(service=service, **{"path": "/infer", **given}, **known))
        elif len(self.reading.mistakes) == noted:
            self._mistake(item, where, f"has no `file:`, and there is no {values['name']}.gguf in MODELS_DIR")

    def _read_program(self, item: MappingNode, where: str, program: dict[str, Any], values: dict[str, Any]) -> None:
        if "command" not in program:
            if yaml_tree.find(item, "program") is None:
                self._mistake(item, f"{where}.{next(iter(program))}", "needs `program`")
        elif (wrong := next((name for name in values if name not in _OF_PROGRAMS), None)) is not None:
            written = next(name for name, (field, _) in FIELDS.items() if field == wrong)
            self._mistake(item, f"{where}.{written}", "is not for a program; write it into the command")
        elif "memory_bytes" not in values:
            self._mistake(item, where, "needs `memory`: how much the program takes")
        else:
            values |= {"file": Path(program["command"][0]), "program": ModelProgram(**program), "place": self._place(item, where)}
            self.reading.entries.append(self.defaults.entry(**values))

    def _placed(self, adapter: catalog.CatalogAdapter, model: ModelName, item: MappingNode, where: str) -> catalog.CatalogAdapter:
        """Return an adapter with the name under which it is served, and its whole path."""
        name = ModelName(f"{model}:{adapter.name}")
        try:
            catalog.check_name(name)
        except ValueError as error:
            self._mistake(item, f"{where}.adapters", str(error))
        return catalog.CatalogAdapter(name, self.folder / adapter.file, adapter.scale)

    def _values(self, item: MappingNode, where: str) -> Iterator[tuple[str, Any]]:
        """Yield the valid fields of an entry, and note mistakes in the others."""
        spellings: dict[str, str] = {}
        for key, value in item.value:
            if key.value not in FIELDS or yaml_tree.is_null(value):
                continue
            field, read_value = FIELDS[key.value]
            if spellings.setdefault(field, key.value) != key.value:
                self._mistake(key, f"{where}.{key.value}", f"means the same as {spellings[field]}; keep one of them")
                continue
            try:
                read = read_value(value)
                yield field, self.folder / read if field == "projector" and isinstance(read, Path) else read
            except ValueError as error:
                self._mistake(value, f"{where}.{key.value}", str(error))

    def _check_names(self, fields: MappingNode, known: tuple[str, ...], where: str) -> None:
        seen: set[str] = set()
        for key, _ in fields.value:
            if key.value in seen:
                self._mistake(key, f"{where}{key.value[:40]}", "appears twice")
            elif key.value not in known:
                self._mistake(key, f"{where}{key.value[:40]}", f"is not a field; {_nearest(key.value, known)}")
            seen.add(key.value)

    def _mistake(self, at: Node, where: str, sentence: str) -> None:
        self.reading.mistakes.append(f"{self._place(at, where)}: {sentence}")

    def _place(self, at: Node, where: str) -> str:
        return f"{self.source} line {yaml_tree.line(at)}, {where}"


def _word(fields: Node | None, name: str) -> str:
    """Return the text of a field; empty if it is missing, or no text."""
    value = yaml_tree.find(fields, name)
    return value.value if isinstance(value, ScalarNode) else ""


def _nearest(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name[:40].lower().replace("-", "_"), known, n=1)
    return f"did you mean {close[0]}?" if close else f"the fields are {', '.join(known)}"
