"""The catalog of models that people can pull: finds them by words and names, and estimates what they need.  Pure but for ``load``."""

import difflib
from collections.abc import Iterator, Mapping
from importlib import resources

import msgspec
import yaml

from shared.api.inference import ModelFacts
from shared.api.model_search import ROOM_GIGABYTES, FoundModel
from shared.config_documents import CatalogDocument

Catalog = Mapping[str, CatalogDocument]

#: Bits for each weight of whole files, as published ones have.
_BITS = {
    "Q3_K_M": 3.9, "Q4_0": 4.6, "MXFP4": 4.65, "Q4_K_M": 4.92, "Q5_K_M": 5.75, "Q6_K": 6.6, "Q8_0": 8.53, "F16": 16.1, "BF16": 16.1,
}  # fmt: skip
#: What most files on the hub have.
_USUAL = "Q4_K_M"
#: For a token's key and value in one layer, in f16 and for each number of the key.
_NUMBER_BYTES = 4
#: Of the memory, for llama.cpp's buffers.
_BUFFER_SHARE = 0.06


def load() -> dict[str, CatalogDocument]:
    """Read the built-in catalog."""
    text = resources.files(__package__).joinpath("catalog.yaml").read_text(encoding="utf-8")
    return msgspec.convert(yaml.safe_load(text), dict[str, CatalogDocument])


def find(catalog: Catalog, name: str) -> tuple[str, CatalogDocument] | None:
    """Return the model with this name, alias or source."""
    for key, model in catalog.items():
        if name.lower() in (key.lower(), *map(str.lower, model.aliases)) or name == model.source:
            return key, model
    return None


def nearest(catalog: Catalog, name: str) -> list[str]:
    """Return names that were probably meant."""
    names = {alias: key for key, model in catalog.items() for alias in (key, *model.aliases)}
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    return list(dict.fromkeys(names[each] for each in close))


def search(catalog: Catalog, text: str) -> Iterator[tuple[str, CatalogDocument]]:
    words = text.lower().split()
    for name, model in catalog.items():
        searched = " ".join((name, model.source, *model.aliases, *model.uses, "tools" * model.tools)).lower()
        if all(word in searched for word in words):
            yield name, model


def document(source: str, *, parameters: int = 0, size: int | None = None, license_id: str = "", context: int = 0) -> CatalogDocument:
    """Return an entry for a model of the hub that isn't in the catalog; one of both numbers is enough."""
    parameters = parameters or max(1, round((size or 0) * 8 / _BITS[_USUAL]))
    return CatalogDocument(
        source=source, parameters=parameters, quantizations=(_USUAL,), license=license_id, uses=(), size=size, context=context or None
    )


def file_bytes(model: CatalogDocument) -> int:
    return model.size or max(1, round(model.parameters * _BITS.get(model.quantizations[0].upper(), _BITS[_USUAL]) / 8))


def facts(model: CatalogDocument, header: bytes = b"") -> ModelFacts:
    """Return what a machine needs to plan it. A shape that the catalog doesn't know is usual for this many parameters."""
    layers = model.layers or max(8, min(96, round(16 * (model.parameters / 1e9) ** (1 / 3))))
    # The weights of a layer are about 12 squares of the width.
    width = max(64, round((model.parameters / (12 * layers)) ** 0.5))
    return ModelFacts(
        file_bytes=file_bytes(model),
        header=header,
        layers=layers,
        width=width,
        key_width=max(64, width // 4) if model.key_width is None else model.key_width,
        context_tokens=model.context or 0,
    )


def room(model: CatalogDocument, memory_bytes: int) -> int:
    """Estimate the context that fits beside the weights, at most the model's own; 0 if the weights don't fit."""
    needs = facts(model)
    left = int(memory_bytes * (1 - _BUFFER_SHARE)) - needs.file_bytes
    tokens = left // (_NUMBER_BYTES * needs.layers * needs.key_width) if needs.key_width else needs.context_tokens
    return 0 if left <= 0 else min(tokens, needs.context_tokens or tokens)


def found(name: str, model: CatalogDocument, *, is_served: bool = False) -> FoundModel:
    rooms = tuple(room(model, gigabytes * 10**9) for gigabytes in ROOM_GIGABYTES)
    return FoundModel(name=name, origin="catalog", is_served=is_served, model=model, size=file_bytes(model), room=rooms)
