"""A stack that reads reports, request lists and charts from a standby: the primary gets none of these queries."""

import asyncio
import contextlib
import re
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from urllib.parse import quote

import asyncpg
import pytest

from shared import features
from shared.api import business, metrics, usage_report
from shared.stores import queries
from stack import stack_plan
from tests import people, stacks
from tests.integration import asking
from tests.servers import PostgresServer
from tests.stacks import REPOSITORY, RunningStack, until

pytestmark = [pytest.mark.timeout(400), pytest.mark.nightly("long")]
SERVICES = ("gateway", "metrics")


@contextlib.asynccontextmanager
async def with_standby() -> AsyncIterator[tuple[RunningStack, PostgresServer]]:
    async with stacks.stack(INFERENCE_BACKEND="echo", HYPERSWARM="off", BACKUP_DATABASE="managed") as first:
        server = stack_plan.postgres_of(first.place)
        with tempfile.TemporaryDirectory(prefix="aimesh-") as folder:
            standby = PostgresServer(Path(folder), primary=cast("PostgresServer", SimpleNamespace(folder=server.sockets, server=server)))
            await asyncio.to_thread(standby.start)
            urls = {
                f"{service.upper()}_DATABASE_READ_URL": stack_plan.database_url_file(first.place, service)
                .read_text(encoding="utf-8")
                .strip()
                .replace(quote(str(server.sockets), safe=""), quote(folder, safe=""))
                for service in SERVICES
            }
            running = RunningStack(first.home, first.environment | urls)
            try:
                await running.aicli("stack", "down")
                await running.up()
                yield running, standby
            finally:
                await asyncio.to_thread(standby.stop)


async def reads(stack: RunningStack, service: str) -> dict[str, float]:
    """Return how many marked queries each server has answered."""
    async with stack.http(service=service) as http:
        text = (await http.get("/metrics")).text
    found = re.findall(r'^ai_platform_database_reads_total\{[^}]*server="(\w+)"[^}]*\} (\S+)', text, re.MULTILINE)
    return {server: float(number) for server, number in found}


async def test_the_primary_sees_no_query_of_a_report() -> None:
    async with with_standby() as (stack, standby), people.api_client(stack) as api:
        for service in SERVICES:
            await until(lambda service=service: _is_used(stack, service), seconds=30, what=f"{service} reads from the standby")
        ann = await api.register("ann")
        for number in range(3):
            await asking.rpc(api.mesh, ann.key.secret, f"word {number}")
        server = stack_plan.postgres_of(stack.place)
        admin = await asyncpg.connect(server.url(server.admin, server.admin_password.read_text(encoding="ascii").strip()))
        await admin.execute("ALTER SYSTEM SET log_statement = 'all'")
        await admin.execute("SELECT pg_reload_conf()")
        await until(lambda: _is_logged(stack, admin), what="the primary logs statements")
        begins = len(stack.log("postgres"))
        until_, since = datetime.now(UTC) + timedelta(hours=1), datetime.now(UTC) - timedelta(hours=2)
        calls = [
            (usage_report.list_requests, usage_report.ListRequests(limit=10), ann.access_token),
            (usage_report.get_usage_report, usage_report.GetUsageReport(since, until_, usage_report.Bucket.HOUR), ann.access_token),
            (usage_report.get_usage_report, usage_report.GetUsageReport(since, until_, everybody=True), stack.api_key),
            (business.get_business_report, business.GetBusinessReport(since.date(), until_.date() + timedelta(days=1)), stack.api_key),
            (metrics.get_history, metrics.GetHistory(("ai_platform_requests_total",), since, until_), stack.api_key),
        ]
        answers = [await api.mesh.rpc.call(method, request, credential=credential) for method, request, credential in calls]
        assert len(answers[0].requests) == 3, "who has just asked sees it"
        assert answers[2].total.requests >= 3
        # Each service asks the primary for it every second.
        await until(lambda: _says_after(stack, begins, "pg_current_wal_lsn"), what="statements are logged")
        seen = " ".join(stack.log("postgres")[begins:].split())
        packages = [queries.load_package(REPOSITORY / "services" / service, *features.files(f"{service}.sql")) for service in SERVICES]
        marked = [query for package in packages for query in package.values() if query.on_replica]
        assert [query.name for query in marked if " ".join(query.text.split()) in seen] == []
        found = await reads(stack, "gateway")
        assert found.pop("replica") >= 4
        assert {name: number for name, number in found.items() if name not in ("primary_unknown", "primary_away")} == {}

        await asyncio.to_thread(standby.stop)
        rows = await api.mesh.rpc.call(usage_report.list_requests, usage_report.ListRequests(limit=10), credential=ann.access_token)
        assert len(rows.requests) == 3
        async with stack.http() as http:
            await until(lambda: _says(http, "postgresql replica"), seconds=30, what="/dependencies shows the replica")
            assert (await http.get("/readyz")).status_code == 200
        await admin.close()


async def _says_after(stack: RunningStack, begins: int, text: str) -> bool:
    return text in stack.log("postgres")[begins:]


async def _is_used(stack: RunningStack, service: str) -> bool:
    return '"the replica answers"' in stack.log(service)


async def _is_logged(stack: RunningStack, admin: asyncpg.Connection) -> bool:
    await admin.execute("SELECT 'are they logged?'")
    return "are they logged?" in stack.log("postgres")


async def _says(http: object, name: str) -> bool:
    found = (await http.get("/dependencies")).json()["dependencies"]  # type: ignore[attr-defined]
    return any(one["name"] == name and one["state"] == "failing" for one in found)
