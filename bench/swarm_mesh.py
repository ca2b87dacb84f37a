"""What the mesh itself costs over Hyperswarm: calls between two services, a stream, and a fresh `aicli infer`; beside the same over NATS.

    python -m bench.swarm_mesh [--quick] [--rounds 3] [--json FILE]

The nodes are certified and meet on a DHT on loopback. Services run on uvloop, as always; each round is followed by the rival's.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import uvloop

from bench import report
from bench.mesh import Echo, Stream
from shared.api import metrics
from shared.api.inference import ModelConfig, ProcessPrompt, process_prompt
from shared.context import new_request_id
from shared.node.member import Node, member
from shared.node.settings import NodeSettings
from shared.types import ModelName, Role
from tests import stacks
from tests.swarmnet import SwarmNet, swarmnet
from tests.testnet import MESH, until

WARM_UP, ONE_BY_ONE, IN_FLIGHT, EACH = 300, 2000, 32, 250
STREAM_ITEMS = 100_000
MEET_SECONDS = 10.0
FRESH_PROCESSES = 5
QUICK_ROUNDS = 1

Call = Callable[[], Awaitable[object]]
median = statistics.median


async def _serve(settings: NodeSettings, stream_settings: NodeSettings) -> None:
    async with member(settings, Role.METRICS) as node, member(stream_settings, Role.WORKER) as worker:
        await node.serve(Echo())
        await worker.serve(Stream())
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def _settings(url: str, key: str, bootstrap: str) -> NodeSettings:
    return NodeSettings(mesh=MESH, nats_url=url, node_key_file=Path(key), dht_bootstrap=tuple(filter(None, bootstrap.split(","))))


class Road:
    """Figures of one transport."""

    def __init__(self, node: Node) -> None:
        request = metrics.RecordMetric("x" * 60, 1.0, {"label": "y" * 20})
        self._node = node
        self._call: Call = lambda: node.rpc.call(metrics.record_metric, request)
        self.p50: list[float] = []
        self.p99: list[float] = []
        self.rate: list[float] = []
        self.items: list[float] = []

    async def meet(self) -> None:
        """Until both servers are known."""
        await until(lambda: all(self._node.directory.usable(role) for role in (Role.METRICS, Role.WORKER)), seconds=MEET_SECONDS)

    async def measure(self) -> None:
        for _ in range(WARM_UP):
            await self._call()
        took = []
        for _ in range(ONE_BY_ONE):
            start = time.perf_counter()
            await self._call()
            took.append((time.perf_counter() - start) * 1e6)
        self.p50.append(report.percentile(took, 0.5))
        self.p99.append(report.percentile(took, 0.99))
        start = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(self._many())
        self.rate.append(IN_FLIGHT * EACH / (time.perf_counter() - start))
        self.items.append(await self._stream())

    async def _many(self) -> None:
        for _ in range(EACH):
            await self._call()

    async def _stream(self) -> float:
        prompt = ProcessPrompt("", ModelConfig(model=ModelName("m"), max_tokens=STREAM_ITEMS), new_request_id())
        start = time.perf_counter()
        async with self._node.rpc.stream(process_prompt, prompt) as answer:
            async for _ in answer:
                pass
        return STREAM_ITEMS / (time.perf_counter() - start)


def _start(stack: ExitStack, *arguments: str) -> None:
    """The servers, in one further process; ready when this returns."""
    command = [sys.executable, "-m", "bench.swarm_mesh", "--serve", *arguments]
    process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    stack.callback(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"


async def measure_calls(rounds: int) -> list[report.Row]:
    async with swarmnet(nats=True) as net:
        assert net.server is not None
        bootstrap = ",".join(str(address) for address in net.bootstrap)
        with ExitStack() as stack:
            swarm_keys, nats_keys = _keys(net, "swarm"), _keys(net, "nats")
            for url, keys, nodes in (("none", swarm_keys, bootstrap), (net.server.url, nats_keys, "")):
                await asyncio.to_thread(_start, stack, url, str(keys[Role.METRICS]), str(keys[Role.WORKER]), nodes)
            over_swarm = _settings("none", str(swarm_keys[Role.GATEWAY]), bootstrap)
            over_nats = _settings(net.server.url, str(nats_keys[Role.GATEWAY]), "")
            async with member(over_swarm, Role.GATEWAY) as one, member(over_nats, Role.GATEWAY) as other:
                swarm, nats = Road(one), Road(other)
                await swarm.meet()
                await nats.meet()
                for _ in range(rounds):
                    await swarm.measure()
                    await nats.measure()
    return [
        report.against("unary 100 B, p50", median(swarm.p50), "us", "over NATS", median(nats.p50)),
        report.against("unary 100 B, p99", median(swarm.p99), "us", "over NATS", median(nats.p99)),
        report.alone("unary, 32 in flight", median(swarm.rate), "calls/s", at_least=15_000),
        report.against("unary, 32 in flight", median(swarm.rate), "calls/s", "over NATS", median(nats.rate)),
        report.against("stream, credit on", median(swarm.items), "items/s", "over NATS", median(nats.items)),
    ]


def _keys(net: SwarmNet, name: str) -> dict[Role, Path]:
    return {role: net.join(f"{name}-{role}", role) for role in (Role.METRICS, Role.WORKER, Role.GATEWAY)}


async def measure_infer() -> report.Row:
    """From the start of a fresh `aicli infer`, over Hyperswarm alone, to the first byte of the answer."""
    took = []
    with tempfile.TemporaryDirectory(prefix="aimesh-bench-") as folder:
        async with stacks.stack(AIMESH_ECHO="1", INFERENCE_BACKEND="echo", XDG_CONFIG_HOME=folder) as running:
            ticket = (await running.aicli("admin", "tickets", "create", "--role", "client", "--json")).json()["ticket"]
            connected = await running.aicli("mesh", "connect", ticket, "--name", "cafe", "--api-key-stdin", stdin=running.api_key + "\n")
            assert connected.status == 0, connected.err
            for _ in range(FRESH_PROCESSES):
                start = time.perf_counter()
                process = await running.start_aicli("--profile", "cafe", "infer", "--model", "echo", "hello")
                assert process.stdin is not None
                process.stdin.close()
                assert process.stdout is not None
                first = await process.stdout.read(1)
                took.append(time.perf_counter() - start)
                _, errors = await process.communicate()
                assert first, json.dumps(errors.decode())
    return report.alone("fresh `aicli infer` to its first token", median(took), "s", at_most=1.5)


async def measure(table: report.Table, rounds: int) -> None:
    table.expect(("calls", "aicli infer"))
    with table.part("calls") as rows:
        rows.extend(await measure_calls(rounds))
    with table.part("aicli infer") as rows:
        rows.append(await measure_infer())


def main() -> None:
    parser = report.arguments(__doc__, limits=(600.0, 180.0), quick=f"{QUICK_ROUNDS} round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with report.opened(options) as table:
        table.run(measure(table, QUICK_ROUNDS if options.quick else options.rounds))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        url, metrics_key, worker_key, nodes = sys.argv[2:]
        uvloop.run(_serve(_settings(url, metrics_key, nodes), _settings(url, worker_key, nodes)))
    else:
        main()
