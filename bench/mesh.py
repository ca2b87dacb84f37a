"""The mesh's own cost: a 100-byte call and a stream between two processes.

calls    against grpc.aio over loopback TCP
swarm    over Hyperswarm against NATS; the nodes have certificates and meet on a DHT on loopback

All servers run in one other process, with uvloop. Rounds alternate, because the speed of shared cores drifts.
"""

import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import ClassVar, NamedTuple

import grpc

from bench import calls, nodes, processes, report
from bench.report import Options, Rows
from shared import rpc
from shared.api import metrics
from shared.api.generation import GenerationEnd, Usage
from shared.api.inference import Chunk, ModelConfig, ProcessPrompt, process_prompt
from shared.api.method import Nothing
from shared.context import new_request_id
from shared.node.member import Node, member
from shared.types import FinishReason, ModelName, Role
from tests.swarmnet import swarmnet
from tests.testnet import IdleService, free_port, until

BODY = b"x" * 100
STREAM_ITEMS, SWARM_STREAM_ITEMS = 300_000, 100_000
MEET_SECONDS = 10.0


class Echo(IdleService):
    """A service that answers immediately, so that only the mesh is measured."""

    role: ClassVar[Role] = Role.METRICS

    @rpc.serves(metrics.record_metric)
    async def record(self, request: metrics.RecordMetric, call: rpc.RpcCall) -> Nothing:
        return Nothing()


class Stream(IdleService):
    @rpc.serves(process_prompt)
    async def process(self, request: ProcessPrompt, stream: rpc.StreamCall[Chunk]) -> GenerationEnd:
        count = request.model_config.max_tokens or 0
        chunk = Chunk("tok", (1,))
        for _ in range(count):
            await stream.send(chunk)
        return GenerationEnd(FinishReason.LENGTH, Usage(0, count))


async def _serve(url: str, metrics_key: str, worker_key: str, bootstrap: str, *grpc_port: str) -> None:
    async with AsyncExitStack() as opened:
        for service, key in ((Echo(), metrics_key), (Stream(), worker_key)):
            node = await opened.enter_async_context(member(nodes.settings_of(url, key, bootstrap), service.role))
            await node.serve(service)
        # A server ends when nothing refers to it.
        _kept = [await _serve_grpc(port) for port in grpc_port]
        await processes.serve_until_stdin_ends()


async def _serve_grpc(port: str) -> grpc.aio.Server:
    async def echo(request: bytes, context: object) -> bytes:
        return request

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("e", {"Echo": grpc.unary_unary_rpc_method_handler(echo)})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server


class Served(NamedTuple):
    """The other process, and a node that can call it."""

    node: Node
    grpc_port: int


@asynccontextmanager
async def _served(_options: Options) -> AsyncIterator[Served]:
    grpc_port = free_port()
    with nodes.nats_server(Role.METRICS, Role.WORKER, Role.GATEWAY) as (url, (*served, own)):
        async with (
            processes.serving("mesh", url, *served, "", grpc_port),
            member(nodes.settings_of(url, own), Role.GATEWAY) as node,
        ):
            yield Served(node, grpc_port)


async def _figures_of_mesh(node: Node, items: int) -> dict[str, float]:
    """Measure calls and the items a second of a stream."""
    request = metrics.RecordMetric("x" * 60, 1.0, {"label": "y" * 20})
    figures = await calls.figures_of(lambda: node.rpc.call(metrics.record_metric, request))
    prompt = ProcessPrompt("", ModelConfig(model=ModelName("m"), max_tokens=items), new_request_id())
    start = time.perf_counter()
    async with node.rpc.stream(process_prompt, prompt) as answer:
        got = sum([1 async for _ in answer])
    assert got == items == answer.end.usage.completion_tokens
    return {**figures, "stream": items / (time.perf_counter() - start)}


async def _measure_calls(rows: Rows, served: Served, options: Options) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        ways: dict[str, Callable[[], Awaitable[dict[str, float]]]] = {
            "mesh": partial(_figures_of_mesh, served.node, STREAM_ITEMS),
            "grpc.aio": partial(calls.figures_of, partial(channel.unary_unary("/e/Echo"), BODY)),
        }
        mesh, grpc_aio = report.by_name(await report.take_turns(ways, options.rounds)).values()
    rows.paired("unary 100 B, p50", mesh["p50"], "us", "grpc.aio", grpc_aio["p50"])
    rows.paired("unary 100 B, p99", mesh["p99"], "us", "grpc.aio", grpc_aio["p99"])
    rows.paired("unary, 32 in flight", mesh["rate"], "calls/s", "grpc.aio", grpc_aio["rate"], at_least=4)
    rows.alone("stream, credit on", statistics.median(mesh["stream"]), "items/s", at_least=220_000)


async def _measure_swarm(rows: Rows, _served: Served, options: Options) -> None:
    async with swarmnet(nats=True) as net, AsyncExitStack() as opened:
        assert net.server is not None
        bootstrap, callers = ",".join(str(address) for address in net.bootstrap), dict[str, Node]()
        for name, url, known in (("swarm", "none", bootstrap), ("NATS", net.server.url, "")):
            *served, own = (net.join(f"{name}-{role}", role) for role in (Role.METRICS, Role.WORKER, Role.GATEWAY))
            await opened.enter_async_context(processes.serving("mesh", url, *served, known))
            callers[name] = await opened.enter_async_context(member(nodes.settings_of(url, own, known), Role.GATEWAY))
        for node in callers.values():
            usable = node.directory.usable
            await until(lambda usable=usable: usable(Role.METRICS) and usable(Role.WORKER), seconds=MEET_SECONDS)
        ways = {name: partial(_figures_of_mesh, node, SWARM_STREAM_ITEMS) for name, node in callers.items()}
        found = report.by_name(await report.take_turns(ways, options.rounds))
    rows.alone("unary, 32 in flight", statistics.median(found["swarm"]["rate"]), "calls/s", at_least=15_000)
    for claim, what, unit in (
        ("unary 100 B, p50", "p50", "us"),
        ("unary 100 B, p99", "p99", "us"),
        ("unary, 32 in flight", "rate", "calls/s"),
        ("stream, credit on", "stream", "items/s"),
    ):
        rows.paired(claim, found["swarm"][what], unit, "over NATS", found["NATS"][what])


if __name__ == "__main__":
    parts: dict[str, report.Part] = {"calls": _measure_calls, "swarm": _measure_swarm}
    report.run(__doc__, parts, limits=(900.0, 300.0), setting=_served, serve=_serve, rounds=(5, 3))
