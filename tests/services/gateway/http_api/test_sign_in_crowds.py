"""Many callers of routes without a credential: slow senders and one busy address don't keep others from signing in."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest

from services.gateway.http_api import http_app
from services.gateway.http_api.http_app import SIGN_IN_BODY_BYTES
from shared.api import auth
from shared.node import http_server
from shared.node.settings import NodeSettings
from shared.timing.admission_semaphore import AdmissionSemaphore
from shared.types import Tier, UserRole
from tests.services.gateway import fakes
from tests.services.gateway.fakes import TOKEN, USER, RunningService
from tests.services.gateway.http_answers import problem
from tests.stopwatch import HANG_SECONDS

ATTACKER, CUSTOMER = "127.0.0.66", "127.0.0.7"
SLOW_SOCKETS = 64
LOGINS = 40
LOGIN = {"username": "ada", "password": "secret"}


@pytest.fixture
async def running_service() -> AsyncIterator[RunningService]:
    async with fakes.running_service() as service:
        user = auth.User(USER, "ada", "ada@example.com", UserRole.USER, Tier.FREE, True, fakes.announcement(1).started_at)

        async def login(_request: auth.LoginUser) -> auth.LoginSession:
            return auth.LoginSession(TOKEN, 600, "opaque", user)

        service.rpc.answers["auth.loginUser"] = login
        yield service


@asynccontextmanager
async def served(running_service: RunningService) -> AsyncIterator[int]:
    """Run the gateway's own server and yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        server = http_server.HttpServer(running_service.app(), sock, NodeSettings(node_key_file=Path("/nowhere")))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.run())
            try:
                yield sock.getsockname()[1]
            finally:
                server.stop()


@asynccontextmanager
async def customer(port: int, address: str = CUSTOMER) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(local_address=address)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", transport=transport, timeout=60) as http:
        yield http


async def send_slowly(port: int, begun: asyncio.Semaphore) -> None:
    """Start a login and never finish it; when the gateway closes the connection, start the next one."""
    head = b"POST /api/auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 60\r\n\r\n{"
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(ATTACKER, 0))
        try:
            writer.write(head)
            await writer.drain()
            begun.release()
            with suppress(ConnectionError):
                await reader.read()
        finally:
            writer.close()


async def test_64_slow_connections_of_one_address_do_not_delay_other_sign_ins(
    running_service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A user who had to wait for a slow connection would wait this long.
    monkeypatch.setattr(http_app, "SIGN_IN_BODY_SECONDS", 2 * HANG_SECONDS)
    begun = asyncio.Semaphore(0)
    async with served(running_service) as port, asyncio.TaskGroup() as tasks:
        slow = [tasks.create_task(send_slowly(port, begun)) for _ in range(SLOW_SOCKETS)]
        for _ in slow:
            await begun.acquire()
        async with customer(port) as http, asyncio.timeout(HANG_SECONDS):
            for _ in range(LOGINS):
                assert (await http.post("/api/auth/login", json=LOGIN)).status_code == 200
        for task in slow:
            task.cancel()


async def test_a_body_that_is_too_large_or_too_slow_is_a_client_error(
    running_service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_app, "SIGN_IN_BODY_SECONDS", 1.0)
    async with served(running_service) as port, customer(port) as http:
        for body in (b" " * (SIGN_IN_BODY_BYTES + 1), b"{"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            length = len(body) if len(body) > 1 else 60
            writer.write(b"POST /api/auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
            writer.write(b"content-length: %d\r\n\r\n%b" % (length, body))
            async with asyncio.timeout(30):
                answer = await reader.readuntil(b"\r\n")
            writer.close()
            assert int(answer.split()[1]) == (413 if len(body) > 1 else 400)
        fits = json.dumps(LOGIN | {"password": "x" * 4096}).encode()
        assert (await http.post("/api/auth/login", content=fits, headers={"content-type": "application/json"})).status_code == 200
    text = running_service.metrics.render()
    assert 'method="loginUser",service="gateway",status="too_large"} 1.0' in text
    assert 'method="loginUser",service="gateway",status="bad_request"} 1.0' in text


async def test_many_sign_ins_of_one_address_leave_slots_for_others_and_get_a_429(running_service: RunningService) -> None:
    hung, waiting = asyncio.Event(), asyncio.Semaphore(0)
    answers = running_service.rpc.answers["auth.loginUser"]

    async def login(request: auth.LoginUser) -> object:
        if request.client.address == ATTACKER:
            waiting.release()
            await hung.wait()
        return await answers(request)

    running_service.rpc.answers["auth.loginUser"] = login
    app = running_service.app()
    app._sign_ins = AdmissionSemaphore(8, of_one=4, seconds=0.5, refusal="too many sign-ins at the same time")
    running_service.app = lambda: app  # type: ignore[method-assign]
    async with served(running_service) as port, customer(port, ATTACKER) as crowd, customer(port) as http, asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(crowd.post("/api/auth/login", json=LOGIN)) for _ in range(20)]
        for _ in range(4):
            await waiting.acquire()
        assert (await http.post("/api/auth/login", json=LOGIN)).status_code == 200
        done, _ = await asyncio.wait(asking[:], return_when=asyncio.FIRST_COMPLETED)
        error = problem(next(iter(done)).result(), 429, "rate_limited")
        assert "too many sign-ins at the same time" in error["message"]
        hung.set()
