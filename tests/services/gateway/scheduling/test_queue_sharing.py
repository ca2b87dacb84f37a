"""Fairness over several gateways, in virtual time: 8 slots, and tenants that use different gateways."""

import asyncio
import random
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import redis.asyncio as redis

from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.fair_queue import QueueSettings
from services.gateway.scheduling.queue_sharing import LOG, QueueSharing
from services.gateway.scheduling.worker_claims import Claim
from shared.protocol.directory import WorkerLoad
from shared.stores.cache import Cache
from shared.telemetry import logs
from tests import tiers
from tests.services.gateway.fakes import FakeDirectory
from tests.services.gateway.scheduling import mesh_in_virtual_time
from tests.services.gateway.scheduling.mesh_in_virtual_time import Mesh, Served, run
from tests.shared.timing.virtual_time import pass_time
from tests.stacks import until

LIGHT = (8, 9)
#: Duration of the initial rush: at the start, every gateway sees the same free slots.
BEGINNING_SECONDS = 5.0
#: Number of workers -> slots of each.
LAYOUTS = {1: 8, 2: 4, 8: 1}


def workers(mesh: Mesh, count: int, slots: int) -> None:
    for _ in range(count):
        mesh.worker(slots)


def crowd(gateways: int, count: int, slots: int) -> dict[int, Served]:
    """Return what each tenant gets in 40 s: three always have a request waiting, two send one now and then, each at another gateway."""
    found: dict[int, Served] = {}

    async def script(mesh: Mesh) -> None:
        workers(mesh, count, slots)
        await pass_time(0.1)
        for number, tokens in enumerate((50, 50, 25)):
            mesh.flood(number % gateways, number, tokens)
        await pass_time(BEGINNING_SECONDS)
        for number, light in enumerate(LIGHT, 1):
            mesh.trickle(number % gateways, light)
        for served in mesh.served.values():
            served.tokens = 0
        await pass_time(40)
        found.update(mesh.served)

    run(script, gateways)
    return found


def light_of(served: dict[int, Served]) -> Served:
    both = [served[number] for number in LIGHT]
    return Served([seconds for each in both for seconds in each.waits], [count for each in both for count in each.passed_by])


@pytest.mark.parametrize("count", tiers.by_day(LAYOUTS, 2, group="long"))
def test_it_makes_no_difference_which_gateway_a_tenant_uses(count: int) -> None:
    alone = light_of(crowd(1, count, LAYOUTS[count]))
    for gateways in (2, 3):
        served = crowd(gateways, count, LAYOUTS[count])
        shares = [served[number].tokens for number in range(3)]
        assert max(shares) <= 1.2 * min(shares)
        light = light_of(served)
        assert statistics.mean(light.passed_by) <= 1.5 * statistics.mean(alone.passed_by) + 1
        assert statistics.median(light.waits) <= 1.5 * statistics.median(alone.waits)
        assert max(light.waits) <= 3 * max(alone.waits)


def test_a_tenant_that_uses_all_gateways_gets_no_more_than_one_that_uses_one() -> None:
    async def script(mesh: Mesh) -> None:
        workers(mesh, 2, 4)
        await pass_time(0.1)
        for gateway in range(3):
            mesh.flood(gateway, 1)
        mesh.flood(0, 2)
        await pass_time(30)
        assert mesh.served[1].tokens <= 1.2 * mesh.served[2].tokens

    run(script, 3)


@pytest.mark.parametrize("gateways", [1, 2])
def test_a_founder_with_three_organizations_gets_one_share(gateways: int) -> None:
    async def script(mesh: Mesh) -> None:
        workers(mesh, 2, 4)
        mesh.founder_of.update(dict.fromkeys((2, 3, 4), 1))
        await pass_time(0.1)
        mesh.flood(0, 5)
        for number in (1, 2, 3, 4):
            mesh.flood(number % gateways, number)
        await pass_time(BEGINNING_SECONDS)
        before = {number: served.tokens for number, served in mesh.served.items()}
        await pass_time(40)
        gained = {number: served.tokens - before[number] for number, served in mesh.served.items()}
        other = gained.pop(5)
        assert other / 1.2 <= sum(gained.values()) <= 1.2 * other

    run(script, gateways)


def test_a_founder_with_three_organizations_has_one_bound_over_all_gateways() -> None:
    async def script(mesh: Mesh) -> None:
        workers(mesh, 1, 8)
        mesh.founder_of.update(dict.fromkeys((2, 3, 4), 1))
        await pass_time(0.1)
        mesh.flood(0, 5)
        for number in (1, 2, 3, 4):
            for _ in range(10):
                mesh.start(number % 2, mesh.ask(number % 2, number, 50))
            await pass_time(0.2)
        local = [gateway.dispatch.model_queue("m").queue.local for gateway in mesh.gateways]
        founder = mesh_in_virtual_time.tenant(1)
        assert sum(count for counts in local for (tenant, _, _), count in counts.items() if tenant == founder) == 20
        assert sum(mesh.served[number].refused for number in (1, 2, 3, 4)) >= 40 - 20 - 9

    run(script, 2, QueueSettings(queue_seconds=1e6, queue_per_tenant=20))


