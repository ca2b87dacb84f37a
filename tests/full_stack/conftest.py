"""A stack with backups, traces and a login provider, for tests that search, restart or replace the whole stack.

The tests run in the order of their files: those that restore a database come last.
"""

import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from features.backup.stack import sealing
from tests import people, stacks
from tests.people import ApiClient
from tests.services.auth.oidc.scripted_provider import CLIENT_ID
from tests.stacks import RunningStack
from tests.testnet import free_port


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is outside the stack. Nothing listens on the two ports unless a test starts a server."""

    provider_port: int = field(default_factory=free_port)
    provider_secret: str = field(default_factory=lambda: f"oidc-{secrets.token_urlsafe(24)}")
    otlp_port: int = field(default_factory=free_port)
    #: Where the backups go.
    store: Path = field(default_factory=lambda: Path(tempfile.gettempdir()) / f"aimesh-store-{secrets.token_hex(6)}")
    #: Decrypts the backups. Operators keep it elsewhere.
    identity: str = field(default_factory=sealing.new_identity)


_SURROUNDINGS = Surroundings()
_shared = stacks.OfFolders(
    (Path(__file__).parent,),
    INFERENCE_BACKEND="echo",
    HYPERSWARM="off",
    LOG_LEVEL="debug",
    TIER_FREE="requests_per_minute=unlimited,concurrency=unlimited",
    OIDC_ISSUER=f"http://127.0.0.1:{_SURROUNDINGS.provider_port}",
    OIDC_CLIENT_ID=CLIENT_ID,
    OIDC_CLIENT_SECRET=_SURROUNDINGS.provider_secret,
    OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{_SURROUNDINGS.otlp_port}",
    OTEL_TRACES_SAMPLER_ARG="1",
    BACKUP_TO=str(_SURROUNDINGS.store),
    BACKUP_RECIPIENTS=sealing.recipient_of(_SURROUNDINGS.identity),
    BACKUP_SHIP_SECONDS="1",
    BACKUP_MB_PER_SECOND="0",
)


@pytest.fixture
def surroundings() -> Surroundings:
    return _SURROUNDINGS


@pytest.fixture
def stack(pytestconfig: pytest.Config) -> RunningStack:
    return _shared.get(pytestconfig)


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    if _shared.leave(nextitem):
        shutil.rmtree(_SURROUNDINGS.store, ignore_errors=True)


@pytest.fixture
async def api_client(stack: RunningStack) -> AsyncIterator[ApiClient]:
    async with people.api_client(stack) as opened:
        yield opened
