"""The mesh's own cost: a 100-byte call and a stream between two processes, against bare nats-py and grpc.aio.

    python -m bench.mesh [--quick] [--rounds 3] [--json FILE]

All servers run in one other process, over the same NATS server or over loopback TCP, with uvloop. Rounds alternate and each figure is a
median, because the speed of shared cores drifts.
"""

import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import grpc
import nats
from nats.aio.msg import Msg

from bench import calls, processes, report
from bench.calls import Call, Figures
from shared import rpc
from shared.api import metrics
from shared.api.gateway import Check
from shared.api.generation import Generation, Usage
from shared.api.inference import Chunk, ModelConfig, ProcessPrompt, process_prompt
from shared.api.method import Nothing
from shared.context import new_request_id
from shared.node.member import Node, member
from shared.node.settings import NodeSettings
from shared.types import FinishReason, ModelName, Role
from tests.testnet import MESH, NatsServer, free_port

BODY = b"x" * 100
IN_FLIGHT, EACH = 32, 250
STREAM_ITEMS = 300_000


class Echo:
    """A service that answers immediately, so that only the mesh is measured."""

    role: ClassVar[Role] = Role.METRICS

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: NodeSettings, node: Node) -> AsyncIterator["Echo"]:
        yield cls()

    async def checks(self) -> tuple[Check, ...]:
        return ()

    def asgi(self) -> None:
        return None

    @rpc.serves(metrics.record_metric)
    async def record(self, request: metrics.RecordMetric, call: rpc.RpcCall) -> Nothing:
        return Nothing()


class Stream(Echo):
    role: ClassVar[Role] = Role.WORKER

    @rpc.serves(process_prompt)
    async def process(self, request: ProcessPrompt, stream: rpc.StreamCall[Chunk]) -> Generation:
        count = request.model_config.max_tokens or 0
        chunk = Chunk("tok", (1,))
        for _ in range(count):
            await stream.send(chunk)
        return Generation(FinishReason.LENGTH, Usage(0, count))


def echo_call(node: Node) -> Call:
    request = metrics.RecordMetric("x" * 60, 1.0, {"label": "y" * 20})
    return lambda: node.rpc.call(metrics.record_metric, request)


async def stream_rate(node: Node, items: int) -> float:
    """Return the items a second."""
    prompt = ProcessPrompt("", ModelConfig(model=ModelName("m"), max_tokens=items), new_request_id())
    start = time.perf_counter()
    async with node.rpc.stream(process_prompt, prompt) as answer:
        got = 0
        async for _ in answer:
            got += 1
    assert got == items == answer.end.usage.completion_tokens
    return items / (time.perf_counter() - start)


async def serve_echoes(settings: NodeSettings, stream_settings: NodeSettings) -> None:
    async with member(settings, Role.METRICS) as node, member(stream_settings, Role.WORKER) as worker:
        await node.serve(Echo())
        await worker.serve(Stream())
        await processes.serve_until_stdin_ends()


async def _serve(url: str, metrics_key: str, worker_key: str, plain_port: str, grpc_port: str) -> None:
    plain = await nats.connect(f"nats://127.0.0.1:{plain_port}")

    async def respond(message: Msg) -> None:
        await message.respond(message.data)

    await plain.subscribe("plain", cb=respond)

    async def echo(request: bytes, context: object) -> bytes:
        return request

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("e", {"Echo": grpc.unary_unary_rpc_method_handler(echo)})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    await server.start()
    await serve_echoes(*(NodeSettings(mesh=MESH, nats_url=url, node_key_file=Path(key)) for key in (metrics_key, worker_key)))


async def _measure_calls(settings: NodeSettings, plain_port: int, grpc_port: int, rounds: int) -> list[report.Row]:
    plain = await nats.connect(f"nats://127.0.0.1:{plain_port}")
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}")
    echo = channel.unary_unary("/e/Echo")
    async with member(settings, Role.GATEWAY) as node:
        everyone: dict[str, Call] = {
            "mesh": echo_call(node),
            "nats-py": lambda: plain.request("plain", BODY),
            "grpc.aio": lambda: echo(BODY),
        }
        found = {name: Figures() for name in everyone}
        for _ in range(rounds):
            for name, call in everyone.items():
                found[name].add_latencies(await calls.one_by_one(call))
                found[name].rate.append(await calls.rate_of_many(call, IN_FLIGHT, EACH))
            found["mesh"].stream.append(await stream_rate(node, STREAM_ITEMS))
    await plain.close()
    await channel.close()
    mesh, bare, grpc_aio = (found[name] for name in everyone)
    return [
        calls.compare("unary 100 B, p50", mesh.p50, "us", "nats-py", bare.p50, at_most=1.0),
        calls.compare("unary 100 B, p99", mesh.p99, "us", "nats-py", bare.p99),
        calls.compare("unary, 32 in flight", mesh.rate, "calls/s", "grpc.aio", grpc_aio.rate, at_least=6),
        calls.compare("unary, 32 in flight", mesh.rate, "calls/s", "nats-py", bare.rate, at_least=1.4),
        report.alone("stream, credit on", statistics.median(mesh.stream), "items/s", at_least=220_000),
    ]


async def _measure(table: report.Table, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder))
        keys = {role: server.key(role, role) for role in (Role.METRICS, Role.WORKER, Role.GATEWAY)}
        server.start()
        plain_port, grpc_port = free_port(), free_port()
        command = [server.binary(), "-a", "127.0.0.1", "-p", str(plain_port)]
        plain = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: ASYNC220 - before anything is measured
        try:
            with processes.serving("mesh", server.url, keys[Role.METRICS], keys[Role.WORKER], plain_port, grpc_port):
                settings = NodeSettings(mesh=MESH, nats_url=server.url, node_key_file=keys[Role.GATEWAY])
                table.add(await _measure_calls(settings, plain_port, grpc_port, rounds))
        finally:
            plain.terminate()
            plain.wait()
            server.kill()


if __name__ == "__main__":
    report.run(__doc__, _measure, limits=(300.0, 120.0), serve=_serve, rounds=(3, 3))
