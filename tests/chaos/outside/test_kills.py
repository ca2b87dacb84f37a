"""kill -9 and SIGSTOP of everything between the stack and a machine outside, under load: detected, bypassed, used again."""

import os
import signal
import time

from shared.node.client_node import ClientNode
from tests import outside
from tests.chaos import judging, load
from tests.chaos.load import History
from tests.chaos.oracle import CONNECTION_LOST, Door, Fault
from tests.chaos.outside.conftest import Lent
from tests.outside import Machine
from tests.people import Person
from tests.stacks import RunningStack, until

#: RELIABILITY.md F12: by then every observer must notice.
DETECTED_SECONDS = 3.5
#: Time that the issue allows from the return of a process or network until it is used again.
USED_SECONDS = 5.0
#: The supervisor's first pause, plus the start of a process on a busy machine.
RESTARTED_SECONDS = 10.0
#: F15, counted from the return of the DHT.
COLD_START_SECONDS = 10.0

EVERY_DOOR = frozenset(Door)
MESH = frozenset({"link_lost", "not_reachable"})


def figures(what: str, history: History, fault: Fault) -> None:
    """Print the figures for `pytest -rP`."""
    last = history.last_failure() - fault.began
    failing = f"requests that began until {last:.2f} s failed" if last > -60 else "nothing failed"
    print(f"CHAOS outside, {what}: {failing}; over after {fault.over - fault.began:.2f} s: {history.outcomes()}")


async def test_a_workers_sidecar(stack: RunningStack, ann: Person, lent: list[Lent], caller: ClientNode) -> None:
    """The other worker continues, and this worker is used again as soon as its Hyperswarm is back."""
    one = lent[0]
    async with load.running(stack, ann, caller) as history:
        await history.until_each_door_succeeds(5)
        began = time.monotonic()
        old = one.worker.sidecar()
        os.kill(old, signal.SIGKILL)
        await until(lambda: _is_another(one.worker.process.pid, old), what="another sidecar")
        await until(lambda: one.is_used(stack), seconds=USED_SECONDS, what="it is used again")
        used = time.monotonic()
        await history.until_each_door_succeeds(5, since=used)
    fault = Fault(began=began, over=began + DETECTED_SECONDS, doors=EVERY_DOOR, codes=frozenset({"link_lost"}))
    figures(f"a worker's sidecar (used after {used - began:.2f} s)", history, fault)
    await judging.judge(stack, ann, history, fault)


async def test_the_gateways_sidecar(stack: RunningStack, ann: Person, lent: list[Lent], caller: ClientNode) -> None:
    gateway = (await stack.pids())["gateway"]
    assert gateway is not None
    async with load.running(stack, ann, caller) as history:
        await history.until_each_door_succeeds(5)
        began = time.monotonic()
        os.kill(outside.sidecar_of(gateway), signal.SIGKILL)
        await history.until_each_door_succeeds(5, since=began + USED_SECONDS)
    assert (await stack.pids())["gateway"] == gateway
    fault = Fault(began=began, over=began + USED_SECONDS, doors=EVERY_DOOR, codes=MESH)
    figures("the gateway's sidecar", history, fault)
    await judging.judge(stack, ann, history, fault)


async def test_the_gateway(stack: RunningStack, ann: Person, lent: list[Lent], caller: ClientNode, cafe: Machine) -> None:
    async with load.running(stack, ann, caller) as history:
        await history.until_each_door_succeeds(5)
        began = time.monotonic()
        old = await stack.kill("gateway")
        row = await stack.restarted("gateway", old, seconds=RESTARTED_SECONDS)
        back = time.monotonic()
        found = await cafe.aicli("models")
        cold = time.monotonic() - back
        await history.until_each_door_succeeds(5, since=back + USED_SECONDS)
    assert row.ready
    assert (found.status, found.err) == (0, "")
    assert cold < USED_SECONDS, "a client that has just come finds it, too"
    codes = MESH | {CONNECTION_LOST, "unavailable"}
    fault = Fault(began=began, over=back + USED_SECONDS, doors=EVERY_DOOR, codes=codes)
    figures(f"the gateway (ready after {back - began:.2f} s, a cold client answered {cold:.2f} s later)", history, fault)
    await judging.judge(stack, ann, history, fault)


