"""Databases with the gateway's tables, an HTTP client, and configurations that are read in the test's own process."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from services.gateway.configuration import config_file
from services.gateway.configuration.config_file import ReadDocument, ReadRequest
from services.gateway.facts.config_snapshot import DocumentKey
from services.gateway.guard import guard_checks
from services.gateway.idempotency import sealed_values
from tests.services.gateway import fakes, http_answers
from tests.services.gateway.fakes import RunningService


@pytest.fixture(scope="session")
def tables_of() -> str | None:
    return "gateway"


@pytest.fixture(autouse=True, scope="module")
def _read_configurations_here(request: pytest.FixtureRequest) -> Iterator[None]:
    """Starting the program that reads them takes 0.35 s of CPU; ``test_config_file`` and whole stacks cover it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name != "test_config_file.py":
            patch.setattr(config_file, "read", _read)
        yield


@pytest.fixture(autouse=True, scope="module")
def _wait_for_cached_answers() -> Iterator[None]:
    """On a busy machine Valkey may need more than 20 ms, and the requests would run uncached."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealed_values, "VALKEY_SECONDS", 5.0)
        yield


@pytest.fixture
async def running_service() -> AsyncIterator[RunningService]:
    async with fakes.running_service() as service:
        yield service


@pytest.fixture
async def http(running_service: RunningService) -> AsyncIterator[httpx.AsyncClient]:
    async with http_answers.connected(running_service) as client:
        yield client


async def _read(request: ReadRequest) -> dict[DocumentKey, ReadDocument]:
    result = config_file.read_here(request, guard_checks.check)
    if result.mistakes:
        raise config_file.bad_config(result.mistakes)
    return {(document.kind, document.name): document for document in result.documents}
