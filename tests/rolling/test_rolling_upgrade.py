"""Old and new nodes on one mesh and one database, as during an upgrade that takes an hour."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from shared.types import Tier
from tests import people, replicas
from tests.integration import asking
from tests.people import Person
from tests.replicas import Replica
from tests.rolling import previous_release
from tests.stacks import HEAD, Release, RunningStack, stack, until

#: Requests to each gateway.
REQUESTS = 20
#: The limits of tiers are not tested here.
SETTINGS = {"AIMESH_ECHO": "1", "DEFAULT_RATE_LIMIT": "100000"}
#: Used in turn; both gateways use the workers of both releases.
WAYS = (asking.chat, asking.chat_stream, asking.inference)


@pytest.fixture(scope="module")
def previous() -> Release:
    return previous_release.find()


@asynccontextmanager
async def beside(running: RunningStack, release: Release, folder: Path) -> AsyncIterator[dict[str, Replica]]:
    """Start one more of every service, of this release, and wait until all are ready."""
    async with AsyncExitStack() as opened:
        started = {
            service: await opened.enter_async_context(replicas.replica(running, service, folder=folder, release=release))
            for service in replicas.ROLES
        }
        for service in started.values():
            await service.ready()
        yield started


async def ask_both(running: RunningStack, second: Replica, ann: Person) -> None:
    """Check that each gateway answers, over every API, and nothing fails."""
    for url in (running.url("gateway"), second.url):
        async with running.http(ann.key.secret) as http:
            http.base_url = url
            for number in range(REQUESTS):
                assert (await WAYS[number % len(WAYS)](http, f"number {number}")).text == f"number {number}"


async def use_news(running: RunningStack, old: str, new: str, *callers: Person) -> None:
    """Check that the new gateway serves what 0.3.0 lacks, whichever auth identifies the caller, and that the old one only lacks it."""
    for caller in callers:
        async with running.http(caller.key.secret) as http:
            made = await http.post(f"{new}/v1/files", files={"file": b"hi"}, data={"purpose": "user_data"})
            assert made.status_code == 200, made.text
            assert (await http.get(f"{new}/v1/files/{made.json()['id']}/content")).content == b"hi"
            models = await http.get(f"{new}/api/models")
            assert "echo" in models.text, models.text
            for path in ("/v1/files", "/api/models"):
                assert (await http.get(old + path)).status_code == 404
    # A document of a kind that the old gateway doesn't know. It restricts nobody, so the old one may go on.
    document = {"kind": "catalog_model", "name": "tiny", "body": '{"source": "hf:a/b", "parameters": 1, "quantizations": ["Q4_0"]}'}
    async with running.http(running.api_key) as http:
        applied = await http.post(f"{new}/rpc/gateway.applyConfig", json={"documents": [document]})
        assert applied.status_code == 200, applied.text


async def count_rows(running: RunningStack, ann: Person, wanted: int) -> None:
    """Check that the usage rows of both gateways are exactly the requests."""

    async def is_all() -> bool:
        async with running.database("gateway") as database:
            found = await database.fetchval("select count(*) from request_logs where user_id = $1 and status = 'success'", ann.id)
        return bool(found == wanted)

    await until(is_all, seconds=30, what=f"{wanted} rows")


async def check_plans(running: RunningStack) -> None:
    """Check that no gateway of either release has written other plans than the first."""
    async with running.database("gateway") as database:
        rows = await database.fetch("select name, count(distinct body) as bodies from config_versions where kind = 'plan' group by name")
    assert {row["name"]: row["bodies"] for row in rows} == dict.fromkeys(Tier, 1)


async def verify_ledger(running: RunningStack) -> None:
    done = await running.aicli("admin", "ledger", "verify")
    assert done.status == 0, done.out + done.err


@pytest.mark.parametrize("begins_with", ["the old release", "the new release"])
async def test_old_and_new_nodes_serve_one_mesh_and_lose_nothing(begins_with: str, previous: Release, tmp_path: Path) -> None:
    """``the old release``: its stack runs, and the new nodes migrate its database meanwhile. Otherwise old nodes start again beside new
    ones, as after a rollback."""
    first, second = (previous, HEAD) if begins_with == "the old release" else (HEAD, previous)
    async with stack(first, **SETTINGS) as running:
        async with people.api_client(running) as api_client:
            ann = await api_client.register("ann")
            async with running.http(ann.key.secret) as http:
                await asking.chat(http, "before")
            async with beside(running, second, tmp_path) as others:
                await ask_both(running, others["gateway"], ann)
                # A key of either auth service works at both gateways.
                ben = await api_client.register("ben")
                gateways = [running.url("gateway"), others["gateway"].url]
                old, new = gateways if first is previous else reversed(gateways)
                await use_news(running, old, new, ann, ben)
                await ask_both(running, others["gateway"], ben)
                await check_plans(running)
                assert replicas.refusals(running, list(others.values())) == []
                assert replicas.contests(running, list(others.values())) == []
        await count_rows(running, ann, 1 + 2 * REQUESTS)
        await count_rows(running, ben, 2 * REQUESTS)
        await verify_ledger(running)


async def test_the_new_release_takes_over_the_data_of_the_old_one(previous: Release, tmp_path: Path) -> None:
    """Stopped, upgraded and started again in the same folder, the stack keeps accounts, keys, usage and prices."""
    async with stack(previous, **SETTINGS) as old:
        async with people.api_client(old) as api_client:
            ann = await api_client.register("ann")
            async with old.http(ann.key.secret) as http:
                await asking.chat(http, "before")
        done = await old.aicli("stack", "down")
        assert done.status == 0, done.err
        new = RunningStack(old.home, old.environment)
        try:
            await new.up()
            async with new.http(ann.key.secret) as http:
                assert (await asking.chat(http, "after")).text == "after"
            await count_rows(new, ann, 2)
            await verify_ledger(new)
        finally:
            await new.aicli("stack", "down")
