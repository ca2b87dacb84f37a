"""A version of a model: an OCI image manifest of the kind that the CNCF's ModelPack specifies.

The manifest's SHA-256 is the version's digest. Each file is a layer; behind it is a layer with the list of its blocks, so that tools that
copy OCI images copy it, too. The config has what the owner says, as ModelPack's schema wants it. Everything here may come from strangers.
Pure.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from shared import errors
from shared.models import block_list
from shared.models.version_names import DIGEST_PATTERN

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
WEIGHTS_TYPE = "application/vnd.cncf.model.weight.v1.raw"
BLOCKS_TYPE = "application/vnd.aimesh.blocks.v1"
PATH_ANNOTATION = "org.cncf.model.filepath"
#: Of the layer with blocks: the digest of the file.
FILE_ANNOTATION = "io.aimesh.blocks-of"
MAX_MANIFEST_BYTES, MAX_CONFIG_BYTES = 4 << 20, 1 << 20
#: Of all signatures of a version. One over 256 files needs 50 KiB.
MAX_SIGNATURE_BYTES = 64 << 10
MAX_FILES = 256
MAX_BYTES = 4 << 40
_MAX_PATH_CHARACTERS = 200
_HINT = "push the model with `aicli models push`"

Digest = Annotated[str, Meta(pattern=rf"^{DIGEST_PATTERN}\Z")]
Checked = TypeVar("Checked")


class ModelKind(StrEnum):
    MODEL = "model"
    #: A LoRA adapter for one base.
    ADAPTER = "adapter"


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    media_type: Annotated[str, Meta(max_length=200)]
    digest: Digest
    size: Annotated[int, Meta(ge=0, le=MAX_BYTES)]
    annotations: dict[str, str] = msgspec.field(default_factory=dict)


class Manifest(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    schema_version: Annotated[int, Meta(ge=2, le=2)] = 2
    media_type: str = MANIFEST_TYPE
    artifact_type: str = ARTIFACT_TYPE
    config: Descriptor
    layers: Annotated[tuple[Descriptor, ...], Meta(max_length=2 * MAX_FILES)]


class VersionFacts(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """What the file itself says; a gateway reads it again and never believes a caller."""

    architecture: str = ""
    parameters: int = 0
    quantization: str = ""
    context_tokens: int = 0
    #: SHA-256 of the chat template and of the tokenizer; empty without one.
    template: str = ""
    tokenizer: str = ""
    embeds: bool = False
    sees_images: bool = False


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """What whoever pushes a version says about it."""

    #: SPDX.
    license: str = ""
    source: str = ""
    description: str = ""


class VersionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the config says."""

    kind: ModelKind = ModelKind.MODEL
    statement: Statement = Statement()
    #: Of an adapter: the weights digest of its base.
    base: Digest | None = None


