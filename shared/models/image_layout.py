"""OCI image layouts: how versions lie on stores and in folders, so that skopeo, oras and others copy them to and from registries. Pure."""

import re
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from shared import errors
from shared.models import manifest
from shared.models.manifest import ARTIFACT_TYPE, BLOCKS_TYPE, MANIFEST_TYPE, MAX_FILES, PATH_ANNOTATION, Descriptor

LAYOUT_FILE, LAYOUT = "oci-layout", b'{"imageLayoutVersion":"1.0.0"}'
INDEX_FILE, MAX_INDEX_BYTES = "index.json", 4 << 20
_REFERENCE, _TITLE = "org.opencontainers.image.ref.name", "org.opencontainers.image.title"
#: Kinds of layers that name no file: of Docker's model runner and of Ollama.
_MODEL, _PROJECTOR = re.compile(r"gguf|ollama\.image\.model"), re.compile("mmproj|projector")
_HINT = "name a folder that `aicli models export`, skopeo or oras wrote"


class _Index(msgspec.Struct, frozen=True, rename="camel"):
    manifests: tuple[Descriptor, ...]
    schema_version: int = 2
    media_type: str = "application/vnd.oci.image.index.v1+json"


class _OtherManifest(msgspec.Struct, frozen=True, rename="camel"):
    layers: Annotated[tuple[Descriptor, ...], Meta(max_length=2 * MAX_FILES)]
    artifact_type: str = ""
    config: dict[str, Any] = {}


def blob(digest: str) -> str:
    """Return the path of a blob within a layout."""
    return f"blobs/{digest.replace(':', '/')}"


def tag(model: str, version: int) -> str:
    """Return the name of a version in a layout: a tag for every tool, whatever the model's name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"{model}-{version}")


def encode_index(versions: Iterable[tuple[str, str, int]], before: bytes | None = None) -> bytes:
    """Return the index of manifests, given by name, digest and size. Those that an index has ``before`` stay, but for these names."""
    found = [Descriptor(MANIFEST_TYPE, digest, size, {_REFERENCE: name}) for name, digest, size in versions]
    names = {each.annotations[_REFERENCE] for each in found}
    kept = () if before is None else (each for each in _read_index(before) if each.annotations.get(_REFERENCE) not in names)
    return msgspec.json.encode(_Index((*kept, *found)))


def choose(index: bytes, name: str) -> Descriptor:
    """Return the manifest with this name; without a name, the only one. Raises BadRequest."""
    found = _read_index(index)
    matching = [each for each in found if not name or each.annotations.get(_REFERENCE) == name]
    if len(matching) != 1:
        names = ", ".join(each.annotations.get(_REFERENCE, "?")[:80] for each in found[:20]) or "nothing"
        raise errors.BadRequest(f"the image layout has {names}: which one?", hint="write oci:DIR:TAG")
    if matching[0].media_type != MANIFEST_TYPE or matching[0].size > manifest.MAX_MANIFEST_BYTES:
        raise errors.BadRequest(f"{matching[0].digest} of the image layout is no manifest of a model", hint=_HINT)
    return matching[0]


def is_ours(data: bytes) -> bool:
    """Return whether a manifest has what a version needs: a list of blocks for each file. Then it can stay as it is, and its digest."""
    read = _read_manifest(data)
    return read.artifact_type == ARTIFACT_TYPE and any(layer.media_type == BLOCKS_TYPE for layer in read.layers)


def files(data: bytes) -> dict[str, Descriptor]:
    """Return the files of somebody's image of a model, by their paths. Raises BadRequest."""
    found = dict[str, Descriptor]()
    for layer in _read_manifest(data).layers:
        path = layer.annotations.get(PATH_ANNOTATION) or layer.annotations.get(_TITLE) or _guess(layer.media_type)
        if layer.media_type == BLOCKS_TYPE or not path:
            continue
        if re.search(r"\btar\b", layer.media_type):
            raise errors.BadRequest(f"{path[:80]!r} is packed as {layer.media_type}", hint="unpack the image, and push the folder")
        if path in found:
            raise errors.BadRequest(f"the image has two files {path[:80]!r}", hint=_HINT)
        found[path] = layer
    if not found:
        raise errors.BadRequest("the image has no files of a model", hint=_HINT)
    return found


def _guess(media_type: str) -> str:
    return "mmproj.gguf" if _PROJECTOR.search(media_type) else "model.gguf" if _MODEL.search(media_type) else ""


def _read_index(data: bytes) -> tuple[Descriptor, ...]:
    return manifest.decode(data, _Index, "index of the image", MAX_INDEX_BYTES, _HINT).manifests


def _read_manifest(data: bytes) -> _OtherManifest:
    return manifest.decode(data, _OtherManifest, "manifest of the image", manifest.MAX_MANIFEST_BYTES, _HINT)
