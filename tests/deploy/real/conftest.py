"""One Docker engine with all images, shared by the tests here. All are nightly: `make test-all TESTS=tests/deploy/real`."""

from collections.abc import Iterator

import pytest

from tests import capabilities
from tests.deploy.real import docker_engine, image_builds, stand_ins
from tests.deploy.real.docker_engine import DockerEngine


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    capabilities.require("containers")
    with docker_engine.running(tmp_path_factory.mktemp("docker")) as engine:
        yield engine


@pytest.fixture(scope="session")
def wheel() -> Iterator[str]:
    with image_builds.engine_wheel() as url:
        yield url


@pytest.fixture(scope="session")
def images(engine: DockerEngine, wheel: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Target -> the tag of its image, built from this checkout."""
    stand_ins.make_all(engine, tmp_path_factory.mktemp("stand-ins"))
    tags = {target: image_builds.tag_of(target) for target in image_builds.TARGETS}
    for target, tag in tags.items():
        image_builds.build(engine, target, tag, wheel)
    return tags
