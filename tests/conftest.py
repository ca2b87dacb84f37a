"""Real servers for every test that names them: started once per run, on Unix sockets and free ports, in temporary folders.

``postgres_url`` is a fresh database and ``valkey_url`` an empty server each time; ``plain_url`` is the database as a role that meets
row-level security. ``postgres``, ``valkey`` and ``nats`` are
the servers themselves, for tests that kill them.
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
from tests.testnet import NatsServer

pytest_plugins = ("tests.parallel", "tests.tiers")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once what failed: a run takes long, and its summary comes when all is over."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = str(crash.message if crash is not None else report.longrepr)[:4000]
        print(f"\n{report.when} of {report.nodeid} failed: {why}", file=sys.__stderr__, flush=True)


@pytest.fixture(autouse=True, scope="module")
def _no_pauses() -> None:
    """Sweeps between modules, not within a test: with thousands of tests loaded, a sweep of everything takes seconds.

    A pause of seconds is longer than the deadlines that tests hold clients and servers to.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_log_to_nowhere() -> Iterator[None]:
    """A program that ran inside a test logs to what was its stdout; the tests behind it do not."""
    yield
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not getattr(getattr(handler, "stream", None), "closed", False)]


@pytest.fixture(autouse=True)
def _no_request_of_another_test() -> None:
    """A test without a loop that starts a request starts it for every test behind it in the same process."""
    context.current.set(None)


@pytest.fixture(autouse=True, scope="session")
def _one_root_certificate(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The public authorities are one, and not 140, which take 40 ms to read: each HTTP client reads them, also one that uses no TLS.

    In `make test` no process reaches a server whose certificate they have signed.
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
    """As in a service, which opens its stores once. Parsing those of auth takes 20 ms."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(queries, "parse", functools.cache(queries.parse))
        yield


@pytest.fixture(autouse=True, scope="session")
def _new_databases_are_not_migrated_again() -> Iterator[None]:
    """Comparing a copy with the migrations that made it takes 30 ms, and a thousand tests use one."""
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
    """The service whose tables a fresh database has; a folder or a module that wants some says which."""
    return None


@pytest.fixture
async def postgres_url(postgres: PostgresServer, tables_of: str | None) -> AsyncIterator[str]:
    """A fresh database for the superuser: empty, or with the tables of a service."""
    postgres.ensure_running()
    name = await postgres.new_database(tables_of)
    yield postgres.url(name)
    postgres.discard(name, tables_of)


@pytest.fixture
async def plain_url(postgres: PostgresServer, postgres_url: str, tables_of: str | None) -> AsyncIterator[str]:
    """The same database for a role that is no superuser, but owns all tables in it: what ``FORCE`` is for."""
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
    """The Chromium of this test process; the windows that a test opens have their own cookies and are closed after it."""
    async with chromium_process.control() as browser:
        yield browser


@pytest.fixture
def nats() -> Iterator[NatsServer]:
    """A server with authorization on; ``nats.key(name, role)`` lets one more node in and returns its key file."""
    with tempfile.TemporaryDirectory(prefix="aimesh-nats-") as folder:
        server = NatsServer(Path(folder))
        server.start()
        yield server
        server.kill()
