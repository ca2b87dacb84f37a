"""The mesh over Hyperswarm: calls between two services, a stream, and a fresh `aicli infer`, against the same over NATS.

    python -m bench.swarm_mesh [--quick] [--rounds 3] [--json FILE]

The nodes have certificates and meet on a DHT on loopback. Services run on uvloop; rounds alternate.
"""

import asyncio
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench import calls, mesh, processes, report
from bench.calls import Figures
from shared.node.member import Node, member
from shared.node.settings import NodeSettings
from shared.types import Role
from tests import stacks
from tests.swarmnet import SwarmNet, swarmnet
from tests.testnet import MESH, until

STREAM_ITEMS = 100_000
MEET_SECONDS = 10.0
FRESH_PROCESSES = 5


def _settings(url: str, key: Path | str, bootstrap: str) -> NodeSettings:
    return NodeSettings(mesh=MESH, nats_url=url, node_key_file=Path(key), dht_bootstrap=tuple(filter(None, bootstrap.split(","))))


async def _serve(url: str, metrics_key: str, worker_key: str, bootstrap: str) -> None:
    await mesh.serve_echoes(_settings(url, metrics_key, bootstrap), _settings(url, worker_key, bootstrap))


async def _meet(node: Node) -> None:
    await until(lambda: all(node.directory.usable(role) for role in (Role.METRICS, Role.WORKER)), seconds=MEET_SECONDS)


async def _measure_round(node: Node, found: Figures) -> None:
    call = mesh.echo_call(node)
    found.add_latencies(await calls.one_by_one(call))
    found.rate.append(await calls.rate_of_many(call, mesh.IN_FLIGHT, mesh.EACH))
    found.stream.append(await mesh.stream_rate(node, STREAM_ITEMS))


async def _measure_calls(rounds: int) -> list[report.Row]:
    async with swarmnet(nats=True) as net:
        assert net.server is not None
        bootstrap = ",".join(str(address) for address in net.bootstrap)
        swarm, nats = Figures(), Figures()
        with ExitStack() as stack:
            swarm_keys, nats_keys = _keys(net, "swarm"), _keys(net, "nats")
            for url, keys, nodes in (("none", swarm_keys, bootstrap), (net.server.url, nats_keys, "")):
                servers = processes.serving("swarm_mesh", url, keys[Role.METRICS], keys[Role.WORKER], nodes)
                await asyncio.to_thread(stack.enter_context, servers)
            over_swarm = _settings("none", swarm_keys[Role.GATEWAY], bootstrap)
            over_nats = _settings(net.server.url, nats_keys[Role.GATEWAY], "")
            async with member(over_swarm, Role.GATEWAY) as one, member(over_nats, Role.GATEWAY) as other:
                await _meet(one)
                await _meet(other)
                for _ in range(rounds):
                    await _measure_round(one, swarm)
                    await _measure_round(other, nats)
    return [
        calls.compare("unary 100 B, p50", swarm.p50, "us", "over NATS", nats.p50),
        calls.compare("unary 100 B, p99", swarm.p99, "us", "over NATS", nats.p99),
        report.alone("unary, 32 in flight", statistics.median(swarm.rate), "calls/s", at_least=15_000),
        calls.compare("unary, 32 in flight", swarm.rate, "calls/s", "over NATS", nats.rate),
        calls.compare("stream, credit on", swarm.stream, "items/s", "over NATS", nats.stream),
    ]


def _keys(net: SwarmNet, name: str) -> dict[Role, Path]:
    return {role: net.join(f"{name}-{role}", role) for role in (Role.METRICS, Role.WORKER, Role.GATEWAY)}


async def _measure_infer() -> report.Row:
    """Time a fresh `aicli infer`, over Hyperswarm alone, from its start to the first byte of the answer."""
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
    return report.alone("fresh `aicli infer` to its first token", statistics.median(took), "s", at_most=1.5)


async def _measure(table: report.Table, rounds: int) -> None:
    table.expect(("calls", "aicli infer"))
    with table.part("calls") as rows:
        rows.extend(await _measure_calls(rounds))
    with table.part("aicli infer") as rows:
        rows.append(await _measure_infer())


if __name__ == "__main__":
    report.run(__doc__, _measure, limits=(600.0, 180.0), serve=_serve, rounds=(3, 1))
