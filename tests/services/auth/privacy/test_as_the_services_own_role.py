"""As in a running stack: auth's role owns its schema but is not a superuser, so row-level security applies to it, too."""

import secrets
from collections.abc import AsyncIterator

import asyncpg
import msgspec
import pytest

from services.auth.privacy import retention
from services.auth.privacy.retention import Retention
from services.auth.settings import AuthSettings
from shared.api import accounts
from tests.servers import PostgresServer
from tests.services.auth.accounts.surroundings import opened_accounts
from tests.services.auth.privacy import surroundings
from tests.services.auth.privacy.surroundings import Canaries, PrivacyDesk, user_with_data


@pytest.fixture(scope="session")
def tables_of() -> None:
    """Override the fixture: the role of these tests creates the tables."""


@pytest.fixture
async def api_client(settings: AuthSettings, postgres: PostgresServer) -> AsyncIterator[PrivacyDesk]:
    role = f"auth_{secrets.token_hex(4)}"
    connection = await asyncpg.connect(settings.database_url)
    try:
        await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'of_a_test'")
        await connection.execute(f"CREATE SCHEMA auth AUTHORIZATION {role}")
    finally:
        await connection.close()
    own = settings.database_url.replace(postgres.server.url("admin", postgres.server.admin_password.read_text()).partition("@")[0], "")
    url = f"postgresql://{role}:of_a_test{own}"
    async with opened_accounts(msgspec.structs.replace(settings, database_url=url)) as opened:
        yield PrivacyDesk(opened)


async def test_erasure_reaches_every_table(api_client: PrivacyDesk) -> None:
    canaries = Canaries()
    person = await user_with_data(api_client, canaries)
    assert set(canaries.left_in(await api_client.every_cell())) == set(canaries.NAMES)
    await api_client.erase(person)
    assert canaries.left_in(await api_client.every_cell()) == []


async def test_an_export_has_content_in_every_file(api_client: PrivacyDesk) -> None:
    person = await user_with_data(api_client, Canaries())
    files = await api_client.export(person.login())
    assert [name for name, content in files.items() if content == b"[]\n"] == []


async def test_retention_may_delete(api_client: PrivacyDesk) -> None:
    await user_with_data(api_client, Canaries())
    await api_client.sql("UPDATE password_resets SET expires_at = now() - interval '2 days'")
    await Retention(retention.own(api_client.rows), surroundings.new_items()).enforce()
    assert await api_client.sql("SELECT 1 FROM password_resets") == []


async def test_a_query_without_a_tenant_returns_no_other_tenants_rows(api_client: PrivacyDesk) -> None:
    anna = await user_with_data(api_client, Canaries())
    bert = await api_client.api_client.person("bert")
    await api_client.ask(accounts.set_preferences, accounts.SetPreferences(accounts.Preferences(theme="light")), bert.login())
    seen: dict[str, list[object]] = {}
    connection = await asyncpg.connect(api_client.url, server_settings={"search_path": "auth"})
    try:
        for tenant in (None, str(anna.id), str(bert.id), "*"):
            if tenant is not None:
                await connection.execute("SELECT set_config('aimesh.tenant', $1, false)", tenant)
            for table in ("preferences", "password_resets"):
                rows = await connection.fetch(f"SELECT user_id FROM {table}")
                seen[f"{table} {tenant}"] = sorted(row["user_id"] for row in rows)
    finally:
        await connection.close()
    assert seen == {
        "preferences None": [], "password_resets None": [],
        f"preferences {anna.id}": [anna.id], f"password_resets {anna.id}": [anna.id],
        f"preferences {bert.id}": [bert.id], f"password_resets {bert.id}": [],
        "preferences *": sorted([anna.id, bert.id]), "password_resets *": [anna.id],
    }  # fmt: skip
