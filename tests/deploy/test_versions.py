"""deploy/versions.toml sets the versions of servers and programs: the wheels and every file that names an image agree with it."""

import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stack.servers import nats_server, postgres, valkey
from tests.deploy import compose_file

ROOT = compose_file.ROOT
VERSIONS: dict[str, dict[str, Any]] = tomllib.loads((ROOT / "deploy/versions.toml").read_text(encoding="utf-8"))
SERVERS = VERSIONS["servers"]
#: Where images are that were built on this machine.
OURS = "localhost"
#: Compose builds it where it runs.
NEVER_PUSHED = {"aimesh-database-cluster"}
#: Files that name images. The chart names a registry, a repository and a tag, or all in one.
FILES = [
    path
    for pattern in (
        "compose.yaml",
        "deploy/*.compose.yaml",
        "deploy/compose/*.yaml",
        "deploy/swarm/*.yaml",
        "deploy/helm/*/values.yaml",
        "deploy/helm/*/ci/*.yaml",
        "deploy/kustomize/base/**/*.yaml",
    )
    for path in sorted(ROOT.glob(pattern))
]


def pushed() -> set[str]:
    """Return the names of our images, as `make images` builds and release.yml pushes them."""
    [names] = re.findall(r"^IMAGES = (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return set(names.split())


def known() -> set[str]:
    """Return every image that versions.toml names."""
    return {str(each["image"] if isinstance(each, dict) else each) for table in VERSIONS.values() for each in table.values()}


def images(tree: object) -> Iterator[str]:
    """Yield the images of a YAML document, with variables replaced by their defaults."""
    if isinstance(tree, dict):
        image = tree.get("image")
        if isinstance(image, str):
            yield compose_file.resolve(image, {"AIMESH_REGISTRY": OURS})
        if isinstance(tree.get("repository"), str) and tree.get("tag"):
            yield "/".join(str(part) for part in (tree.get("registry"), tree["repository"]) if part) + f":{tree['tag']}"
        for value in tree.values():
            yield from images(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from images(value)


def our_version() -> str:
    text = (ROOT / "sdk/python/src/aimesh/version.py").read_text(encoding="utf-8")
    (found,) = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return str(found)


def answer(program: Path) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout + done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_names_no_other_version(path: Path) -> None:
    named = {image for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) for image in images(document)}
    ours = {image for image in named if image.startswith(f"{OURS}/")}
    assert {image.rpartition(":")[2] for image in ours} <= {our_version()}
    assert {image.rpartition(":")[0].rpartition("/")[2] for image in ours} <= pushed() | NEVER_PUSHED
    repositories = {image.rpartition(":")[0] for image in known()}
    # A chart may name programs that only it uses; a program that two files name has one version.
    others = {image for image in named - ours if "helm" not in path.parts or image.rpartition(":")[0] in repositories}
    assert others - known() == set()


def test_compose_names_our_images() -> None:
    assert any(image.startswith(f"{OURS}/") for image in images(compose_file.load()))
    assert SERVERS["postgres"]["image"] in images(compose_file.load())


@pytest.mark.parametrize(
    ("server", "find"),
    [("postgres", lambda: postgres.binaries() / "postgres"), ("valkey", valkey.binary), ("nats", nats_server.binary)],
)
def test_a_wheel_has_the_release_of_the_image(server: str, find: Callable[[], Path]) -> None:
    """So that a stack of `make up` can move to containers and back."""
    assert re.search(rf"[ v=]{re.escape(SERVERS[server]['version'])}(?![\w.])", answer(find()))
    assert re.search(rf":{re.escape(SERVERS[server]['version'])}\b", SERVERS[server]["image"])


def test_files_of_a_restored_home_go_where_this_postgresql_looks() -> None:
    """Since version 18, the image keeps them in a folder with its major version."""
    script = (ROOT / "deploy/docker/place_restored_home.sh").read_text(encoding="utf-8")
    assert f"/pg/{SERVERS['postgres']['version'].partition('.')[0]}/docker/" in script
