"""A stock @hyperswarm/rpc client in Node calls methods served in Python."""

import asyncio
import json
from pathlib import Path

import pytest

from shared.transports.hyperswarm import PeerAddress, Request, RequestRefused, find_node
from tests import dht
from tests.shared.transports.hyperswarm import swarms
from tests.shared.transports.hyperswarm.swarms import local_swarm, meet

CLIENT = Path(__file__).parent / "rpc_client.js"


async def ask(nodes: list[PeerAddress], key: bytes, method: str, value: str) -> dict[str, str | None]:
    command = [str(CLIENT), str(dht.SIDECAR / "node_modules"), str(nodes[0].port), key.hex(), method, value]
    process = await asyncio.create_subprocess_exec(str(find_node()), *command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(swarms.PATIENCE_SECONDS):
        said, _ = await process.communicate()
    answer: dict[str, str | None] = json.loads(said)
    return answer


@pytest.fixture
def asked() -> list[Request]:
    return []


async def test_stock_requests_work_beside_our_own_protocol(asked: list[Request]) -> None:
    async def answer(request: Request) -> bytes:
        asked.append(request)
        if request.method != "shout":
            raise RequestRefused("unknown_method", f"there is no {request.method} here")
        return request.value.upper()

    nodes = dht.shared()
    async with local_swarm(nodes, on_request=answer) as host, local_swarm(nodes) as peer:
        assert await ask(nodes, host.public_key, "shout", "hello") == {"value": "HELLO"}
        refused = await ask(nodes, host.public_key, "whisper", "hello")
        assert refused == {"code": "REQUEST_ERROR", "cause": "there is no whisper here", "causeCode": "unknown_method"}
        assert [(request.method, request.value) for request in asked] == [("shout", b"hello"), ("whisper", b"hello")]
        assert len(asked[0].key) == 32
        here, there = await meet(host, peer)
        here.send(b"x")
        async with asyncio.timeout(swarms.PATIENCE_SECONDS):
            assert await there.read() == b"x"


async def test_a_running_request_does_not_delay_closing_the_swarm(asked: list[Request]) -> None:
    under_way = asyncio.Event()

    async def answer(request: Request) -> bytes:
        under_way.set()
        return await asyncio.Future[bytes]()

    nodes = dht.shared()
    async with local_swarm(nodes, on_request=answer) as host:
        asking = asyncio.ensure_future(ask(nodes, host.public_key, "shout", "hello"))
        async with asyncio.timeout(swarms.PATIENCE_SECONDS):
            await under_way.wait()
    assert "code" in await asking
