"""Which post migrations run, and where; nodes of older versions prevent them."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from shared import errors, features
from shared.api.gateway import NodeRow
from shared.stores.database import Database
from shared.stores.migrations import SchemaStatus
from shared.types import NodeId, Role
from stack import schema_migrations
from stack import stack_home as homes
from stack.stack_home import StackHome

FILES = {
    "0001_pre_things.sql": "CREATE TABLE things (old integer, new integer);",
    "0002_post_old.sql": "ALTER TABLE things DROP COLUMN old;",
    "0003_pre_more.sql": "ALTER TABLE things ADD COLUMN more integer;",
}


@dataclass
class Release:
    """A checkout whose auth service has these migrations."""

    folder: Path

    def write(self, files: dict[str, str]) -> None:
        for service in ("auth", "gateway"):
            (self.folder / "services" / service / "migrations").mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (self.folder / "services" / "auth" / "migrations" / name).write_text(text)

    async def start(self, url: str, *, migrate: bool = True) -> None:
        """Open the database as auth does at its start."""
        package = self.folder / "services" / "auth"
        (package / "queries.sql").write_text("-- name: one\n-- One.\nSELECT 1;")
        async with Database.open(url, schema="auth", package=package, migrate=migrate):
            pass


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    monkeypatch.setattr(homes, "checkout", lambda: tmp_path)
    # It has no features, which have migrations, too.
    monkeypatch.setattr(features, "files", lambda _name: [])
    found = Release(tmp_path)
    found.write({})
    return found


async def columns(url: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        query = "SELECT column_name FROM information_schema.columns WHERE table_name = 'things' ORDER BY 1"
        return [row["column_name"] for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def test_post_runs_by_command_only_and_once_for_many_callers(release: Release, plain_url: str) -> None:
    urls = {"auth": plain_url, "gateway": plain_url}
    release.write(FILES)
    await release.start(plain_url)
    assert await columns(plain_url) == ["more", "new", "old"]
    status = SchemaStatus("auth", ("0001_pre_things.sql", "0003_pre_more.sql"), (), ("0002_post_old.sql",))
    assert await schema_migrations.read(urls) == [status, SchemaStatus("gateway", (), (), ())]
    ran = await asyncio.gather(*(schema_migrations.run_post(urls) for _ in range(8)))
    assert sorted(ran) == [*[[]] * 7, ["auth 0002_post_old.sql"]]
    assert await columns(plain_url) == ["more", "new"]
    await release.start(plain_url)
    assert [row.pending_post for row in await schema_migrations.read(urls)] == [(), ()]


async def test_pre_runs_without_a_service_and_once_for_many_callers(release: Release, plain_url: str) -> None:
    urls = {"auth": plain_url, "gateway": plain_url}
    release.write(FILES)
    ran = await asyncio.gather(*(schema_migrations.run_pre(urls) for _ in range(8)))
    assert sorted(ran) == [*[[]] * 7, ["auth 0001_pre_things.sql", "auth 0003_pre_more.sql"]]
    assert await columns(plain_url) == ["more", "new", "old"]
    assert [row.pending_post for row in await schema_migrations.read(urls)] == [("0002_post_old.sql",), ()]
    await release.start(plain_url, migrate=False)
    release.write({"0004_pre_bad.sql": "SELECT 1 / 0;"})
    with pytest.raises(errors.Internal, match="auth failed: division by zero"):
        await schema_migrations.run_pre(urls)
    with pytest.raises(errors.BadSettings, match=r"0004_pre_bad\.sql has not run"):
        await release.start(plain_url, migrate=False)


async def test_post_waits_until_the_new_version_has_started(release: Release, plain_url: str) -> None:
    release.write({"0001_pre_things.sql": FILES["0001_pre_things.sql"]})
    await release.start(plain_url)
    release.write(FILES)
    with pytest.raises(errors.BadSettings, match=r"0003_pre_more\.sql has not run yet"):
        await schema_migrations.run_post({"auth": plain_url})
    assert await columns(plain_url) == ["new", "old"]


async def test_a_failing_post_migration_is_named_and_can_run_again(release: Release, plain_url: str) -> None:
    release.write({**FILES, "0002_post_old.sql": "ALTER TABLE things DROP COLUMN old; SELECT 1 / 0;"})
    await release.start(plain_url)
    with pytest.raises(errors.Internal, match="auth failed: division by zero"):
        await schema_migrations.run_post({"auth": plain_url})
    release.write(FILES)
    assert await schema_migrations.run_post({"auth": plain_url}) == ["auth 0002_post_old.sql"]


async def test_a_server_that_is_away_is_an_error_with_a_hint(release: Release, tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable, match="the database of auth does not answer"):
        await schema_migrations.read({"auth": f"postgresql://auth@/aimesh?host={tmp_path}&port=5432"})


@pytest.mark.parametrize(
    ("version", "than", "is_older"),
    [
        ("0.1.0", "0.2.0", True),
        ("0.2.0", "0.2.0", False),
        ("0.10.0", "0.9.1", False),
        ("0.9.1", "0.10.0", True),
        ("0.3.0rc1", "0.3.0", True),
        ("0.3.0", "0.3.0rc1", False),
        ("unknown", "0.2.0", True),
        ("", "0.2.0", True),
        ("unknown", "unknown", True),
    ],
)
def test_versions_are_compared_as_numbers_and_unknown_ones_are_older(version: str, than: str, is_older: bool) -> None:
    assert schema_migrations.is_older(version, than) is is_older


def node(service: str, version: str, *, alive: bool = True) -> NodeRow:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return NodeRow(NodeId(f"{service}-id"), Role.WORKER, service, "nats", alive, True, "", (), now, version, 0, 0, 0)


def test_living_nodes_of_older_versions_are_named() -> None:
    schema_migrations.refuse_older([node("auth", "0.2.0"), node("gateway", "0.3.0"), node("web", "0.1.0", alive=False)], "0.2.0")
    nodes = [node("auth", "0.2.0"), node("web", "0.1.0"), node("gateway", "")]
    with pytest.raises(errors.BadSettings, match=r"still run: gateway gateway-i \(unknown\), web web-id \(0\.1\.0\)$"):
        schema_migrations.refuse_older(nodes, "0.2.0")


def test_databases_of_the_environment_go_before_those_of_the_home(home: StackHome, tmp_path: Path) -> None:
    homes.ensure_folders(home)
    for service in ("auth", "gateway", "metrics"):
        (home.secrets / f"database_url_{service}").write_text(f"postgresql://{service}\n")
    assert schema_migrations.database_urls(home, {}, tmp_path) == {
        "auth": "postgresql://auth",
        "gateway": "postgresql://gateway",
        "metrics": "postgresql://metrics",
    }
    (tmp_path / "url").write_text("postgresql://one\n")
    environment = {"DATABASE_URL_FILE": "url", "AUTH_DATABASE_URL": "postgresql://two"}
    assert schema_migrations.database_urls(home, environment, tmp_path) == {
        "auth": "postgresql://two",
        "gateway": "postgresql://one",
        "metrics": "postgresql://one",
    }
    apart = {"AUTH_DATABASE_URL": "postgresql://a", "GATEWAY_DATABASE_URL": "postgresql://g"}
    assert schema_migrations.database_urls(home, apart, tmp_path) == {"auth": "postgresql://a", "gateway": "postgresql://g"}


def test_without_a_stack_it_says_so(home: StackHome, tmp_path: Path) -> None:
    with pytest.raises(errors.BadSettings, match="there is no stack in"):
        schema_migrations.database_urls(home, {}, tmp_path)
