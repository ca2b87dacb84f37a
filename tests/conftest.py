"""Real servers for every test that requests them: started once per run, on Unix sockets and free ports, in temporary folders.

``postgres_url`` is a fresh database and ``valkey_url`` an empty server for each test; ``plain_url`` is the same database for a role that
row-level security applies to. ``postgres``, ``valkey`` and ``nats`` are the servers themselves, for tests that kill them.
"""

import functools
import gc
import logging
import os
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import certifi
import pytest

from shared import context
from shared.stores import database, migrations, queries
from shared.stores.server_sessions import ServerPlace
from tests.acceptance import chromium
from tests.acceptance.chromium import Browser, Chromium
from tests.servers import PostgresServer, ValkeyServer, is_migrated, running
from tests.testnet import NatsServer, TestNet, testnet

pytest_plugins = ("tests.parallel", "tests.tiers")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print each failure immediately, because a run takes long and its summary comes at the end."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = str(crash.message if crash is not None else report.longrepr)[:4000]
        print(f"\n{report.when} of {report.nodeid} failed: {why}", file=sys.__stderr__, flush=True)


@pytest.fixture(autouse=True, scope="module")
def _no_pauses() -> None:
    """Collect garbage between modules, not within a test: with thousands of tests loaded, a full collection takes seconds.

    That is longer than the deadlines that tests set for clients and servers.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_log_to_nowhere() -> Iterator[None]:
    """Remove the log handlers that a program inside the test left behind; they write to its closed stdout."""
    yield
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not getattr(getattr(handler, "stream", None), "closed", False)]


@pytest.fixture(autouse=True)
def _no_request_of_another_test() -> None:
    """Reset the current request: if a test without an event loop sets one, all later tests in the process inherit it."""
    context.current.set(None)


@pytest.fixture(autouse=True, scope="session")
def _one_root_certificate(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trust one public authority instead of 140: reading all takes 40 ms, and every HTTP client reads them, even without TLS.

    In `make test` no process reaches a server with a certificate from a public authority.
    """
    if pytestconfig.getoption("--nightly"):
        yield
        return
    first, end, _ = certifi.contents().partition("-----END CERTIFICATE-----")
    file = tmp_path_factory.mktemp("authorities") / "one.pem"
    file.write_text(first + end + "\n", encoding="utf-8")

    def load(found: ssl.SSLContext, _purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH) -> None:
        found.load_verify_locations(os.environ.get("SSL_CERT_FILE", file))

    with pytest.MonkeyPatch.context() as patched:
        for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            patched.delenv(name, raising=False)
        patched.setattr(certifi, "where", lambda: str(file))
        patched.setattr(ssl.SSLContext, "load_default_certs", load)
        yield


@pytest.fixture(autouse=True, scope="session")
def _each_query_file_is_parsed_once() -> Iterator[None]:
    """Parse each query file once, as a service does when it opens its stores. Parsing auth's files takes 20 ms."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(queries, "parse", functools.cache(queries.parse))
        yield


@pytest.fixture(autouse=True, scope="session")
def _new_databases_are_not_migrated_again() -> Iterator[None]:
    """Skip the check of new databases: comparing a copy with the migrations that made it takes 30 ms, and a thousand tests use one."""
    migrate = database._migrate

    async def migrate_if_needed(
        place: ServerPlace, known: list[migrations.Migration], work: Callable[[asyncpg.Connection, str, list[migrations.Migration]], Any]
    ) -> None:
        if work is not migrations.run or not is_migrated(place, known):
            await migrate(place, known, work)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(database, "_migrate", migrate_if_needed)
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with running(PostgresServer) as server:
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    with running(ValkeyServer) as server:
        yield server


@pytest.fixture(scope="session")
def tables_of() -> str | None:
    """The service whose tables a fresh database has. A folder or a module overrides this to get tables."""
    return None


@pytest.fixture
async def postgres_url(postgres: PostgresServer, tables_of: str | None) -> AsyncIterator[str]:
    """A fresh database for the superuser: empty, or with the tables of a service."""
    name = await postgres.new_database(tables_of)
    yield postgres.url(name)
    postgres.discard(name, tables_of)


@pytest.fixture
async def plain_url(postgres: PostgresServer, postgres_url: str, tables_of: str | None) -> AsyncIterator[str]:
    """The same database for a role that owns all its tables but is not a superuser: the case that ``FORCE`` is for."""
    if tables_of is not None:
        yield postgres.owner_url(postgres_url, tables_of)
        return
    async with postgres.plain_role(postgres_url) as url:
        yield url


@pytest.fixture
def valkey_url(valkey: ValkeyServer) -> str:
    """An empty server."""
    import redis

    valkey.ensure_running()
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    return valkey.url


@pytest.fixture(scope="session")
def chromium_process() -> Iterator[Chromium]:
    with chromium.starting() as started:
        yield started


@pytest.fixture
async def chrome(chromium_process: Chromium) -> AsyncIterator[Browser]:
    """The Chromium of this test process. A test's windows have their own cookies and are closed after the test."""
    async with chromium_process.control() as browser:
        yield browser


@pytest.fixture
def nats() -> Iterator[NatsServer]:
    """A server with authorization; ``nats.key(name, role)`` admits another node and returns its key file."""
    with tempfile.TemporaryDirectory(prefix="aimesh-nats-") as folder:
        server = NatsServer(Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture
async def net() -> AsyncIterator[TestNet]:
    async with testnet() as running:
        yield running
