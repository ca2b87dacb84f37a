"""What a service's port answers before the service is up, and when the service has no HTTP application."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import httpx
import pytest

from shared.api.gateway import Check
from shared.node import http_server
from shared.node.http_server import App, Operations
from shared.node.lifecycle import background
from shared.node.member import Node
from shared.node.settings import NodeSettings, PublicNodeSettings
from shared.telemetry.readiness import LoopLag, OwnCheck
from shared.transports.nats_link import NatsTransport
from shared.types import Role
from tests import testnet

PUBLIC = PublicNodeSettings(node_key_file=Path("/nowhere"), metrics_networks=("192.0.2.0/24",))


class Page:
    """A service with the HTTP application that the test gives it."""

    role: ClassVar[Role] = Role.GATEWAY

    def __init__(self, app: App | None = None) -> None:
        self._app = app
        self.states: tuple[Check, ...] = ()

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Any, node: Node) -> AsyncIterator["Page"]:
        yield cls()

    async def checks(self) -> tuple[Check, ...]:
        return self.states

    def asgi(self) -> App | None:
        return self._app


@asynccontextmanager
async def _port() -> AsyncIterator[tuple[Operations, httpx.AsyncClient]]:
    async with testnet.testnet() as net:
        started = await net.start(Page)
        operations = Operations(started.node, NodeSettings(node_key_file=Path("/nowhere")))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(operations), base_url="http://here") as http:
            yield operations, http


async def _teapot(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def test_requests_that_come_too_early_wait_until_the_service_is_open() -> None:
    async with _port() as (operations, http), asyncio.TaskGroup() as tasks:
        early = [tasks.create_task(http.post("/v1/chat/completions")) for _ in range(2)]
        done, _ = await asyncio.wait(early, timeout=0.1)
        assert not done
        assert (await http.get("/healthz")).status_code == 200
        operations.open(Page(_teapot))
        assert [(await task).status_code for task in early] == [418, 418]


async def test_a_request_to_a_starting_gateway_is_a_503_and_not_a_404(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "OPEN_SECONDS", 0.05)
    async with _port() as (operations, http):
        answer = await http.post("/v1/chat/completions")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "1"
        assert (await http.get("/healthz")).status_code == 200

        operations.open(Page())
        answer = await http.post("/v1/chat/completions")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_operations_endpoints_come_before_the_services_own_application() -> None:
    async with _port() as (operations, http):
        operations.open(Page(_teapot))
        assert (await http.get("/anything")).status_code == 418
        assert (await http.get("/readyz")).status_code == 200
        assert (await http.delete("/metrics")).status_code == 405


async def test_metrics_on_a_public_port_are_only_for_scrapers() -> None:
    async with testnet.testnet() as net:
        started = await net.start(Page)
        operations = Operations(started.node, PUBLIC)
        for address, status in (("127.0.0.1", 200), ("192.0.2.7", 200), ("203.0.113.7", 403)):
            transport = httpx.ASGITransport(operations, client=(address, 50000))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
                answer = await http.get("/metrics")
                assert answer.status_code == status, address
                assert ("ai_platform" in answer.text) is (status == 200)
                assert (await http.get("/healthz")).status_code == 200


async def test_strangers_see_only_the_state_on_a_public_port() -> None:
    why = "postgresql at 10.0.0.5:5432 does not answer"
    async with testnet.testnet() as net:
        started = await net.start(Page)
        page = cast("Page", started.service)
        for operations, address, knows in (
            (Operations(started.node, PUBLIC), "127.0.0.1", True),
            (Operations(started.node, PUBLIC), "192.0.2.7", True),
            (Operations(started.node, PUBLIC), "203.0.113.7", False),
            (Operations(started.node, NodeSettings(node_key_file=Path("/nowhere"))), "203.0.113.7", True),
        ):
            transport = httpx.ASGITransport(operations, client=(address, 50000))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
                page.states = Check("model ours", True), OwnCheck("postgresql", False, why)
                ready, state = await http.get("/readyz"), await http.get("/dependencies")
                assert (ready.status_code, state.status_code) == (503, 200)
                assert (why in ready.text, why in state.text, "model ours" in ready.text, "model ours" in state.text) == (knows,) * 4, (
                    address
                )
                if not knows:
                    assert ready.json() == {"ready": False}
                    assert state.json() == {"service": "gateway", "state": "failing"}
                page.states = (Check("postgresql", True),)
                assert knows or (await http.get("/dependencies")).json()["state"] == "ok"


async def test_strangers_see_no_names_of_tasks() -> None:
    async def dies() -> None:
        raise asyncio.CancelledError

    async with testnet.testnet() as net:
        started = await net.start(Page)
        await asyncio.wait({started.node.tasks.create_task(dies(), name="upkeep")})
        operations = Operations(started.node, PUBLIC)
        for address, known in (("192.0.2.7", {"deadTasks": ["upkeep"]}), ("203.0.113.7", {})):
            transport = httpx.ASGITransport(operations, client=(address, 50000))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
                answer = await http.get("/healthz")
                assert (answer.status_code, answer.json()) == (503, {"status": "failed", "service": "gateway", **known})


async def _bad(http: httpx.AsyncClient) -> dict[str, str]:
    """Return what is failing, and why."""
    answer = (await http.get("/dependencies")).json()
    assert answer["service"] == "gateway"
    return {each["name"]: each["reason"] for each in answer["dependencies"] if each["state"] == "failing"}


async def _status(http: httpx.AsyncClient, path: str = "/readyz") -> int:
    return (await http.get(path)).status_code


@asynccontextmanager
async def _running() -> AsyncIterator[tuple[testnet.RunningNode, Page, httpx.AsyncClient]]:
    async with testnet.testnet() as net:
        started = await net.start(Page)
        operations = Operations(started.node, NodeSettings(node_key_file=Path("/nowhere")))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(operations), base_url="http://here") as http:
            yield started, cast("Page", started.service), http


async def test_a_service_is_ready_once_all_have_answered_and_stays_so_without_what_all_share() -> None:
    async with _running() as (_, page, http):
        page.states = Check("postgresql", True), Check("valkey", False, "away"), Check("mail", False, "away", needed=False)
        assert await _status(http) == 503
        page.states = Check("postgresql", False, "away"), Check("valkey", True), Check("mail", False, "away", needed=False)
        assert await _status(http) == 200, "each has answered once"
        page.states = Check("postgresql", False, "away"), Check("valkey", False, "hangs")
        assert await _status(http) == 200
        assert await _bad(http) == {"postgresql": "away", "valkey": "hangs"}
        page.states = (OwnCheck("journal", False, "full"),)
        assert await _status(http) == 503
        page.states = (OwnCheck("model a", False, "failed", needed=False), OwnCheck("model b", True))
        assert await _status(http) == 200
        page.states = ()
        assert await _status(http) == 200


async def test_reasons_of_this_process_alone() -> None:
    async with _running() as (started, _, http):
        node = started.node
        assert await _status(http) == 200
        node._loop_lag.note(11.0, time.monotonic())
        assert (await _status(http), list(await _bad(http))) == (503, ["event loop"])
        node._loop_lag.note(0.1, time.monotonic())
        assert await _status(http) == 200
        node.trust.was_revoked = True
        assert (await _status(http), list(await _bad(http))) == (503, ["certificate"])
        node.trust.was_revoked = False
        node.dispatcher.drain_started.set()
        assert (await _status(http), list(await _bad(http))) == (503, ["drain"])
        assert await _status(http, "/healthz") == 200


async def test_a_contested_node_key_makes_the_node_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _running() as (started, _, http):
        assert await _status(http) == 200
        # The process ends soon afterwards.
        monkeypatch.setattr(started.node.announcer, "must_stop", asyncio.Event())
        started.node.announcer.must_stop.set()
        assert (await _status(http), list(await _bad(http))) == (503, ["node key"])


async def test_a_connection_that_does_not_write_makes_the_node_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _running() as (_, _, http):
        assert await _status(http) == 200
        monkeypatch.setattr(NatsTransport, "unwritten_seconds", property(lambda _: 60.0))
        assert await _status(http) == 503
        assert "nothing could be written" in (await _bad(http))["NATS"]


async def test_a_background_task_that_lost_its_cancellation_makes_the_process_unhealthy() -> None:
    async def dies() -> None:
        raise asyncio.CancelledError

    async with _running() as (started, _, http):
        ends = started.node.tasks.create_task(asyncio.sleep(0))
        canceled = started.node.tasks.create_task(asyncio.Event().wait())
        await ends
        canceled.cancel()
        await asyncio.wait({canceled})
        assert await _status(http, "/healthz") == 200
        await asyncio.wait({started.node.tasks.create_task(dies(), name="upkeep")})
        answer = await http.get("/healthz")
        assert (answer.status_code, answer.json()["deadTasks"]) == (503, ["upkeep"])


async def test_a_task_that_keeps_failing_shows_to_those_who_may_observe_and_the_process_lives() -> None:
    async with testnet.testnet() as net:
        node = (await net.start(Page)).node
        node.failing.note("notices", 60.0)
        shown = {}
        for name, settings in (("own", NodeSettings(node_key_file=Path("/nowhere"))), ("public", PUBLIC)):
            transport = httpx.ASGITransport(Operations(node, settings), client=("198.51.100.1", 5))
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
                answer = await http.get("/healthz")
            assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
            shown[name] = answer.json().get("failingTasks")
        assert shown == {"own": ["notices"], "public": None}
        assert 'ai_platform_background_failures_total{task="notices"} 1.0' in node.metrics_text()


async def test_the_name_of_a_task_that_failed_is_kept_while_the_others_end() -> None:
    dead: list[str] = []

    async def fails() -> None:
        raise RuntimeError

    with pytest.raises(ExceptionGroup):
        async with background(dead) as tasks:
            tasks.create_task(asyncio.Event().wait(), name="other")
            tasks.create_task(fails(), name="writer")
            await asyncio.Event().wait()
    assert dead == ["writer"]


@pytest.mark.parametrize(
    ("lags", "ok"),
    [
        pytest.param([(3.0, 3.0), (9.0, 3.0)], True, id="not long enough"),
        pytest.param([(3.0, 3.0), (10.0, 3.0), (13.0, 2.1)], False, id="10 s"),
        pytest.param([(3.0, 3.0), (10.0, 2.0), (13.0, 3.0)], True, id="with a pause"),
        pytest.param([(12.0, 11.0)], False, id="one long block"),
    ],
)
def test_an_event_loop_that_is_late_for_ten_seconds(lags: list[tuple[float, float]], ok: bool) -> None:
    found = LoopLag()
    for at, lag in lags:
        found.note(lag, at)
    assert found.check(lags[-1][0]).ok is ok