class _License(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """ModelPack's `descriptor`."""

    licenses: Annotated[tuple[Annotated[str, Meta(max_length=100)], ...], Meta(max_length=4)] = ()
    source_url: Annotated[str, Meta(max_length=500)] = msgspec.field(default="", name="sourceURL")
    description: Annotated[str, Meta(max_length=2000)] = ""


class _ModelFiles(msgspec.Struct, frozen=True, rename="camel"):
    """ModelPack's `modelfs`."""

    type: str
    #: Of the layers, in their order.
    diff_ids: Annotated[tuple[Digest, ...], Meta(max_length=2 * MAX_FILES)]


class _Config(msgspec.Struct, frozen=True, omit_defaults=True):
    """The config's content. ModelPack wants the first three and, for a model, nothing else."""

    descriptor: _License
    #: Technical facts. Ours are those of the files.
    config: dict[str, Any]
    modelfs: _ModelFiles
    kind: ModelKind = ModelKind.MODEL
    base: Digest | None = None


class VersionFile(msgspec.Struct, frozen=True):
    path: str
    digest: Digest
    size: int
    #: The digest of the list of its blocks.
    blocks: Digest


class Version(msgspec.Struct, frozen=True):
    """A checked manifest."""

    #: Of the manifest.
    digest: Digest
    config: Descriptor
    files: tuple[VersionFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def blobs(self) -> dict[str, int]:
        """Everything that a complete copy has besides the manifest: digests and sizes."""
        lists = {file.blocks: block_list.count(file.size) * block_list.DIGEST_BYTES for file in self.files}
        return {self.config.digest: self.config.size, **lists, **{file.digest: file.size for file in self.files}}


def digest_of(data: bytes) -> str:
    return f"sha256:{sha256(data).hexdigest()}"


def build(config: bytes, files: Iterable[VersionFile]) -> bytes:
    """Return the manifest's bytes: always the same for the same content."""
    return msgspec.json.encode(Manifest(config=Descriptor(CONFIG_TYPE, digest_of(config), len(config)), layers=_layers(files)))


def encode_config(config: VersionConfig, files: Iterable[VersionFile]) -> bytes:
    """Return the config's bytes for the manifest of these files."""
    said = config.statement
    descriptor = _License((said.license,) if said.license else (), said.source, said.description)
    held = _ModelFiles("layers", tuple(layer.digest for layer in _layers(files)))
    return msgspec.json.encode(_Config(descriptor, {}, held, config.kind, config.base))


def read(data: bytes) -> Version:
    """Raises BadRequest unless everything holds that a worker relies on."""
    manifest = decode(data, Manifest, "manifest", MAX_MANIFEST_BYTES)
    if (manifest.media_type, manifest.artifact_type) != (MANIFEST_TYPE, ARTIFACT_TYPE):
        raise errors.BadRequest(f"the manifest is no {ARTIFACT_TYPE}", hint=_HINT)
    if manifest.config.size > MAX_CONFIG_BYTES:
        raise errors.BadRequest(f"the config has {manifest.config.size} bytes; the max is {MAX_CONFIG_BYTES}", hint=_HINT)
    files = [layer for layer in manifest.layers if PATH_ANNOTATION in layer.annotations]
    lists = {layer.annotations[FILE_ANNOTATION]: layer for layer in manifest.layers if FILE_ANNOTATION in layer.annotations}
    if not 0 < len(files) <= MAX_FILES or len({file.digest for file in files}) != len(lists):
        raise errors.BadRequest(f"the manifest must have 1 to {MAX_FILES} files, and a list of blocks for each", hint=_HINT)
    if (total := sum(file.size for file in files)) > MAX_BYTES:
        raise errors.BadRequest(f"the files have {total} bytes; the max is {MAX_BYTES}", hint=_HINT)
    check_paths(file.annotations[PATH_ANNOTATION] for file in files)
    return Version(digest_of(data), manifest.config, tuple(_file(file, lists) for file in files))


def read_config(data: bytes) -> VersionConfig:
    """Raises BadRequest."""
    read = decode(data, _Config, "config", MAX_CONFIG_BYTES)
    said = Statement(
        license=" AND ".join(read.descriptor.licenses), source=read.descriptor.source_url, description=read.descriptor.description
    )
    return VersionConfig(kind=read.kind, statement=said, base=read.base)


def weights_digest(digests: Iterable[str]) -> str:
    """Return the digest of a model in parts, in hex: what routing, reuse of prefixes and resumption compare."""
    hexes = [digest.removeprefix("sha256:") for digest in digests]
    return hexes[0] if len(hexes) == 1 else sha256("\n".join(hexes).encode()).hexdigest()


def check_paths(paths: Iterable[str]) -> None:
    """Raise BadRequest for a path that leaves the folder, or means two things on some machine."""
    seen = set[str]()
    for path in paths:
        parts = path.split("/")
        is_plain = path == unicodedata.normalize("NFC", path) and len(path) <= _MAX_PATH_CHARACTERS and "\\" not in path
        has_controls = any(unicodedata.category(each) in {"Cc", "Cf", "Cs"} for each in path)
        if not is_plain or has_controls or any(part in {"", ".", ".."} for part in parts) or re.match("[A-Za-z]:", path):
            raise errors.BadRequest(f"{path[:80]!r} can't be the path of a model's file", hint="write a relative path such as model.gguf")
        if (folded := path.casefold()) in seen:
            raise errors.BadRequest(f"two files have the path {path[:80]!r}", hint="their names may not differ in case only")
        seen.add(folded)
    folders = {folded.rsplit("/", count)[0] for folded in seen for count in range(1, folded.count("/") + 1)}
    if both := folders & seen:
        raise errors.BadRequest(f"{min(both)[:80]!r} is the path of a file and of a folder", hint="rename one of them")


def _layers(files: Iterable[VersionFile]) -> tuple[Descriptor, ...]:
    layers = list[Descriptor]()
    for file in sorted(files, key=lambda each: each.path):
        layers.append(Descriptor(WEIGHTS_TYPE, file.digest, file.size, {PATH_ANNOTATION: file.path}))
        blocks = block_list.count(file.size) * block_list.DIGEST_BYTES
        layers.append(Descriptor(BLOCKS_TYPE, file.blocks, blocks, {FILE_ANNOTATION: file.digest}))
    return tuple(layers)


def _file(file: Descriptor, lists: Mapping[str, Descriptor]) -> VersionFile:
    found = lists.get(file.digest)
    if found is None or found.size != block_list.count(file.size) * block_list.DIGEST_BYTES or found.size > block_list.MAX_LIST_BYTES:
        raise errors.BadRequest(f"the blocks of {file.annotations[PATH_ANNOTATION][:80]!r} do not fit its size", hint=_HINT)
    return VersionFile(file.annotations[PATH_ANNOTATION], file.digest, file.size, found.digest)


def decode(data: bytes, kind: type[Checked], what: str, max_bytes: int, hint: str = _HINT) -> Checked:
    """Read JSON of a stranger. Raises BadRequest."""
    if len(data) > max_bytes:
        raise errors.BadRequest(f"the {what} has more than {max_bytes} bytes", hint=hint)
    try:
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise errors.BadRequest(f"the {what} is not readable: {str(error)[:200]}", hint=hint) from error
