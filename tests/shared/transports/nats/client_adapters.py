"""Our NATS client and nats-py behind one interface, so that the same fault script judges both."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nats.aio.client import Client as NatsPy
from nats.aio.msg import Msg

from shared.identity import node_keys
from shared.node.lifecycle import background
from shared.transports.nats.login import NatsFiles
from shared.transports.nats.nats_client import NatsClient


@dataclass(frozen=True)
class Wanted:
    urls: tuple[str, ...]
    #: A node's key. By default a new one, which a server without authorization accepts.
    seed: bytes | None = None
    creds: Path | None = None


class JudgedClient(Protocol):
    #: The reasons that the client reported for refusals and losses.
    reasons: list[str]

    @property
    def connected(self) -> bool: ...

    async def publish(self, subject: str, payload: bytes) -> None:
        """Raises an exception if the message cannot be sent."""
        ...

    async def subscribe(self, subject: str, hear: Callable[[bytes], None]) -> None: ...

    async def flush(self) -> None: ...

    async def close(self) -> None: ...


#: Connects, and keeps the connection until the block ends.
Open = Callable[[Wanted], AbstractAsyncContextManager[JudgedClient]]


class OurClient:
    def __init__(self, client: NatsClient) -> None:
        self._client = client
        self.reasons: list[str] = []
        client.on_refused = self.reasons.append
        client.on_connection = lambda connected: self.reasons.append(str(client.trouble))

    @property
    def connected(self) -> bool:
        return self._client.connected

    async def publish(self, subject: str, payload: bytes) -> None:
        self._client.publish(subject, payload)

    async def subscribe(self, subject: str, hear: Callable[[bytes], None]) -> None:
        self._client.subscribe(subject, lambda message: hear(message.payload))

    async def flush(self) -> None:
        await self._client.flush(deadline_seconds=30)

    async def close(self) -> None:
        await self._client.close()


@asynccontextmanager
async def our_client(wanted: Wanted) -> AsyncIterator[JudgedClient]:
    key = node_keys.NodeKey(wanted.seed or node_keys.new_seed())
    client = NatsClient(",".join(wanted.urls), key, name="judged", files=NatsFiles(creds=wanted.creds))
    judged = OurClient(client)
    await client.connect(deadline_seconds=20)
    async with background() as tasks:
        tasks.create_task(client.run())
        try:
            yield judged
        finally:
            await client.close()


class NatsPyClient:
    def __init__(self) -> None:
        self.client = NatsPy()
        self.reasons: list[str] = []

    async def told(self, error: Exception) -> None:
        self.reasons.append(str(error))

    @property
    def connected(self) -> bool:
        return self.client.is_connected

    async def publish(self, subject: str, payload: bytes) -> None:
        await self.client.publish(subject, payload)

    async def subscribe(self, subject: str, hear: Callable[[bytes], None]) -> None:
        async def heard(message: Msg) -> None:
            hear(message.data)

        await self.client.subscribe(subject, cb=heard)

    async def flush(self) -> None:
        # The PING may overtake data that waits for the flusher; a second PING cannot.
        for _ in range(2):
            await self.client.flush(10)

    async def close(self) -> None:
        await self.client.close()


@asynccontextmanager
async def nats_py(wanted: Wanted) -> AsyncIterator[JudgedClient]:
    judged = NatsPyClient()
    await judged.client.connect(
        list(wanted.urls),
        error_cb=judged.told,
        nkeys_seed_str=None if wanted.seed is None else wanted.seed.decode(),
        user_credentials=None if wanted.creds is None else str(wanted.creds),
        reconnect_time_wait=0,
        max_reconnect_attempts=-1,
        connect_timeout=2,
    )
    try:
        yield judged
    finally:
        async with asyncio.timeout(30):
            await judged.client.close()
