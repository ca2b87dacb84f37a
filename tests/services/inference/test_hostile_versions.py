"""A gateway, or who took one over, sends manifests to a worker: it refuses them by itself, before it reads or writes any file."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.inference.models.model_store import ModelStore
from shared import errors
from shared.api.model_copies import VERSION_SOURCE, ReadBlob
from shared.models import block_list, manifest
from shared.models.manifest import VersionConfig, VersionFile
from tests.services.inference.test_version_copy import MODEL, Origin, get


class Endless(bytes):
    """A blob of 1 GiB that takes no memory."""

    def __getitem__(self, at: Any) -> Any:
        return b" " * (min(at.stop, 1 << 30) - at.start)


def build(origin: Origin, *paths: str, size: int = len(MODEL)) -> bytes:
    data = origin.add(MODEL)
    files = [VersionFile(path, data, size, origin.add(b"".join(block_list.compute([MODEL])))) for path in paths]
    return manifest.build(manifest.encode_config(VersionConfig(), files), files)


def sparse(origin: Origin, size: int) -> bytes:
    """Return a version of one file of this size, and blocks to it that have the right number."""
    changed = json.loads(build(origin, "model.gguf"))
    changed["layers"][0]["size"] = size
    changed["layers"][1]["size"] = block_list.count(size) * block_list.DIGEST_BYTES
    return json.dumps(changed).encode()


def layers(origin: Origin) -> bytes:
    changed = json.loads(build(origin, "model.gguf"))
    changed["layers"] = [{"mediaType": "a", "digest": changed["config"]["digest"], "size": 1}] * 10_000 + changed["layers"]
    return json.dumps(changed).encode()


CASES = {
    "dot dot": lambda origin: build(origin, "../model.gguf"),
    "absolute": lambda origin: build(origin, "/etc/model.gguf"),
    "of Windows": lambda origin: build(origin, "C:\\model.gguf"),
    "case twins": lambda origin: build(origin, "model.gguf", "MODEL.gguf"),
    "a file in a file": lambda origin: build(origin, "model.gguf", "model.gguf/part"),
    "10,000 layers": layers,
    "more than 4 TiB": lambda origin: sparse(origin, manifest.MAX_BYTES + 1),
    "too many blocks": lambda origin: sparse(origin, 3 << 40),
    "no JSON": lambda _origin: b"\xff" * 1000,
    "deep": lambda _origin: b'{"layers":' + b"[" * 1_000_000,
}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


@pytest.mark.parametrize("case", CASES)
async def test_a_bad_manifest_is_refused_before_a_file_is_read(case: str, store: ModelStore) -> None:
    origin = Origin()
    source = VERSION_SOURCE + origin.add(CASES[case](origin))
    with pytest.raises(errors.BadRequest):
        await get(origin, store, source)
    assert origin.blocks_of(MODEL) == []
    assert store.models() == ()
    assert not store._root.exists()


async def test_a_sparse_file_within_the_bounds_has_no_room(tmp_path: Path) -> None:
    origin, size = Origin(), 64 << 30
    store = ModelStore(tmp_path / "store", quota_bytes=1 << 30)
    digest = origin.add(MODEL)
    blocks = origin.add(b"".join(block_list.compute([MODEL])).ljust(block_list.count(size) * block_list.DIGEST_BYTES, b"x"))
    files = [VersionFile("model.gguf", digest, size, blocks)]
    source = VERSION_SOURCE + origin.add(manifest.build(manifest.encode_config(VersionConfig(), files), files))
    with pytest.raises(errors.TooLarge, match=r"64\.0 GiB more are needed, .* can be used|the store may use 1\.0 GiB"):
        await get(origin, store, source)
    assert origin.blocks_of(MODEL) == []


async def test_a_manifest_of_1_gib_is_not_read_to_its_end(store: ModelStore) -> None:
    origin, digest = Origin(), manifest.digest_of(b"endless")
    origin.blobs[digest] = Endless()
    with pytest.raises(errors.BadRequest, match=f"has more than {manifest.MAX_MANIFEST_BYTES} bytes"):
        await get(origin, store, VERSION_SOURCE + digest)
    assert sum(each.length for each in origin.asked if isinstance(each, ReadBlob)) <= 16 << 20
