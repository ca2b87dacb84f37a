"""The mesh's own cost: a 100-byte unary call and a stream between two processes, against bare nats-py and grpc.aio.

    python -m bench.mesh [--quick] [--rounds 3] [--json FILE]

Every side runs its server in one further process, over the same NATS server or over loopback TCP, with uvloop. The rounds
alternate and each figure is its median, because two shared cores drift.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import grpc
import nats
import uvloop
from nats.aio.msg import Msg

from bench import report
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
WARM_UP, ONE_BY_ONE, IN_FLIGHT, EACH = 300, 2000, 32, 250
STREAM_ITEMS = 300_000
#: A round takes a few seconds, and the median of fewer is a guess.
QUICK_ROUNDS = 3

One = Callable[[], Awaitable[object]]


class Echo:
    """Answers at once: what is left is the mesh."""

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


async def _serve(settings: NodeSettings, stream_settings: NodeSettings, plain_port: int, grpc_port: int) -> None:
    """The other process: every rival's server at once, idle but for the one that is asked."""
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
    async with member(settings, Role.METRICS) as node, member(stream_settings, Role.WORKER) as worker:
        await node.serve(Echo())
        await worker.serve(Stream())
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def _one_by_one(one: One) -> list[float]:
    for _ in range(WARM_UP):
        await one()
    took = []
    for _ in range(ONE_BY_ONE):
        start = time.perf_counter()
        await one()
        took.append((time.perf_counter() - start) * 1e6)
    return took


async def _in_flight(one: One) -> float:
    async def many() -> None:
        for _ in range(EACH):
            await one()

    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(IN_FLIGHT):
            tasks.create_task(many())
    return IN_FLIGHT * EACH / (time.perf_counter() - start)


async def _stream(node: Node, items: int) -> float:
    prompt = ProcessPrompt("", ModelConfig(model=ModelName("m"), max_tokens=items), new_request_id())
    start = time.perf_counter()
    async with node.rpc.stream(process_prompt, prompt) as answer:
        got = 0
        async for _ in answer:
            got += 1
    assert got == items == answer.end.usage.completion_tokens
    return items / (time.perf_counter() - start)


async def _measure(settings: NodeSettings, plain_port: int, grpc_port: int, rounds: int) -> list[report.Row]:
    plain = await nats.connect(f"nats://127.0.0.1:{plain_port}")
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}")
    echo = channel.unary_unary("/e/Echo")
    async with member(settings, Role.GATEWAY) as node:
        request = metrics.RecordMetric("x" * 60, 1.0, {"label": "y" * 20})
        rivals: dict[str, One] = {
            "mesh": lambda: node.rpc.call(metrics.record_metric, request),
            "nats-py": lambda: plain.request("plain", BODY),
            "grpc.aio": lambda: echo(BODY),
        }
        p50: dict[str, list[float]] = {name: [] for name in rivals}
        p99: dict[str, list[float]] = {name: [] for name in rivals}
        rate: dict[str, list[float]] = {name: [] for name in rivals}
        streamed = []
        for _ in range(rounds):
            for name, one in rivals.items():
                took = await _one_by_one(one)
                p50[name].append(report.percentile(took, 0.5))
                p99[name].append(report.percentile(took, 0.99))
                rate[name].append(await _in_flight(one))
            streamed.append(await _stream(node, STREAM_ITEMS))
    await plain.close()
    await channel.close()
    middle = statistics.median
    return [
        report.against("unary 100 B, p50", middle(p50["mesh"]), "us", "nats-py", middle(p50["nats-py"]), at_most=1.0),
        report.against("unary 100 B, p99", middle(p99["mesh"]), "us", "nats-py", middle(p99["nats-py"])),
        report.against("unary, 32 in flight", middle(rate["mesh"]), "calls/s", "grpc.aio", middle(rate["grpc.aio"]), at_least=6),
        report.against("unary, 32 in flight", middle(rate["mesh"]), "calls/s", "nats-py", middle(rate["nats-py"]), at_least=1.4),
        report.alone("stream, credit on", middle(streamed), "items/s", at_least=220_000),
    ]


def main() -> None:
    parser = report.arguments(__doc__, limits=(300.0, 120.0), quick=f"{QUICK_ROUNDS} rounds")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with report.opened(options) as table, tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder))
        keys = {role: server.key(role, role) for role in (Role.METRICS, Role.WORKER, Role.GATEWAY)}
        server.start()
        plain_port, grpc_port = free_port(), free_port()
        plain = subprocess.Popen([server.binary(), "-a", "127.0.0.1", "-p", str(plain_port)], stderr=subprocess.DEVNULL)
        arguments = [server.url, str(keys[Role.METRICS]), str(keys[Role.WORKER]), str(plain_port), str(grpc_port)]
        other = subprocess.Popen(
            [sys.executable, "-m", "bench.mesh", "--serve", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
        )
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"ready\n"
            settings = NodeSettings(mesh=MESH, nats_url=server.url, node_key_file=keys[Role.GATEWAY])
            rounds = QUICK_ROUNDS if options.quick else options.rounds
            table.add(table.run(_measure(settings, plain_port, grpc_port, rounds)))
        finally:
            for process in (other, plain):
                process.terminate()
                process.wait()
            server.kill()


def _serve_main(url: str, metrics_key: str, worker_key: str, plain_port: str, grpc_port: str) -> None:
    settings, stream_settings = (NodeSettings(mesh=MESH, nats_url=url, node_key_file=Path(key)) for key in (metrics_key, worker_key))
    uvloop.run(_serve(settings, stream_settings, int(plain_port), int(grpc_port)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        _serve_main(*sys.argv[2:])
    else:
        main()
