"""Reads ``model_discovery.yaml``: a list of models, each with its name, its file and how it is run.  Pure.

Also read as they are: a list under ``models:``, that under ``inference:`` (with ``gpu_memory`` and ``max_batch_size``), a
registry of services (``service`` and ``path``), and a Kubernetes ConfigMap that holds such a file.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.inference.engine.engine_messages import KvType
from services.inference.engine.kv_slots import KvMode
from services.inference.models import catalog, quantities, yaml_tree
from services.inference.models.catalog import MAX_CHARACTERS, CatalogEntry, CatalogReading, Defaults, Placed, RemoteModel
from services.inference.models.yaml_tree import Listing, Scalar, Tree, YamlFields

#: As many as llama.cpp knows.
MAX_DEVICES = 16
#: A file with a mistake in every line must not fill the screen with them.
MAX_MISTAKES = 50

_WORDS_FOR_BOOL = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def read(text: str, *, source: str, folder: Path, found: Mapping[str, Path], defaults: Defaults) -> CatalogReading:
    """``source`` is how messages call the file and ``folder`` where it lies; ``found`` has the files of the models' folder,
    for entries that name none."""
    reading = CatalogReading()
    if len(text) > MAX_CHARACTERS:
        reading.mistakes.append(f"{source}: it has {len(text)} characters; at most {MAX_CHARACTERS} are read")
        return reading
    file = _File(source, folder, found, defaults, reading)
    try:
        file.read(text)
    except yaml_tree.NotReadable as error:
        reading.mistakes.append(f"{source}: {error}")
    if (more := len(reading.mistakes) - MAX_MISTAKES) > 0:
        reading.mistakes[MAX_MISTAKES:] = [f"{source}: and {more} more mistakes"]
    return reading


# --- what a field may hold: text of the tree to a value, or ValueError with a sentence -----------------------------------


def _text(value: Tree) -> str:
    if not isinstance(value, Scalar):
        raise ValueError("must be one value, not a list or fields")
    if not value.text.strip():
        raise ValueError("is empty")
    return value.text.strip()


def _path(value: Tree) -> Path:
    try:
        return Path(_text(value)).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{_text(value)[:80]!r} begins with the home of nobody here") from error


def _number(low: int, high: int) -> Callable[[Tree], int]:
    def read_number(value: Tree) -> int:
        text = _text(value)
        if not re.fullmatch(r"-?[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"{text[:40]!r} is not a whole number from {low} to {high}")
        return int(text)

    return read_number


def _one_of(*choices: str) -> Callable[[Tree], str]:
    def read_choice(value: Tree) -> str:
        text = _text(value).lower()
        if text not in choices:
            raise ValueError(f"{text[:40]!r} is none of {', '.join(choices)}")
        return text

    return read_choice


def _flag(value: Tree) -> bool:
    text = _text(value).lower()
    if text not in _WORDS_FOR_BOOL:
        raise ValueError(f"{text[:40]!r} is neither true nor false")
    return _WORDS_FOR_BOOL[text]


def _names(value: Tree) -> tuple[str, ...]:
    listed = value.items if isinstance(value, Listing) else (value,)
    return tuple(catalog.check_name(_text(one)) for one in listed)


def _shares(value: Tree) -> tuple[float, ...]:
    listed = value.items if isinstance(value, Listing) else (value,)
    texts = [_text(one) for one in listed]
    if not all(re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) for text in texts) or not 0 < len(texts) <= MAX_DEVICES:
        raise ValueError(f"must be up to {MAX_DEVICES} numbers, a share for each GPU, as [3, 1]")
    if not any(shares := tuple(float(text) for text in texts)):
        raise ValueError("gives no GPU a share")
    return shares


def _digest(value: Tree) -> str:
    text = _text(value).lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("must be a SHA-256 of 64 hexadecimal digits; `sha256sum FILE` shows it")
    return text


#: The field in the file -> the field of Entry, and how it is read.
FIELDS: dict[str, tuple[str, Callable[[Tree], object]]] = {
    "name": ("name", lambda value: catalog.check_name(_text(value))),
    "file": ("file", _path),
    "digest": ("digest", _digest),
    "aliases": ("aliases", _names),
    "context": ("context_tokens", _number(64, 1_048_576)),
    "slots": ("slots", _number(1, 256)),
    "memory": ("memory_bytes", lambda value: quantities.parse_bytes(_text(value))),
    "replicas": ("replicas", _number(1, 16)),
    "gpu_layers": ("gpu_layers", _number(-1, 10_000)),
    "keep_alive": ("keep_alive_seconds", lambda value: quantities.parse_seconds(_text(value))),
    "pin": ("pinned", _flag),
    "preload": ("preload", _flag),
    "kv_mode": ("kv_mode", lambda value: KvMode(_one_of(*KvMode)(value))),
    "kv_type": ("kv_type", lambda value: KvType(_one_of(*KvType)(value))),
    "device": ("device", _number(0, MAX_DEVICES - 1)),
    "tensor_split": ("tensor_split", _shares),
    # As other registries call them.
    "gpu_memory": ("memory_bytes", lambda value: quantities.parse_bytes(_text(value))),
    "max_batch_size": ("slots", _number(1, 256)),
    "service": ("service", _text),
    "path": ("path", _text),
}
#: Beside the list of models; the last two say what INFERENCE_BACKEND says here, and are read over.
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
        if not inner and isinstance(tree, YamlFields) and _is_config_map(tree):
            self._read_config_map(tree)
            return
        where, listed = self._find_list(tree)
        if listed is None:
            return
        for position, item in enumerate(listed.items):
            self._read_model(item, f"{where}[{position}]")

    def _read_config_map(self, tree: YamlFields) -> None:
        data = tree.find("data")
        texts = [value.text for _, value in data.pairs if isinstance(value, Scalar)] if isinstance(data, YamlFields) else []
        if len(texts) != 1:
            self._mistake(tree, "data", "a ConfigMap must hold one text, the models.yaml")
            return
        named = _File(f"{self.source} (the text in data)", self.folder, self.found, self.defaults, self.reading)
        named.read(texts[0], inner=True)

    def _find_list(self, tree: Tree | None) -> tuple[str, Listing | None]:
        """The list of models and what messages call it; None after a mistake was noted."""
        where = "models"
        if isinstance(tree, YamlFields):
            self._check_names(tree, _OUTER, "")
            inner = tree.find("inference")
            if isinstance(inner, YamlFields):
                self._check_names(inner, _OUTER, "inference.")
                where, tree = "inference.models", inner.find("models")
            else:
                tree = tree.find("models")
        if isinstance(tree, Listing):
            return where, tree
        line = "" if tree is None else f" line {tree.line}"
        self.reading.mistakes.append(f"{self.source}{line}: there is no list of models; begin with `models:` and `- name: …` under it")
        return where, None

    def _read_model(self, item: Tree, where: str) -> None:
        if not isinstance(item, YamlFields):
            self._mistake(item, where, "must be fields, of which `name` is one")
            return
        self._check_names(item, tuple(FIELDS), f"{where}.")
        noted = len(self.reading.mistakes)
        given = dict(self._values(item, where))
        if "name" not in given:
            if len(self.reading.mistakes) == noted:
                self._mistake(item, where, "has no name")
            return
        path = given.pop("path", None)
        service = given.pop("service", None)
        file = self._find_file(given.pop("file", None), given["name"])
        if file is not None:
            if service is None and path is not None:
                self._mistake(item, f"{where}.path", "goes with `service`; the model's file is `file:`")
            self.reading.placed.append(Placed(self._place(item, where), self._entry(given, file)))
        elif service is not None:
            self.reading.elsewhere.append(RemoteModel(given["name"], service, path or "/infer"))
        else:
            self._mistake(item, where, f"has no `file:`, and MODELS_DIR has no {given['name']}.gguf")

    def _values(self, item: YamlFields, where: str) -> Iterator[tuple[str, Any]]:
        """The fields of an entry that hold what they may."""
        spellings: dict[str, str] = {}
        for key, value in item.pairs:
            known = FIELDS.get(key.text)
            if known is None or (isinstance(value, Scalar) and value.is_null):
                continue
            field, read_value = known
            if spellings.setdefault(field, key.text) != key.text:
                self._mistake(key, f"{where}.{key.text}", f"says the same as {spellings[field]}; keep one of them")
                continue
            try:
                yield field, read_value(value)
            except ValueError as error:
                self._mistake(value, f"{where}.{key.text}", str(error))

    def _entry(self, given: Mapping[str, Any], file: Path) -> CatalogEntry:
        defaults = self.defaults
        filled: dict[str, Any] = {
            "slots": defaults.slots,
            "context_tokens": defaults.context_tokens,
            "gpu_layers": defaults.gpu_layers,
            "keep_alive_seconds": defaults.keep_alive_seconds,
            **given,
        }
        return CatalogEntry(file=file, **filled)

    def _find_file(self, written: Path | None, name: str) -> Path | None:
        return self.found.get(name) if written is None else self.folder / written

    def _check_names(self, fields: YamlFields, known: tuple[str, ...], where: str) -> None:
        seen: set[str] = set()
        for key, _ in fields.pairs:
            if key.text in seen:
                self._mistake(key, f"{where}{key.text[:40]}", "stands here twice")
            elif key.text not in known:
                self._mistake(key, f"{where}{key.text[:40]}", f"is no field; {_nearest(key.text, known)}")
            seen.add(key.text)

    def _mistake(self, at: Tree, where: str, sentence: str) -> None:
        self.reading.mistakes.append(f"{self._place(at, where)}: {sentence}")

    def _place(self, at: Tree, where: str) -> str:
        return f"{self.source} line {at.line}, {where}"


def _is_config_map(tree: YamlFields) -> bool:
    kind = tree.find("kind")
    return isinstance(kind, Scalar) and kind.text == "ConfigMap"


def _nearest(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name[:40].lower().replace("-", "_"), known, n=1)
    return f"did you mean {close[0]}?" if close else f"the fields are {', '.join(known)}"
