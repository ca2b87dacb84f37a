"""Image layouts: what stands in the index, and which files the images of other tools have."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import errors
from shared.models import image_layout, manifest
from shared.models.manifest import VersionConfig, VersionFile

RAW = "application/vnd.cncf.model.weight.v1.raw"


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def image(*layers: tuple[str, dict[str, str]]) -> bytes:
    found = [{"mediaType": kind, "digest": digest(at), "size": 5, "annotations": notes} for at, (kind, notes) in enumerate(layers)]
    return json.dumps({"schemaVersion": 2, "config": {"mediaType": "x", "digest": digest(9), "size": 2}, "layers": found}).encode()


def test_an_index_keeps_what_others_wrote_and_replaces_a_name() -> None:
    index = image_layout.encode_index([("a-1", digest(1), 5), ("a-2", digest(2), 6)])
    index = image_layout.encode_index([("a-2", digest(3), 7)], index)
    assert [image_layout.choose(index, name).digest for name in ("a-1", "a-2")] == [digest(1), digest(3)]
    for name in ("", "a-3"):
        with pytest.raises(errors.BadRequest, match="a-1, a-2: which one"):
            image_layout.choose(index, name)
    only = json.dumps({"manifests": [{"mediaType": manifest.MANIFEST_TYPE, "digest": digest(1), "size": 5}]}).encode()
    assert image_layout.choose(only, "").digest == digest(1)


@pytest.mark.parametrize(("kind", "size"), [("application/vnd.oci.image.index.v1+json", 5), (manifest.MANIFEST_TYPE, 1 << 30)])
def test_what_is_no_manifest_is_not_chosen(kind: str, size: int) -> None:
    index = json.dumps({"manifests": [{"mediaType": kind, "digest": digest(1), "size": size}]}).encode()
    with pytest.raises(errors.BadRequest, match="no manifest of a model"):
        image_layout.choose(index, "")


def test_every_name_becomes_a_tag() -> None:
    assert image_layout.tag("qwen3:0.6b", 7) == "qwen3-0.6b-7"
    assert image_layout.tag("team/a+b", 1) == "team-a-b-1"


def test_our_images_stay_as_they_are() -> None:
    files = [VersionFile("m.gguf", digest(1), 5, digest(2))]
    assert image_layout.is_ours(manifest.build(manifest.encode_config(VersionConfig(), files), files))
    assert not image_layout.is_ours(image((RAW, {"org.cncf.model.filepath": "m.gguf"})))


@pytest.mark.parametrize(
    ("layers", "paths"),
    [
        # ModelPack's, ORAS', Docker's and Ollama's.
        ([(RAW, {"org.cncf.model.filepath": "a/m.gguf"}), (RAW, {"org.cncf.model.filepath": "LICENSE"})], ["a/m.gguf", "LICENSE"]),
        ([("application/octet-stream", {"org.opencontainers.image.title": "m.gguf"})], ["m.gguf"]),
        ([("application/vnd.docker.ai.gguf.v3", {}), ("application/vnd.docker.ai.license", {})], ["model.gguf"]),
        ([("application/vnd.ollama.image.model", {}), ("application/vnd.ollama.image.projector", {})], ["model.gguf", "mmproj.gguf"]),
    ],
)
def test_files_of_other_tools(layers: list[tuple[str, dict[str, str]]], paths: list[str]) -> None:
    assert list(image_layout.files(image(*layers))) == paths


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        ([("application/vnd.cncf.model.weight.v1.tar", {"org.cncf.model.filepath": "m.gguf"})], "is packed as"),
        ([("application/vnd.kitops.modelkit.model.v1.tar+gzip", {"org.opencontainers.image.title": "m"})], "is packed as"),
        ([("application/vnd.oci.image.layer.v1.tar", {})], "no files of a model"),
        ([("application/vnd.docker.ai.gguf.v3", {})] * 2, "two files"),
        ([(RAW, {"org.cncf.model.filepath": f"{number}"}) for number in range(1000)], "not readable"),
    ],
)
def test_images_that_cannot_be_pushed_are_refused(layers: list[tuple[str, dict[str, str]]], why: str) -> None:
    with pytest.raises(errors.BadRequest, match=why):
        image_layout.files(image(*layers))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda each: st.lists(each) | st.dictionaries(st.text(), each)))
def test_no_content_does_more_than_being_refused(content: Any) -> None:
    data = json.dumps(content).encode()
    for read in (image_layout.files, image_layout.is_ours, lambda text: image_layout.choose(text, "")):
        with pytest.raises(errors.BadRequest):
            read(data)
