"""Manifests of versions: what we write is read, and what strangers write is bounded."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import errors
from shared.models import block_list, manifest
from shared.models.manifest import Statement, VersionConfig, VersionFile


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def file(path: str, number: int = 1, size: int = 5 * block_list.BLOCK_BYTES) -> VersionFile:
    return VersionFile(path, digest(number), size, digest(number + 1_000_000))


CONFIG = manifest.encode_config(
    VersionConfig(statement=Statement(license="MIT", source="https://example.org/m", description="small")), [file("model.gguf")]
)


def changed(**changes: Any) -> bytes:
    return json.dumps(json.loads(manifest.build(CONFIG, [file("model.gguf")])) | changes).encode()


def test_what_is_written_is_read() -> None:
    files = (file("a/model-00001-of-00002.gguf"), file("a/model-00002-of-00002.gguf", 2, size=7), file("mmproj.gguf", 3))
    data = manifest.build(CONFIG, reversed(files))
    version = manifest.read(data)
    assert version.files == files
    assert version.digest == manifest.digest_of(data)
    assert version.size == sum(each.size for each in files)
    assert version.blobs[digest(1_000_002)] == 32
    assert manifest.build(CONFIG, files) == data
    assert manifest.read_config(CONFIG).statement == Statement(license="MIT", source="https://example.org/m", description="small")


def test_a_config_has_what_the_schema_of_modelpack_requires_and_nothing_else() -> None:
    """Its config-schema.json forbids other properties."""
    assert json.loads(CONFIG) == {
        "descriptor": {"licenses": ["MIT"], "sourceURL": "https://example.org/m", "description": "small"},
        "config": {},
        "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in json.loads(changed())["layers"]]},
    }
    said = {
        "descriptor": {"licenses": ["MIT", "Apache-2.0"], "name": "m"},
        "config": {"format": "gguf"},
        "modelfs": {"type": "layers", "diffIds": []},
    }
    assert manifest.read_config(json.dumps(said).encode()).statement.license == "MIT AND Apache-2.0"


def test_a_description_changes_the_version_but_no_file() -> None:
    files = [file("m.gguf")]
    first, second = (
        manifest.read(manifest.build(manifest.encode_config(VersionConfig(statement=Statement(description=text)), files), files))
        for text in ("a", "b")
    )
    assert first.digest != second.digest
    assert first.files == second.files


@pytest.mark.parametrize(
    "path",
    ["", "/m", "../m", "a/../m", "a//m", "./m", "a\\m", "C:m", "m\x00", "m\n", "m\u202e", "e\u0301", "x" * 201, "m/"],
)
def test_paths_that_leave_the_folder_are_refused(path: str) -> None:
    with pytest.raises(errors.BadRequest, match="can't be the path"):
        manifest.read(manifest.build(CONFIG, [file(path)]))


@pytest.mark.parametrize("paths", [("m.gguf", "M.GGUF"), ("m", "m"), ("stra\u00dfe", "STRASSE"), ("a", "a/b"), ("A/b/c", "a/B")])
def test_paths_that_mean_one_place_are_refused(paths: tuple[str, str]) -> None:
    with pytest.raises(errors.BadRequest):
        manifest.read(manifest.build(CONFIG, [file(path, number) for number, path in enumerate(paths, 1)]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"layers":' + b"[" * 100_000,
        b" " * (manifest.MAX_MANIFEST_BYTES + 1),
        changed(schemaVersion=1),
        changed(artifactType="application/x"),
        changed(layers=[]),
        changed(config={"mediaType": "x", "digest": "sha256:0", "size": 1}),
        changed(config={"mediaType": "x", "digest": f"{digest(1)}\n", "size": 1}),
        changed(config={"mediaType": "x", "digest": digest(1), "size": manifest.MAX_CONFIG_BYTES + 1}),
        changed(layers=[{"mediaType": "x", "digest": digest(1), "size": 1}] * 1_000_000)[: manifest.MAX_MANIFEST_BYTES],
        manifest.build(CONFIG, [file(f"{number}", number) for number in range(1, manifest.MAX_FILES + 2)]),
        manifest.build(CONFIG, [file("sparse", size=manifest.MAX_BYTES + 1)]),
        manifest.build(CONFIG, [file(f"{number}", number, size=manifest.MAX_BYTES // 2) for number in (1, 2, 3)]),
    ],
)
def test_other_manifests_are_refused(data: bytes) -> None:
    with pytest.raises(errors.BadRequest):
        manifest.read(data)


def test_a_file_without_its_blocks_is_refused() -> None:
    whole = json.loads(manifest.build(CONFIG, [file("m.gguf")]))
    for layers in (whole["layers"][:1], whole["layers"][1:], [whole["layers"][0], {**whole["layers"][1], "size": 32}]):
        with pytest.raises(errors.BadRequest):
            manifest.read(json.dumps({**whole, "layers": layers}).encode())


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda each: st.lists(each) | st.dictionaries(st.text(), each)))
def test_no_content_does_more_than_being_refused(content: Any) -> None:
    data = json.dumps(content).encode()
    for read in (manifest.read, manifest.read_config):
        try:
            read(data)
        except errors.BadRequest as error:
            assert error.hint  # noqa: PT017


def test_the_digest_of_one_file_is_its_own() -> None:
    assert manifest.weights_digest([digest(5)]) == f"{5:064x}"
    assert manifest.weights_digest([digest(5), digest(6)]) != manifest.weights_digest([digest(6), digest(5)])