async def test_a_worker_that_vanishes_without_a_word_and_comes_back(
    stack: RunningStack, ann: Person, lent: list[Lent], caller: ClientNode
) -> None:
    one = lent[0]
    async with load.running(stack, ann, caller) as history:
        await history.until_each_door_succeeds(5)
        began = time.monotonic()
        one.worker.vanish()
        await until(lambda: one.is_left_out(stack), seconds=DETECTED_SECONDS, what="it is left out")
        gone = time.monotonic()
        one.start()
        await until(lambda: one.is_used(stack), seconds=USED_SECONDS, what="it is used again")
        used = time.monotonic()
        await history.until_each_door_succeeds(5, since=used)
    fault = Fault(began=began, over=began + DETECTED_SECONDS, doors=EVERY_DOOR, codes=frozenset({"link_lost"}))
    figures(f"a worker that vanishes (gone after {gone - began:.2f} s, used {used - gone:.2f} s after its start)", history, fault)
    await judging.judge(stack, ann, history, fault)


async def test_a_worker_that_hangs_while_its_sidecar_goes_on(
    stack: RunningStack, ann: Person, lent: list[Lent], caller: ClientNode
) -> None:
    """Hyperswarm's own keep-alive needs no Python: only the mesh's PING detects the hang."""
    one = lent[0]
    async with load.running(stack, ann, caller) as history:
        await history.until_each_door_succeeds(5)
        began = time.monotonic()
        one.worker.process.send_signal(signal.SIGSTOP)
        try:
            await until(lambda: one.is_left_out(stack), seconds=DETECTED_SECONDS, what="it is left out")
            gone = time.monotonic()
        finally:
            one.worker.process.send_signal(signal.SIGCONT)
        await until(lambda: one.is_used(stack), seconds=USED_SECONDS, what="it is used again")
        used = time.monotonic()
        await history.until_each_door_succeeds(5, since=used)
    fault = Fault(began=began, over=began + DETECTED_SECONDS, doors=EVERY_DOOR, codes=frozenset({"link_lost"}))
    figures(f"a worker that hangs (gone after {gone - began:.2f} s, used {used - gone:.2f} s after it woke)", history, fault)
    await judging.judge(stack, ann, history, fault)


async def test_the_dht(stack: RunningStack, ann: Person, lent: list[Lent], caller: ClientNode, cafe: Machine) -> None:
    """Connected nodes notice nothing. A new client can connect soon after the DHT is back, although the DHT has forgotten all nodes."""
    async with load.running(stack, ann, caller) as history:
        await history.until_each_door_succeeds(5)
        began = time.monotonic()
        old = await stack.kill("dht")
        await stack.restarted("dht", old, seconds=RESTARTED_SECONDS)
        back = time.monotonic()
        found = await cafe.aicli("models")
        cold = time.monotonic() - back
        await history.until_each_door_succeeds(5, since=back)
    print(f"CHAOS outside, the DHT (back after {back - began:.2f} s): a cold client was answered {cold:.2f} s later: {history.outcomes()}")
    assert (found.status, found.err) == (0, "")
    assert cold < COLD_START_SECONDS
    fault = Fault(began=began, over=began, doors=frozenset(), codes=frozenset())
    await judging.judge(stack, ann, history, fault)


async def test_nats(stack: RunningStack, ann: Person, lent: list[Lent], caller: ClientNode) -> None:
    """Machines outside don't need NATS, as long as they, auth and the gateway are connected to each other."""
    async with load.running(stack, ann, caller) as history:
        await history.until_each_door_succeeds(5)
        began = time.monotonic()
        old = await stack.kill("nats")
        await stack.restarted("nats", old, seconds=RESTARTED_SECONDS)
        back = time.monotonic()
        await history.until_each_door_succeeds(5, since=back + USED_SECONDS)
    fault = Fault(began=began, over=back + USED_SECONDS, doors=frozenset({Door.RPC}), codes=MESH)
    figures(f"NATS (back after {back - began:.2f} s)", history, fault)
    await judging.judge(stack, ann, history, fault)


async def _is_another(worker: int, old: int) -> bool:
    pids = [child for child in outside.children_of(worker) if child != old]
    return bool(pids)
