"""Measure what gateway and mesh add to the time to first token, compared with calling the worker's /infer directly.

Requests of 50 tenants start at a fixed rate whether or not earlier ones have ended; direct ones and those through the gateway alternate in
blocks. "Added" is the gateway's percentile minus the direct one's, of the same run.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from bench import report, tenants
from shared import node
from shared.api import gateway
from shared.types import MeshName, ModelName
from tests.stacks import RunningStack, stack

RATE = 100.0
#: The maximum added milliseconds, by percentile.
ALLOWED = ((0.5, 5.0), (0.99, 20.0))
BLOCK_SECONDS = 2.5
#: A prompt of ordinary length; the echo backend answers with its words.
PROMPT = "Explain in two sentences why the sea is salty and the rivers that feed it are not."
MAX_TOKENS = 16

Once = Callable[[], Coroutine[Any, Any, float]]


class Connections:
    """Keep-alive HTTP connections to one port; as simple as possible, because their cost is in every figure."""

    def __init__(self, port: int, path: str, keys: Sequence[str], body: bytes) -> None:
        self._port = port
        lines = (f"POST {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json", f"content-length: {len(body)}")
        head = "\r\n".join(lines)
        self._requests = itertools.cycle([f"{head}\r\nauthorization: Bearer {key}\r\n\r\n".encode() + body for key in keys])
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def first_event(self) -> float:
        """Return the seconds until the first event with content; reads the stream to its end."""
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        start = time.perf_counter()
        writer.write(next(self._requests))
        status = await reader.readline()
        assert b" 200 " in status, status + await reader.read(2000)
        first = 0.0
        while (line := await reader.readline()) != b"0\r\n":  # the chunk that ends a chunked answer
            assert line, "the answer broke off"
            # The gateway's first event has the role and no text, as OpenAI's does.
            if not first and line.startswith(b"data:") and b'"content":""' not in line:
                first = time.perf_counter() - start
        await reader.readline()
        self._idle.append((reader, writer))
        assert first, "no event with content"
        return first


async def _block(once: Once, rate: float, seconds: float) -> list[float]:
    """Start ``once`` at the rate, however long each takes."""
    took: list[float] = []

    async def one() -> None:
        took.append(await once())

    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
            tasks.create_task(one())
    return took


async def _measure(running: RunningStack, rate: float, seconds: float) -> list[report.Row]:
    programs = await running.programs()
    echo_url = programs["inference-echo"].url
    assert echo_url is not None
    echo_port = int(echo_url.rsplit(":", 1)[1])
    token = (running.home / "secrets" / "service_token").read_text().strip()
    keys = await tenants.register(running)
    direct_body = {"model": "echo", "prompt": PROMPT, "max_tokens": MAX_TOKENS, "stream": True}
    chat_body = {"model": "echo", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": MAX_TOKENS, "stream": True}
    direct = Connections(echo_port, "/infer", (token,), msgspec.json.encode(direct_body))
    chat = Connections(tenants.gateway_port(running), "/v1/chat/completions", keys, msgspec.json.encode(chat_body))
    settings = node.ClientSettings(
        mesh=MeshName("home"),
        nats_url=f"nats://127.0.0.1:{running.environment['NATS_PORT']}",
        node_key_file=running.home / "keys" / "client.nk",
    )
    async with node.client(settings) as client:
        request = gateway.ProcessInferenceRequest(gateway.InferenceRequest(prompt=PROMPT, model=ModelName("echo"), max_tokens=MAX_TOKENS))

        credentials = itertools.cycle(keys)

        async def over_rpc() -> float:
            start = time.perf_counter()
            async with client.rpc.stream(gateway.process_inference_request, request, credential=next(credentials)) as answer:
                await anext(answer)
                first = time.perf_counter() - start
                async for _ in answer:
                    pass
            return first

        ways: dict[str, Once] = {"direct": direct.first_event, "HTTP": chat.first_event, "RPC": over_rpc}
        took: dict[str, list[float]] = {name: [] for name in ways}
        for once in ways.values():
            await _block(once, rate, 1)  # connections, caches
        for _ in range(max(1, round(seconds / BLOCK_SECONDS))):
            for name, once in ways.items():
                took[name] += await _block(once, rate, BLOCK_SECONDS)
    return _rows(took, rate)


def _rows(took: dict[str, list[float]], rate: float) -> list[report.Row]:
    rows = []
    for share, limit in ALLOWED:
        base = report.percentile(took["direct"], share) * 1000
        for way in ("HTTP", "RPC"):
            whole = report.percentile(took[way], share) * 1000
            claim = f"first token over {way}, p{share * 100:.0f}, {rate:.0f}/s"
            rows.append(report.against(claim, whole, "ms", "worker's /infer", base))
            rows.append(report.alone(f"  added by gateway and mesh, p{share * 100:.0f}", whole - base, "ms", at_most=limit))
    return rows


async def measure(seconds: float, rate: float = RATE) -> list[report.Row]:
    """Measure each way for ``seconds``."""
    async with stack(**tenants.UNREACHED, AIMESH_ECHO="1", LOG_LEVEL="warning") as running:
        return await _measure(running, rate, seconds)
