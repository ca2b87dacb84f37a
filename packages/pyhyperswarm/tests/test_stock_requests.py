"""A stock @hyperswarm/rpc client in Node calls methods served in Python."""

import asyncio
import json
from pathlib import Path

import pytest
import swarms
from pyhyperswarm import PeerAddress, Request, RequestRefused, dht, find_node, sidecar_frames
from pyhyperswarm.sidecar_process import Sidecar, SidecarListener
from swarms import local_swarm, meet

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


async def test_a_request_that_arrives_at_the_end_of_the_start_is_answered(asked: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that waits for this node may connect before this process has noticed that the sidecar is ready."""
    start = Sidecar.start
    answers: asyncio.Queue[sidecar_frames.Frame] = asyncio.Queue()

    class Pipe:
        def send(self, kind: int, number: int, payload: bytes) -> None:
            answers.put_nowait((kind, number, payload))

    async def start_late(command: list[str | Path], hello: bytes, listener: SidecarListener) -> Sidecar:
        sidecar = await start(command, hello, listener)
        listener.on_frame(Pipe(), sidecar_frames.REQUEST, 1, bytes(96) + b"\x05\x00shouthello")  # type: ignore[arg-type]
        return sidecar

    async def answer(request: Request) -> bytes:
        asked.append(request)
        return request.value.upper()

    monkeypatch.setattr(Sidecar, "start", start_late)
    async with local_swarm(dht.shared(), on_request=answer), asyncio.timeout(swarms.PATIENCE_SECONDS):
        assert await answers.get() == (sidecar_frames.RESPONSE, 1, b"\x00HELLO")
    assert [(request.method, request.value) for request in asked] == [("shout", b"hello")]


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