def test_queue_bounds_apply_to_the_whole_mesh() -> None:
    async def script(mesh: Mesh) -> None:
        workers(mesh, 1, 8)
        await pass_time(0.1)
        mesh.flood(0, 1, at_once=12)
        await pass_time(2)
        for number in range(60):
            for gateway in range(3):
                mesh.start(gateway, mesh.ask(gateway, 2, 50))
                mesh.start(gateway, mesh.ask(gateway, 10 + number % 30, 50))
            await asyncio.sleep(0.005)
        waiting = Counter[bool]()
        for gateway in mesh.gateways:
            for (tenant, _, _), count in gateway.dispatch.model_queue("m").queue.local.items():
                waiting[tenant.int == 2] += count
        # Requests that arrive within one report interval may exceed the limit.
        assert 20 - 2 <= waiting[True] <= 20 + 2 * 2
        assert 80 - 4 <= waiting.total() <= 80 + 2 * 2
        assert all(abs(gateway.dispatch.waiting_anywhere - waiting.total()) <= 4 for gateway in mesh.gateways)
        assert mesh.served[2].refused >= 180 - 8 - 24

    run(script, 3, QueueSettings(queue_seconds=1e6, queue_most=80, queue_per_tenant=20))


def test_a_killed_gateway_holds_no_turns() -> None:
    async def script(mesh: Mesh) -> None:
        workers(mesh, 2, 4)
        await pass_time(0.1)
        for gateway in range(3):
            mesh.flood(gateway, gateway)
        await pass_time(BEGINNING_SECONDS)
        mesh.kill(2)
        idle_before = sum(worker.idle_slot_seconds() for worker in mesh.workers.values())
        await pass_time(10)
        # Each slot is idle at most once, for the time until an offer is accepted.
        assert sum(worker.idle_slot_seconds() for worker in mesh.workers.values()) - idle_before <= 8 * 1.0
        for gateway in mesh.gateways[:2]:
            assert gateway.dispatch.waiting_anywhere == 24 - sum(each.dispatch.in_flight for each in mesh.gateways[:2])

    run(script, 3)


def test_without_valkey_each_gateway_schedules_alone_and_no_slot_is_idle() -> None:
    async def script(mesh: Mesh) -> None:
        workers(mesh, 2, 4)
        await pass_time(0.1)
        for gateway in range(2):
            mesh.flood(gateway, gateway)
        await pass_time(BEGINNING_SECONDS)
        mesh.log.is_away = True
        before = sum(worker.idle_slot_seconds() for worker in mesh.workers.values())
        await pass_time(10)
        assert sum(worker.idle_slot_seconds() for worker in mesh.workers.values()) - before <= 8 * 1.0
        assert all(gateway.dispatch.waiting_anywhere == gateway.dispatch.waiting for gateway in mesh.gateways)
        mesh.log.is_away = False
        await pass_time(BEGINNING_SECONDS)
        waiting = sum(gateway.dispatch.waiting for gateway in mesh.gateways)
        assert all(abs(gateway.dispatch.waiting_anywhere - waiting) <= 2 for gateway in mesh.gateways)

    run(script, 2)


def test_a_new_gateway_learns_the_counters() -> None:
    async def script(mesh: Mesh) -> None:
        workers(mesh, 1, 8)
        await pass_time(0.1)
        mesh.flood(0, 1)
        mesh.flood(0, 2)
        await pass_time(20)
        mesh.flood(1, 2, at_once=4)
        mesh.flood(1, 1, at_once=4)
        await pass_time(3)
        first, second = (gateway.dispatch.model_queue("m").queue.counters() for gateway in mesh.gateways)
        assert first.keys() == second.keys()
        # Some requests, of 100 tokens each, are known to only one gateway.
        assert all(abs(first[tenant] - second[tenant]) <= 500 for tenant in first)
        assert min(first.values()) > 5_000

    run(script, 2)


def test_a_gateway_of_an_older_version_works_beside_the_others() -> None:
    async def script(mesh: Mesh) -> None:
        workers(mesh, 2, 4)
        await pass_time(0.1)
        for gateway in range(3):
            mesh.flood(gateway, gateway)
        await pass_time(30)
        assert all(mesh.served[number].tokens for number in range(3))
        assert mesh.idle_share() <= 0.02

    run(script, 3, alone={2})


def test_a_distant_worker_is_as_busy_as_with_one_gateway() -> None:
    idle: dict[int, float] = {}

    async def script(mesh: Mesh) -> None:
        mesh.worker(8, distance_seconds=0.1)
        await pass_time(0.5)
        for number in range(3):
            mesh.flood(number % len(mesh.gateways), number)
        await pass_time(30)
        idle[len(mesh.gateways)] = mesh.idle_share()

    for gateways in (1, 3):
        run(script, gateways)
    assert idle[3] <= idle[1] + 0.02


