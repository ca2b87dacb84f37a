"""One stack for all kills, which leave it damaged: no other tests use it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.gateway.facts import tiers
from tests import people, stacks
from tests.people import ApiClient, Person
from tests.stacks import RunningStack
from tests.testnet import free_port

#: An answer of twelve words takes a quarter of a second, so a kill hits answers in every phase.
ECHO_TOKEN_MS = "20"

#: Turn off the response cache and the limits of the tiers.
SETTINGS = {"RESPONSE_CACHE": "off", "DEFAULT_RATE_LIMIT": "1000000"}
SETTINGS |= dict.fromkeys(("TIER_FREE", "TIER_ENTERPRISE"), ",".join(f"{name}=unlimited" for name in tiers.NUMBERS))

#: The port for traces. Nothing listens there except in the test of traces: an endpoint that is down must not matter.
OTLP_PORT = free_port()

_shared = stacks.OfFolders(
    (Path(__file__).parent,),
    AIMESH_ECHO="1",
    ECHO_TOKEN_MS=ECHO_TOKEN_MS,
    OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{OTLP_PORT}",
    OTEL_TRACES_SAMPLER_ARG="1",
    **SETTINGS,
)


@pytest.fixture
def otlp_port() -> int:
    return OTLP_PORT


@pytest.fixture
def stack(pytestconfig: pytest.Config) -> RunningStack:
    return _shared.get(pytestconfig)


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    _shared.leave(nextitem)


@pytest.fixture
async def api_client(stack: RunningStack) -> AsyncIterator[ApiClient]:
    async with people.api_client(stack) as opened:
        yield opened


@pytest.fixture
async def ann(api_client: ApiClient) -> Person:
    return await api_client.register("ann")
