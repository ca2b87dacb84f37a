"""Autoscaling of one and two replicas of metrics, with real PostgreSQL and real hooks."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from features.autoscaling import contract as api
from features.autoscaling.metrics import store
from features.autoscaling.rules.hook_plan import HookRequest
from services.metrics import leader_state
from services.metrics.leader_state import Database
from shared import errors
from shared.node.lifecycle import background
from shared.types import NodeId, Role
from tests.features.autoscaling.metrics.fake_mesh import GATEWAY, FakeNode, ScalingReplica, announcement, module, worker
from tests.services.metrics.replicas import CALL, ONE, TWO, Mesh, Replicas
from tests.testnet import until

POOLS = """\
pools:
  - name: l4
    models: [m]
    min: 0
    max: 5
    start_seconds: 100
    idle_seconds: 60
    price_per_hour: 0.5
    hook: {{exec: [{hook}]}}
"""


class Hook:
    """A program that records its calls, and then runs the command given to ``then``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "hook.sh"
        self.file = folder / "pools.yaml"
        self.then("exit 0")
        self.file.write_text(POOLS.format(hook=self.path), encoding="utf-8")

    def then(self, command: str) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(f'#!/bin/sh\ncat > "{self._folder}/$$.part"\nmv "{self._folder}/$$.part" "{self._folder}/$$.call"\n{command}\n')
        new.chmod(0o700)
        new.rename(self.path)

    @property
    def calls(self) -> list[HookRequest]:
        files = sorted(self._folder.glob("*.call"), key=lambda path: path.stat().st_mtime_ns)
        return [msgspec.json.decode(path.read_bytes(), type=HookRequest) for path in files]


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    return Hook(tmp_path)


Start = Callable[..., "asyncio.Future[ScalingReplica]"]


@pytest.fixture
async def start(mesh: Mesh, database: Database, hook: Hook) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def starting(node: NodeId = ONE, own: FakeNode | None = None) -> ScalingReplica:
            replica = ScalingReplica(mesh, database, node, hook.file, own)
            replica.session = await stack.enter_async_context(database.leadership("alerts"))
            replica.scaling._hooks = await stack.enter_async_context(background())
            await replica.round()
            return replica

        yield starting  # type: ignore[misc]


async def ended(replica: ScalingReplica) -> None:
    """Wait until the replica's hooks have ended."""
    await until(lambda: not replica.scaling._calling)


async def entries(replica: ScalingReplica) -> tuple[api.ScaleCallEntry, ...]:
    return (await replica.scaling.get_scaling(api.GetScaling(calls=10), CALL)).calls


async def test_from_zero_and_to_zero(start: Start, hook: Hook) -> None:
    replica = await start()
    replica.node.set_queue(1)
    await replica.step()
    await ended(replica)
    assert [(call.current, call.wanted, call.drain) for call in hook.calls] == [(0, 1, ())]
    replica.node.set_workers(worker("UA", ready=False))
    await replica.step()
    assert 'ai_platform_pool_replicas{pool="l4",state="starting"} 1.0' in replica.shown()
    replica.node.set_workers(worker("UA", running=1))
    replica.node.set_queue(0)
    await replica.step()
    found = replica.scaling.pool("l4")
    assert (found.ready, found.wanted, found.cost_per_hour, found.fresh, found.hook) == (1, 1, 0.5, True, "exec")
    replica.node.set_workers(worker("UA"))
    began_at = replica.mesh.now
    while len(hook.calls) == 1:
        await replica.step()
        await ended(replica)
    assert replica.mesh.now - began_at >= 60, "it was idle"
    replica.node.set_workers()
    await replica.step(times=25)
    await ended(replica)
    assert [(call.current, call.wanted, call.drain) for call in hook.calls[1:]] == [(1, 0, ("UA",))]
    assert [(call.wanted, call.state) for call in await entries(replica)] == [(0, "done"), (1, "done")]


async def test_leader_that_dies_in_a_hook_has_called_for_its_wish(start: Start, hook: Hook, replicas: Replicas) -> None:
    first = await start()
    second = await start(TWO)
    for replica in (first, second):
        replica.node.set_queue(1)
    hook.then("sleep 600")
    await first.step()
    await second.step(0)
    await until(lambda: len(hook.calls) == 1)
    assert not second.leader.leads
    assert second.scaling.pool("l4").wanted == 1, "it shows what the leader decided"
    await replicas.cut(first)
    with pytest.raises(errors.Unavailable, match="PostgreSQL"):
        await first.step()
    for _ in range(12):
        await second.step()
    assert second.leader.leads
    assert len(hook.calls) == 1
    assert [entry.state for entry in await entries(second)] == [api.ScaleCallState.RUNNING]
    # The machine never came, so scaling gives up on it. After that, the decision is a new one.
    hook.then("exit 0")
    await second.step(times=40)
    await ended(second)
    assert len({call.key for call in hook.calls}) == len(hook.calls)
    assert 2 <= len(hook.calls) <= 4


