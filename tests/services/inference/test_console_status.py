"""What the console shows: each fact once, in a sentence, and not too often."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.inference import console_status
from services.inference.console_status import LOAD_EVERY_SECONDS, MEASURE_SECONDS, ConsoleStatus, WorkerFacts
from shared.api import node
from shared.api.inference import ModelState, ModelStatus
from shared.api.node import Reached
from shared.identity import certificates, node_keys
from shared.identity.certificates import Subject
from shared.protocol.directory import Announcement
from shared.types import MeshName, ModelName, NodeId, Role
from tests.services.inference.standins import Node

GATEWAY = NodeId("UGATEWAY" + "A" * 48)
OTHER = NodeId("UOTHERGW" + "A" * 48)


def model(name: str, *, state: ModelState = ModelState.READY, detail: str = "", running: int = 0, queued: int = 0) -> ModelStatus:
    return ModelStatus(ModelName(name), state, detail, "llama", 2048, 4, running, queued)


def reached(node: NodeId = GATEWAY, path: str = "punched", milliseconds: float | None = 12.4) -> Reached:
    return Reached(Role.GATEWAY, node, path, milliseconds)


ALONE = WorkerFacts(mesh=MeshName("home"), is_attached=True, models=(model("echo"),))
THERE = replace(ALONE, gateways=(reached(),))


@pytest.mark.parametrize(
    ("facts", "lines"),
    [
        pytest.param(ALONE, ["looking for the mesh home …", "serving 1 model: echo", "no requests running"], id="looking"),
        pytest.param(
            replace(ALONE, is_attached=False, trouble="Hyperswarm is not running: Node.js was not found", models=()),
            ["looking for the mesh home … (Hyperswarm is not running: Node.js was not found)", "serving no model yet"],
            id="no Hyperswarm",
        ),
        pytest.param(
            replace(ALONE, unreached=((GATEWAY, "no path: symmetric NAT on both sides and no relay configured"),)),
            [
                "looking for the mesh home …",
                "cannot connect to UGATEWAYA…: no path: symmetric NAT on both sides and no relay configured",
                "serving 1 model: echo",
                "no requests running",
            ],
            id="no path",
        ),
        pytest.param(
            replace(THERE, gateways=(reached(path="relayed"), reached(OTHER, "nats", None)), models=(model("a", running=2, queued=3),)),
            [
                "connected to gateway UGATEWAYA… (through a relay, 12 ms)",
                "connected to gateway UOTHERGWA… (over NATS)",
                "serving 1 model: a",
                "2 requests running, 3 waiting",
            ],
            id="two gateways and work",
        ),
        pytest.param(
            replace(THERE, models=(model("a", running=1), model("b"), model("c", state=ModelState.LOADING, detail="loading"))),
            [
                "connected to gateway UGATEWAYA… (punched through the NAT, 12 ms)",
                "c: loading",
                "serving 2 models: a, b",
                "1 request running",
            ],
            id="one of three loads",
        ),
        pytest.param(
            replace(THERE, notices=("LM Studio runs here and isn't shared",)),
            [
                "connected to gateway UGATEWAYA… (punched through the NAT, 12 ms)",
                "serving 1 model: echo",
                "no requests running",
                "LM Studio runs here and isn't shared",
            ],
            id="news for its owner",
        ),
        pytest.param(
            replace(THERE, is_paused=True, is_expired=True),
            [
                "the certificate has expired; requesting a new one …",
                "connected to gateway UGATEWAYA… (punched through the NAT, 12 ms)",
                "serving 1 model: echo",
                "no requests running",
                "paused by its owner: running requests finish, new ones are refused (aicli worker resume)",
            ],
            id="paused, and late with its certificate",
        ),
        pytest.param(
            replace(ALONE, is_revoked=True, is_expired=True, models=()),
            [
                "an administrator has revoked this machine; to join again, use a new ticket (aicli worker --join TICKET)",
                "looking for the mesh home …",
                "serving no model yet",
            ],
            id="revoked",
        ),
        pytest.param(
            replace(THERE, gateways=tuple(reached(NodeId(f"U{number}GATEWAY")) for number in range(8))),
            [
                *(f"connected to gateway U{number}GATEWAY… (punched through the NAT, 12 ms)" for number in range(5)),
                "and to 3 more",
                "serving 1 model: echo",
                "no requests running",
            ],
            id="many gateways",
        ),
    ],
)
def test_worker_description(facts: WorkerFacts, lines: list[str]) -> None:
    assert console_status.describe(facts) == lines


@pytest.mark.parametrize(
    ("before", "now", "lines"),
    [
        pytest.param(ALONE, ALONE, [], id="nothing is new"),
        pytest.param(ALONE, THERE, ["connected to gateway UGATEWAYA… (punched through the NAT, 12 ms)"], id="found"),
        pytest.param(THERE, ALONE, ["lost the mesh; reconnecting …"], id="lost"),
        pytest.param(
            THERE,
            replace(ALONE, why_lost="gateway UGATEWAY closed the link: this node was revoked"),
            ["lost the mesh (gateway UGATEWAY closed the link: this node was revoked); reconnecting …"],
            id="cut off",
        ),
        pytest.param(
            THERE,
            replace(ALONE, is_attached=False, trouble="Hyperswarm has died"),
            ["lost the mesh; reconnecting … (Hyperswarm has died)"],
            id="lost with Hyperswarm",
        ),
        pytest.param(
            THERE,
            replace(THERE, gateways=(reached(path="direct"),)),
            ["gateway UGATEWAYA… is now connected over another path (direct, 12 ms)"],
            id="a better path",
        ),
        pytest.param(THERE, replace(THERE, gateways=(reached(milliseconds=80),)), [], id="a round trip is never the same"),
        pytest.param(
            replace(THERE, gateways=(reached(), reached(OTHER))),
            THERE,
            ["gateway UOTHERGWA… is gone; 1 left"],
            id="one of two is gone",
        ),
        pytest.param(
            ALONE,
            replace(ALONE, unreached=((GATEWAY, "its clock is 11 min ahead of ours"),)),
            ["cannot connect to UGATEWAYA…: its clock is 11 min ahead of ours"],
            id="why it is not reached",
        ),
        pytest.param(
            THERE,
            replace(THERE, models=(model("echo"), model("b"))),
            ["serving 2 models: echo, b"],
            id="a model more",
        ),
        pytest.param(
            THERE,
            replace(THERE, models=(model("echo", state=ModelState.LOADING, detail="the engine was killed"),)),
            ["echo: the engine was killed", "serving no model yet"],
            id="an engine dies",
        ),
        pytest.param(
            THERE,
            replace(THERE, is_paused=True),
            ["paused by its owner: running requests finish, new ones are refused (aicli worker resume)"],
            id="paused",
        ),
        pytest.param(replace(THERE, is_paused=True), THERE, ["resumed: accepting new requests"], id="resumed"),
        pytest.param(
            replace(THERE, is_expired=True),
            THERE,
            [],
            id="a renewed certificate is nothing to talk about",
        ),
    ],
)
def test_reported_changes(before: WorkerFacts, now: WorkerFacts, lines: list[str]) -> None:
    assert console_status.describe_changes(before, now) == lines


class StatusRun:
    """A narrator whose facts the test sets."""

    def __init__(self, status_file: Path | None = None) -> None:
        self.facts = ALONE
        self.lines: list[str] = []
        self.narrator = ConsoleStatus(NodeId("UME"), lambda: self.facts, self.lines.append, status_file)

    async def step(self, now: float) -> list[str]:
        self.lines.clear()
        await self.narrator.step(now)
        return list(self.lines)


async def test_initial_state_is_printed_and_nothing_is_repeated() -> None:
    run = StatusRun()
    assert await run.step(0) == ["looking for the mesh home …", "serving 1 model: echo"]
    assert await run.step(1) == []


async def test_gateway_is_printed_with_its_round_trip_if_known() -> None:
    run = StatusRun()
    run.facts = replace(THERE, gateways=(reached(milliseconds=None), reached(OTHER, milliseconds=None)))
    assert (await run.step(0))[0] == "looking for the mesh home …"
    run.facts = replace(THERE, gateways=(reached(milliseconds=7.6), reached(OTHER, milliseconds=None)))
    assert await run.step(1) == ["connected to gateway UGATEWAYA… (punched through the NAT, 8 ms)"]
    assert await run.step(MEASURE_SECONDS) == ["connected to gateway UOTHERGWA… (punched through the NAT)"]


async def test_load_is_printed_now_and_then_and_finally() -> None:
    run = StatusRun()
    await run.step(0)
    lines: dict[int, list[str]] = {}
    for second in range(1, 31):
        running = second % 3 if second < 15 else 0
        run.facts = replace(ALONE, models=(model("echo", running=running),))
        if written := await run.step(LOAD_EVERY_SECONDS + second):
            lines[second] = written
    assert lines == {1: ["1 request running"], 11: ["2 requests running"], 21: ["no requests running"]}


async def test_status_file_is_accurate_and_fresh(tmp_path: Path) -> None:
    run = StatusRun(tmp_path / "status")
    run.facts = THERE

    async def file(now: float, **changes: Any) -> node.WorkerStatus:
        run.facts = replace(run.facts, **changes)
        await run.step(now)
        return node.decode_status((tmp_path / "status").read_bytes())

    await run.step(0)
    first = await file(2)
    assert (first.mesh, first.node, first.gateways, first.models, first.is_paused) == ("home", "UME", (reached(),), ("echo",), False)
    assert first.lines[0] == "connected to gateway UGATEWAYA… (punched through the NAT, 12 ms)"
    assert (await file(3, gateways=(reached(milliseconds=13),))).told_at == first.told_at
    assert (await file(3.5, is_paused=True)).is_paused
    later = await file(9)
    assert later.told_at > first.told_at
    assert later.gateways == (reached(milliseconds=13),)
    assert (tmp_path / "status").stat().st_mode & 0o077 == 0


def test_facts_come_from_the_node() -> None:
    node = Node()
    ca = node_keys.Authority(node_keys.new_authority_seed())
    node.trust.authorities = (ca.id,)
    node.trust.certificate = certificates.issue(ca, Subject(node.id, Role.WORKER), 1_000_000)
    started = datetime(2026, 1, 2, tzinfo=UTC)
    node.directory.apply_announcement(Announcement(Role.GATEWAY, GATEWAY, "0.1", started), "punched", "swarm")
    node.directory.apply_announcement(Announcement(Role.AUTH, OTHER, "0.1", started), "direct", "swarm")
    node.directory.add_refused(NodeId("UGW2"), Role.GATEWAY, "0.1", "no path")
    node.node_transports.round_trips[GATEWAY] = 0.012
    facts = console_status.read_facts(node, (model("echo"),), notices=(), is_paused=False, now=5.0)
    assert facts.gateways == (Reached(Role.GATEWAY, GATEWAY, "punched", 12.0),)
    assert facts.unreached == (("UGW2", "no path"),)
    assert facts.why_lost == ""
    assert (facts.is_attached, facts.trouble, facts.is_expired) == (True, "", False)
    assert console_status.read_facts(node, (), notices=(), is_paused=False, now=1_000_001.0 + 24 * 3600).is_expired
    node.node_transports.trouble = "Hyperswarm is starting"
    node.trust.take_list(certificates.issue_list(ca, 1, 1, (node.id,), 1_000_000))
    facts = console_status.read_facts(node, (), notices=(), is_paused=True, now=5.0)
    node.directory.mark_gone(GATEWAY, "silent for 6 s")
    assert console_status.read_facts(node, (), notices=(), is_paused=False, now=5.0).why_lost == "silent for 6 s"
    assert (facts.is_attached, facts.trouble, facts.is_revoked, facts.is_paused) == (False, "Hyperswarm is starting", True, True)