def test_gateways_without_changes_send_nothing() -> None:
    async def script(mesh: Mesh) -> None:
        workers(mesh, 1, 8)
        await pass_time(0.1)
        for number in range(20):
            mesh.start(number % 2, mesh.ask(number % 2, number % 3, 50))
        await pass_time(5)
        entries = len(mesh.log.entries)
        assert entries
        assert len(mesh.turns) == 20
        for _ in range(20):
            mesh.start(0, mesh.ask(0, 1, 1))
            await pass_time(0.3)
        assert len(mesh.log.entries) == entries

    run(script, 2)


def test_unreadable_reports_are_skipped() -> None:
    async def script(mesh: Mesh) -> None:
        workers(mesh, 1, 8)
        await pass_time(0.1)
        mesh.flood(0, 1)
        await mesh.log.append("", b"\xc1", most=1)
        await mesh.log.append("", b"\x93\x01\x02\x03", most=1)
        mesh.flood(1, 2)
        await pass_time(1)
        assert mesh.gateways[0].dispatch.waiting_anywhere > mesh.gateways[0].dispatch.waiting

    run(script, 2)


@asynccontextmanager
async def real_gateway(valkey_url: str, number: int) -> AsyncIterator[Dispatch]:
    """A gateway with its own connection to Valkey and its own directory; both know a single worker with one slot."""
    directory = FakeDirectory()
    directory.worker(1, "m", load=WorkerLoad(slots=1))
    dispatch = Dispatch(directory, random.Random(1), QueueSettings(queue_seconds=60), name=f"gateway{number}")
    async with Cache.open(valkey_url) as cache, asyncio.TaskGroup() as tasks:
        sharing = tasks.create_task(QueueSharing(cache, dispatch, f"gateway{number}").run())
        yield dispatch
        sharing.cancel()


async def test_gateways_schedule_alone_while_valkey_refuses_and_share_again_afterwards(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[Mapping[str, object]] = []
    monkeypatch.setattr(logs, "_write", lambda level, event, fields: logged.append(fields))
    async with AsyncExitStack() as opened, redis.Redis.from_url(valkey_url) as client:
        await client.set(LOG, "not a log")
        first, second = [await opened.enter_async_context(real_gateway(valkey_url, number)) for number in (1, 2)]
        tasks = await opened.enter_async_context(asyncio.TaskGroup())

        async def ask(at: Dispatch) -> None:
            async for step in at.find(mesh_in_virtual_time.requirements(1, 10)):
                if isinstance(step, Claim):
                    with step:
                        await asyncio.Event().wait()

        callers = [tasks.create_task(ask(first)) for _ in range(4)]
        await until_all_know(2, first)

        async def both_fail() -> bool:
            return [fields.get("call") for fields in logged].count("append") >= 1 and len(logged) >= 3

        await until(both_fail, seconds=20, what="the first gateway can neither write nor read, and the second cannot read")
        assert second.waiting_anywhere == 0
        await client.delete(LOG)
        await until_all_know(2, first, second)
        assert sorted(fields["call"] for fields in logged) == ["append", "read", "read"]
        for task in callers:
            task.cancel()


async def until_all_know(count: int, *gateways: Dispatch) -> None:
    async def do_all() -> bool:
        return all(gateway.waiting_anywhere == count for gateway in gateways)

    await until(do_all, seconds=20, what=f"all gateways know of {count} that wait")


async def test_over_a_real_valkey_a_freed_slot_goes_to_the_gateway_with_the_next_request(valkey_url: str) -> None:
    async with AsyncExitStack() as opened:
        cache = await opened.enter_async_context(Cache.open(valkey_url))
        await cache.delete(LOG)
        first, second = [await opened.enter_async_context(real_gateway(valkey_url, number)) for number in (1, 2)]
        tasks = await opened.enter_async_context(asyncio.TaskGroup())
        turns: list[int] = []
        ends = {first: asyncio.Semaphore(0), second: asyncio.Semaphore(0)}

        async def ask(at: Dispatch, of: int) -> None:
            async for step in at.find(mesh_in_virtual_time.requirements(of, 10)):
                if isinstance(step, Claim):
                    turns.append(of)
                    with step:
                        await ends[at].acquire()

        for _ in range(6):
            tasks.create_task(ask(first, 1))
        # The worker has two requests: it runs one and holds the other.
        await until_all_know(4, first)
        # The second gateway learns that the worker is full.
        second._directory.worker(1, "m", load=WorkerLoad(1, 1, 1))
        tasks.create_task(ask(second, 2))
        await until_all_know(5, first, second)
        ends[first].release()
        await until_all_know(4, first, second)
        assert turns == [1, 1, 2]
        ends[second].release()
        for _ in range(5):
            ends[first].release()
        await until_all_know(0, first, second)
        assert turns == [1, 1, 2, 1, 1, 1, 1]
