"""An auth service on real stores, without the mesh around it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import argon2
import msgspec
import pytest

from services.auth import passwords
from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from shared.identity import node_keys
from tests.services.auth.surroundings import Surroundings, settings_of


@pytest.fixture(scope="session")
def tables_of() -> str | None:
    return "auth"


@pytest.fixture(autouse=True, scope="module")
def _cheap_hashes() -> Iterator[None]:
    """Hash passwords in microseconds, which no setting allows. ``test_passwords`` tests the parameters that auth really uses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_argon2id", lambda: argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        yield


@pytest.fixture
def settings(postgres_url: str, valkey_url: str) -> AuthSettings:
    return settings_of(postgres_url, valkey_url)


@pytest.fixture
async def world(settings: AuthSettings) -> AsyncIterator[Surroundings]:
    """The running service with everything that a test may inspect."""
    surroundings = Surroundings()
    async with AuthService.open(settings, surroundings.as_node()) as service:
        surroundings.service = service
        yield surroundings


@pytest.fixture
def ca_settings(settings: AuthSettings, tmp_path: Path) -> AuthSettings:
    """Settings with a mesh CA and a DHT."""
    ca_key = tmp_path / "mesh_ca.nk"
    ca_key.touch(mode=0o600)
    ca_key.write_bytes(node_keys.new_authority_seed())
    return msgspec.structs.replace(
        settings,
        mesh_ca_key_file=ca_key,
        dht_bootstrap=("127.0.0.1:49737",),
        ticket_bootstrap=("192.0.2.1:49737",),
        dht_relays=("ab" * 32,),
    )


@pytest.fixture
async def running_service(ca_settings: AuthSettings, tmp_path: Path) -> AsyncIterator[Surroundings]:
    """The running service of a mesh with a CA."""
    surroundings = Surroundings(state_file=tmp_path / "auth.mesh")
    async with AuthService.open(ca_settings, surroundings.as_node()) as service:
        surroundings.service = service
        yield surroundings
