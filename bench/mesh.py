"""The mesh's own cost: a 100-byte call and a stream between two processes, against bare nats-py and grpc.aio.

All servers run in one other process, over the same NATS server or over loopback TCP, with uvloop. Rounds alternate and each figure is a
median, because the speed of shared cores drifts.
"""

import statistics
import time
from collections import defaultdict
from typing import ClassVar

import grpc
import nats
from nats.aio.msg import Msg

from bench import calls, nodes, processes, report
from bench.calls import Call
from bench.nodes import IdleService
from bench.report import Options, Rows
from shared import rpc
from shared.api import metrics
from shared.api.generation import Generation, Usage
from shared.api.inference import Chunk, ModelConfig, ProcessPrompt, process_prompt
from shared.api.method import Nothing
from shared.context import new_request_id
from shared.node.member import Node, member
from shared.node.settings import NodeSettings
from shared.types import FinishReason, ModelName, Role
from tests.testnet import free_port

BODY = b"x" * 100
IN_FLIGHT, EACH = 32, 250
STREAM_ITEMS = 300_000


class Echo(IdleService):
    """A service that answers immediately, so that only the mesh is measured."""

    role: ClassVar[Role] = Role.METRICS

    @rpc.serves(metrics.record_metric)
    async def record(self, request: metrics.RecordMetric, call: rpc.RpcCall) -> Nothing:
        return Nothing()


class Stream(IdleService):
    @rpc.serves(process_prompt)
    async def process(self, request: ProcessPrompt, stream: rpc.StreamCall[Chunk]) -> Generation:
        count = request.model_config.max_tokens or 0
        chunk = Chunk("tok", (1,))
        for _ in range(count):
            await stream.send(chunk)
        return Generation(FinishReason.LENGTH, Usage(0, count))


async def serve_echoes(settings: NodeSettings, stream_settings: NodeSettings) -> None:
    async with member(settings, Role.METRICS) as node, member(stream_settings, Role.WORKER) as worker:
        await node.serve(Echo())
        await worker.serve(Stream())
        await processes.serve_until_stdin_ends()


class Figures(defaultdict[tuple[str, str], list[float]]):
    """The figures of each round, by contender and by what was measured."""

    def __init__(self) -> None:
        super().__init__(list)

    async def measure_calls(self, name: str, call: Call) -> None:
        took = await calls.one_by_one(call)
        self[name, "p50"].append(report.percentile(took, 0.5))
        self[name, "p99"].append(report.percentile(took, 0.99))
        self[name, "rate"].append(await calls.many_at_once(call, IN_FLIGHT, EACH))

    async def measure_mesh(self, name: str, node: Node, items: int) -> None:
        """Measure calls and the items a second of a stream."""
        request = metrics.RecordMetric("x" * 60, 1.0, {"label": "y" * 20})
        await self.measure_calls(name, lambda: node.rpc.call(metrics.record_metric, request))
        prompt = ProcessPrompt("", ModelConfig(model=ModelName("m"), max_tokens=items), new_request_id())
        start = time.perf_counter()
        async with node.rpc.stream(process_prompt, prompt) as answer:
            got = 0
            async for _ in answer:
                got += 1
        assert got == items == answer.end.usage.completion_tokens
        self[name, "stream"].append(items / (time.perf_counter() - start))


async def _serve(url: str, metrics_key: str, worker_key: str, plain_url: str, grpc_port: str) -> None:
    plain = await nats.connect(plain_url)

    async def respond(message: Msg) -> None:
        await message.respond(message.data)

    async def echo(request: bytes, context: object) -> bytes:
        return request

    await plain.subscribe("plain", cb=respond)
    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("e", {"Echo": grpc.unary_unary_rpc_method_handler(echo)})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    await server.start()
    await serve_echoes(nodes.settings_of(url, metrics_key), nodes.settings_of(url, worker_key))


async def _measure(rows: Rows, _shared: None, options: Options) -> None:
    found, grpc_port = Figures(), free_port()
    with nodes.nats_server() as (plain_url, _), nodes.nats_server(Role.METRICS, Role.WORKER, Role.GATEWAY) as (url, (*served, own)):
        async with (
            processes.serving("mesh", url, *served, plain_url, grpc_port),
            member(nodes.settings_of(url, own), Role.GATEWAY) as node,
            await nats.connect(plain_url) as plain,
            grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel,
        ):
            echo = channel.unary_unary("/e/Echo")
            for _ in range(options.rounds):
                await found.measure_mesh("mesh", node, STREAM_ITEMS)
                await found.measure_calls("nats-py", lambda: plain.request("plain", BODY))
                await found.measure_calls("grpc.aio", lambda: echo(BODY))
    rows.medians("unary 100 B, p50", found["mesh", "p50"], "us", "nats-py", found["nats-py", "p50"], at_most=1.0)
    rows.medians("unary 100 B, p99", found["mesh", "p99"], "us", "nats-py", found["nats-py", "p99"])
    rows.medians("unary, 32 in flight", found["mesh", "rate"], "calls/s", "grpc.aio", found["grpc.aio", "rate"], at_least=6)
    rows.medians("unary, 32 in flight", found["mesh", "rate"], "calls/s", "nats-py", found["nats-py", "rate"], at_least=1.4)
    rows.alone("stream, credit on", statistics.median(found["mesh", "stream"]), "items/s", at_least=220_000)


if __name__ == "__main__":
    report.run(__doc__, {"calls": _measure}, limits=(300.0, 120.0), serve=_serve, rounds=(3, 3))
