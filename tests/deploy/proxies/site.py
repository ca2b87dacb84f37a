"""The site behind the proxies: a stack with the echo model, a second gateway that tests may end, and a server in place of Grafana."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from shared.api import auth
from shared.types import Tier
from tests import people, replicas, stacks
from tests.deploy.proxies.programs import SITE, Backends
from tests.people import Key, Person
from tests.replicas import Replica
from tests.stacks import RunningStack, until
from tests.testnet import free_port

TOKEN_SECONDS = 0.5
_UNLIMITED = "requests_per_minute=unlimited,concurrency=unlimited,requests_per_hour=unlimited,tokens_per_minute=unlimited"
#: PUBLIC_URL and TRUSTED_PROXIES as in docs/howto/proxies.md.
SETTINGS = {
    "PUBLIC_URL": f"https://{SITE}",
    "AIMESH_ECHO": "1",
    "ECHO_TOKEN_MS": str(int(TOKEN_SECONDS * 1000)),
    "HYPERSWARM": "off",
    "TRUSTED_PROXIES": "127.0.0.1",
    "TIER_FREE": _UNLIMITED,
    "TIER_PRO": _UNLIMITED,
    "RESPONSE_CACHE": "off",
}


@dataclass(slots=True)
class Site:
    stack: RunningStack
    folder: Path
    person: Person
    backends: Backends
    #: The heads of requests that reached the server in place of Grafana.
    internal: list[str] = field(default_factory=list)
    _second: Replica | None = None
    _opened: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def key(self) -> str:
        return self.person.key.secret

    async def second_gateway(self) -> Replica:
        """Return the second gateway, started again if a test has ended it."""
        if self._second is None or self._second.process.poll() is not None:
            await self._opened.aclose()
            settings = {"GATEWAY_SERVICE_PORT": str(self.backends.gateways[1])}
            number = len(list(self.folder.glob("second-*.log")))
            opening = replicas.replica(self.stack, "gateway", folder=self.folder, name=f"second-{number}", settings=settings)
            self._second = await self._opened.enter_async_context(opening)
            await self._second.ready()
        return self._second

    async def end_second(self, number: signal.Signals) -> None:
        os.kill((await self.second_gateway()).process.pid, number)

    async def running(self) -> tuple[int, int]:
        """Return the number of requests in flight at each gateway."""
        return await self._metric(self.stack.url("gateway")), await self._metric((await self.second_gateway()).url)

    async def second_has_served(self) -> bool:
        return await self._metric((await self.second_gateway()).url, "ai_platform_requests_total", service="gateway", status="success") > 0

    async def busy_slots(self, *more: str) -> int:
        """Return how many answers the workers are writing."""
        urls = [(await self.stack.programs())["inference-echo"].url, *more]
        return sum([await self._metric(str(url), "ai_platform_worker_slots", state="busy", model="echo") for url in urls])

    async def key_for(self, network: str) -> Key:
        """Return a key of the same user that is valid only from this network."""
        request = auth.GenerateApiKey(network, bounds=auth.KeyBounds(networks=(network,)), all_rights=True)
        credentials = auth.Credentials(self.person.password, self.person.username)
        async with self.stack.client() as mesh:
            # The person's first login may be older than sensitive actions allow.
            session = await mesh.rpc.call(auth.login_user, auth.LoginUser(credentials))
            made = await mesh.rpc.call(auth.generate_api_key, request, credential=session.access_token)
        return Key(made.key.id, made.api_key)

    def seen_at_nats(self) -> list[str]:
        """Return the address of each WebSocket so far, as NATS logs it."""
        return re.findall(r"\[DBG\] (\S+)/127\.0\.0\.1:\d+ - wid:\d+ - Client connection created", self.stack.log("nats"))

    async def close(self) -> None:
        await self._opened.aclose()

    async def _metric(self, url: str, name: str = "ai_platform_inflight_requests", **labels: str) -> int:
        async with self.stack.http() as http:
            return int(stacks.total((await http.get(f"{url}/metrics")).text, name, **labels))


@asynccontextmanager
async def site(folder: Path, **settings: str) -> AsyncIterator[Site]:
    async with stacks.stack(**{**SETTINGS, **settings}) as running, AsyncExitStack() as opened:
        async with people.api_client(running) as api_client:
            ann = await api_client.register("ann", Tier.PRO)
        heads: list[str] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\nconnection: close\r\n\r\ninternal")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", free_port())
        opened.push_async_callback(server.wait_closed)
        opened.callback(server.close)
        internal = server.sockets[0].getsockname()[1]
        first, web = (urlsplit(running.url(name)).port or 0 for name in ("gateway", "web"))
        with (running.place.nats / "nats.conf").open("a", encoding="utf-8") as conf:
            conf.write("debug: true\n")
        await running.signal("nats", signal.SIGHUP)
        mesh = int(running.environment["NATS_WEB_PORT"])
        found = Site(running, folder, ann, Backends((first, free_port()), web, internal, mesh), heads)
        opened.push_async_callback(found.close)
        await found.second_gateway()
        yield found


async def idle(found: Site) -> None:
    """Wait until nothing runs: a test must not see requests of the previous one."""

    async def is_idle() -> bool:
        return await found.busy_slots() == 0 and sum(await found.running()) == 0

    # A gateway that the previous test ended may still drain, without listening.
    await until(is_idle, seconds=15, what="nothing runs", ignoring=(httpx.ConnectError,))
