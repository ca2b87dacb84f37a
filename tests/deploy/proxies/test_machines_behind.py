"""A machine behind a proxy of deploy/proxy, which has only port 443: it joins soon, and no answer is lost whatever becomes of its way."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from shared.identity import tickets
from shared.types import Tier
from tests import capabilities, people, stopwatch
from tests.chaos import streams
from tests.chaos.streams import Worker
from tests.deploy.proxies import site, traffic
from tests.deploy.proxies.programs import PROGRAMS, SITE, Proxy
from tests.deploy.proxies.site import Site
from tests.stacks import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600), pytest.mark.nightly("stacks")]

JOIN_SECONDS, ANSWERS, AWAY_SECONDS = 10.0, 100, 3.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def behind(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A mesh without a worker for the model."""
    capabilities.require("nginx")
    async with site.site(tmp_path_factory.mktemp("site"), AIMESH_ECHO="0") as opened:
        yield opened


@asynccontextmanager
async def running(name: str, behind: Site, folder: Path) -> AsyncIterator[Proxy]:
    proxy = PROGRAMS[name](folder, behind.backends)
    with proxy.run():
        await proxy.ready()
        yield proxy


@asynccontextmanager
async def machine(behind: Site, proxy: Proxy, folder: Path, *nats: str) -> AsyncIterator[Worker]:
    """Type a worker's line on a machine that reaches nothing but the proxy, and ``nats``."""
    made = (await behind.stack.aicli("admin", "tickets", "create", "--role", "worker", "--json")).json()["ticket"]
    ticket = tickets.parse(made)
    assert (ticket.nats, ticket.beside) == ((f"wss://{SITE}/mesh",), False)
    line = tickets.render(msgspec.structs.replace(ticket, nats=(*nats, *ticket.nats)))
    async with traffic.way_to(proxy) as variables:
        settings = {"ECHO_TOKEN_MS": "300", **variables}
        async with streams.worker(behind.stack, "--join", line, "--state", str(folder / "worker"), **settings) as started:
            yield started


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_machine_joins_through_it(name: str, behind: Site, tmp_path: Path) -> None:
    capabilities.require(name)
    async with running(name, behind, tmp_path) as proxy:
        started_at = stopwatch.now()
        async with machine(behind, proxy, tmp_path):
            took = stopwatch.now() - started_at
        print(f"REACH a worker joined and was ready through {name} in {took:.1f} s")
        assert took < JOIN_SECONDS or not stopwatch.bounds_hold


async def reload(proxy: Proxy) -> None:
    proxy.write()
    await proxy.reload()


async def renew(proxy: Proxy) -> None:
    old = await proxy.serial()
    await proxy.renew()

    async def is_new() -> bool:
        return await proxy.serial() != old

    await until(is_new, seconds=30, what="a new connection gets a new certificate", ignoring=(ssl.SSLError, OSError))


async def restart(proxy: Proxy) -> None:
    await proxy.restart(AWAY_SECONDS)


@pytest.mark.parametrize("fault", [reload, renew, restart])
async def test_no_answer_is_lost_with_its_proxy(fault: Callable[[Proxy], Awaitable[None]], behind: Site, tmp_path: Path) -> None:
    async with running("nginx", behind, tmp_path) as proxy, machine(behind, proxy, tmp_path) as worker:
        await lose_nothing(behind, worker, lambda: fault(proxy))


class DirectWay:
    """A port that leads to NATS until a firewall closes it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.open: list[asyncio.StreamWriter] = []
        self._is_silent = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.append(writer)
        if not self._is_silent:
            there, back = await asyncio.open_connection("127.0.0.1", self._port)
            self.open.append(back)
            await asyncio.gather(traffic.copy(reader, back), traffic.copy(there, writer))

    def cut(self) -> None:
        for writer in self.open:
            writer.transport.abort()

    def fall_silent(self) -> None:
        self._is_silent = True
        for writer in self.open:
            writer.transport.pause_reading()  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_silent", [False, True], ids=["refused", "dropped"])
async def test_no_answer_is_lost_when_the_port_of_nats_is_closed(behind: Site, tmp_path: Path, *, is_silent: bool) -> None:
    way = DirectWay(int(behind.stack.environment["NATS_PORT"]))
    async with running("nginx", behind, tmp_path) as proxy, AsyncExitStack() as stack:
        port = await stack.enter_async_context(await asyncio.start_server(way.serve, "127.0.0.1", 0))
        stack.callback(way.cut)
        url = f"nats://127.0.0.1:{port.sockets[0].getsockname()[1]}"
        worker = await stack.enter_async_context(machine(behind, proxy, tmp_path, url))
        before = len(behind.seen_at_nats())
        assert way.open

        async def close() -> None:
            if is_silent:
                way.fall_silent()
            else:
                port.close()
                way.cut()

        await lose_nothing(behind, worker, close)
        assert len(behind.seen_at_nats()) > before


async def lose_nothing(behind: Site, worker: Worker, fault: Callable[[], Awaitable[None]]) -> None:
    """Let something happen in the middle of a hundred answers of this worker."""
    async with people.api_client(behind.stack) as api_client:
        eve = await api_client.register(f"eve-{worker.port}", Tier.PRO)
        async with streams.running(behind.stack, eve, count=ANSWERS) as told:
            await streams.in_the_middle(told, worker, ANSWERS)
            told.is_over.set()
            await fault()
            assert len(told.running) == ANSWERS, "they still run"
    print(f"REACH {told.exact} answers exact, {len(told.wrong)} not; longest pause {max(told.pauses, default=0.0):.1f} s")
    assert told.wrong == []
    assert told.exact == ANSWERS
    await streams.each_is_counted_once(behind.stack, eve, told)