async def test_replica_that_lost_the_lead_calls_nothing(start: Start, hook: Hook, replicas: Replicas) -> None:
    first = await start()
    await replicas.cut(first)
    first.node.set_queue(1)
    with pytest.raises(errors.Unavailable, match="PostgreSQL"):
        await first.step()
    assert hook.calls == []


async def test_failing_hook_is_called_again_with_its_key(start: Start, hook: Hook) -> None:
    replica = await start()
    replica.node.set_queue(1)
    hook.then("echo 'no quota' >&2; exit 1")
    for seconds in (15, 10, 15):
        await replica.step(seconds)
        await ended(replica)
    assert len(hook.calls) == 3
    await replica.step(2)
    assert 'ai_platform_scale_hook_failures{pool="l4"} 3.0' in replica.shown()
    assert len({call.key for call in hook.calls}) == 1
    (entry,) = await entries(replica)
    assert (entry.state, entry.attempts, entry.problem) == (api.ScaleCallState.FAILED, 3, "ended with 1: no quota")
    hook.then("exit 0")
    await replica.step(60)
    await ended(replica)
    await replica.step(2)
    assert len(hook.calls) == 4
    assert 'ai_platform_scale_hook_failures{pool="l4"} 0.0' in replica.shown()


async def test_hook_that_hangs_is_killed_and_counts_as_failed(start: Start, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.autoscaling.metrics.hooks.HOOK_SECONDS", 0.2)
    monkeypatch.setattr("features.autoscaling.metrics.hooks.run_program.__defaults__", (0.2,))
    replica = await start()
    replica.node.set_queue(1)
    hook.then("sleep 600")
    await replica.step()
    await ended(replica)
    (entry,) = await entries(replica)
    assert (entry.state, entry.problem) == (api.ScaleCallState.FAILED, "killed after 0.2 s")


async def test_hook_without_effect_buys_no_second_machine(start: Start, hook: Hook) -> None:
    replica = await start()
    replica.node.set_queue(1)
    # Twice the 100 s that the machine has to start.
    await replica.step(times=13)
    await ended(replica)
    assert len(hook.calls) == 1
    await replica.step(times=3)
    await ended(replica)
    assert replica.scaling.pool("l4").given_up
    assert [call.wanted for call in hook.calls] == [1, 0], "and stops paying for it"
    await replica.step(5)
    told = replica.node.given_up
    assert told, "so that gateways refuse what waits for it"
    assert {one.pool for one in told} == {"l4"}
    assert "machines did not become ready within 200 s" in told[0].reason
    assert 0 < told[-1].seconds <= 200
    replica.node.set_workers(worker("UA"))
    await replica.step(times=2)
    told.clear()
    await replica.step()
    assert told == []


async def test_last_worker_stays_while_a_lost_gateway_is_not_settled(start: Start, hook: Hook) -> None:
    replica = await start()
    replica.node.set_workers(worker("UA"))
    lost, stopped = NodeId("ULOST"), NodeId("USTOPPED")
    replica.node.set_queue(0, to=lost)
    await replica.step()
    replica.node.directory.mark_gone(lost, "silent for 6 s")
    await replica.step(times=20)
    await ended(replica)
    assert replica.scaling.pool("l4").wanted == 1
    assert hook.calls == []
    # The other gateways have settled the lost one, and another gateway shut down cleanly.
    entry = replica.node.directory._entries[lost]
    replica.node.directory._entries[lost] = replace(entry, since=entry.since - timedelta(seconds=150))
    replica.node.directory.apply_announcement(announcement(Role.GATEWAY, stopped, draining=True), "nats")
    replica.node.directory.mark_gone(stopped, "stopped")
    await replica.step(times=20)
    await ended(replica)
    assert replica.scaling.pool("l4").wanted == 0


async def test_without_fresh_data_nothing_changes(start: Start, hook: Hook) -> None:
    replica = await start()
    replica.node.set_workers(worker("UA"), worker("UB"))
    await replica.step()
    replica.node.set_queue(50)
    other = NodeId("UOTHER")
    replica.node.set_queue(0, to=other)
    replica.node.gateways[other] = errors.DeadlineExceeded("silent")
    before = replica.scaling.pool("l4").wanted
    await replica.step(times=10)
    await ended(replica)
    found = replica.scaling.pool("l4")
    assert (found.wanted, found.fresh) == (before, False)
    calls = len(hook.calls)
    assert 'ai_platform_scaling_age_seconds{pool="l4"} 150.0' in replica.shown()
    replica.node.gateways[other] = replica.node.gateways[GATEWAY]
    await replica.step()
    await ended(replica)
    assert replica.scaling.pool("l4").wanted > before
    assert len(hook.calls) == calls + 1


async def test_without_fresh_data_a_failed_hook_is_not_called_again(start: Start, hook: Hook) -> None:
    replica = await start()
    replica.node.set_queue(1)
    hook.then("exit 1")
    await replica.step()
    await ended(replica)
    replica.node.gateways[GATEWAY] = errors.DeadlineExceeded("silent")
    await replica.step(times=5)
    await ended(replica)
    # The data was fresh for the first 30 s.
    assert 1 <= len(hook.calls) <= 3
    calls = len(hook.calls)
    await replica.step(times=20)
    await ended(replica)
    assert len(hook.calls) == calls


async def test_restarted_metrics_continues_with_what_it_knew(start: Start, hook: Hook, replicas: Replicas) -> None:
    first = await start()
    first.node.set_queue(1)
    await first.step()
    await ended(first)
    await replicas.cut(first)
    second = await start()
    assert second.leader.leads
    assert second.scaling.pool("l4").wanted == 1
    second.node.set_queue(1)
    await second.step(times=3)
    assert len(hook.calls) == 1


async def test_bad_file_is_refused_at_the_start_and_ignored_later(start: Start, hook: Hook, mesh: Mesh) -> None:
    replica = await start()
    good = hook.file.read_text()
    bad = good.replace("max: 5", "max: 5\n    colour: red")
    hook.file.write_text(bad)
    await replica.step()
    assert replica.scaling.pools[0].max == 5
    assert "line 6: Object contains unknown field `colour`" in replica.scaling.checks()[0].detail
    assert (await replica.scaling.get_scaling(api.GetScaling(), CALL)).problem == replica.scaling.checks()[0].detail
    assert "ai_platform_pools_file_bad 1.0" in replica.node.metrics.render()
    with pytest.raises(errors.BadSettings, match="line 6"):
        module(FakeNode(), mesh, hook.file)
    hook.file.write_text(good.replace("max: 5", "max: 7"))
    await replica.step()
    assert replica.scaling.pools[0].max == 7
    assert replica.scaling.checks()[0].ok
    assert "ai_platform_pools_file_bad 0.0" in replica.node.metrics.render()


async def test_hooks_need_what_makes_them_safe(hook: Hook, mesh: Mesh) -> None:
    with pytest.raises(errors.BadSettings, match="DATABASE_URL"):
        module(FakeNode(), mesh, hook.file, database_url=None)
    hook.file.write_text(POOLS.replace("{{exec: [{hook}]}}", "{webhook: 'https://example.org'}"))
    with pytest.raises(errors.BadSettings, match="SCALE_WEBHOOK_SECRET"):
        module(FakeNode(), mesh, hook.file)


async def test_advice_alone_works_without_a_database(hook: Hook, mesh: Mesh) -> None:
    hook.file.write_text(POOLS.replace("    hook: {{exec: [{hook}]}}\n", ""))
    node = FakeNode()
    node.set_queue(1)
    scaling = module(node, mesh, hook.file, database_url=None)
    await scaling.look()
    await scaling.round(None, None, leads=True)
    assert scaling.pool("l4").wanted == 1
    assert (await scaling.get_scaling(api.GetScaling(calls=5), CALL)).calls == ()


async def test_lost_lead_ends_the_export(start: Start, replicas: Replicas) -> None:
    first, second = await start(), await start(TWO)
    await first.step()
    assert first.shown()
    assert second.shown() == []
    await replicas.cut(first)
    with pytest.raises(errors.Unavailable, match="PostgreSQL"):
        await first.round()
    await second.step()
    await replicas.reconnect(first)
    assert first.shown() == []
    assert second.shown()


async def test_decisions_of_another_version_are_no_error(start: Start) -> None:
    first = await start()
    assert first.session is not None
    await leader_state.write(first.session, store.STATE, b'{"l4": {"state": {"wanted": "many"}}}', first.mesh.now)
    second = await start(TWO)
    await second.round()
    assert second.scaling.pool("l4").as_of is None
