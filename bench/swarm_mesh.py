"""The mesh over Hyperswarm: calls between two services, a stream, and a fresh `aicli infer`, against the same over NATS.

The nodes have certificates and meet on a DHT on loopback. Services run on uvloop; rounds alternate.
"""

import statistics
import tempfile
from contextlib import AsyncExitStack

from bench import mesh, nodes, processes, report, tenants
from bench.report import Options, Rows
from shared.node.member import Node, member
from shared.types import Role
from tests import stacks
from tests.swarmnet import swarmnet
from tests.testnet import until

STREAM_ITEMS = 100_000
MEET_SECONDS = 10.0
FRESH_PROCESSES = 5


async def _serve(url: str, metrics_key: str, worker_key: str, bootstrap: str) -> None:
    await mesh.serve_echoes(nodes.settings_of(url, metrics_key, bootstrap), nodes.settings_of(url, worker_key, bootstrap))


async def _meet(node: Node) -> None:
    await until(lambda: all(node.directory.usable(role) for role in (Role.METRICS, Role.WORKER)), seconds=MEET_SECONDS)


async def _measure_calls(rows: Rows, _shared: None, options: Options) -> None:
    found = mesh.Figures()
    async with swarmnet(nats=True) as net, AsyncExitStack() as opened:
        assert net.server is not None
        bootstrap, callers = ",".join(str(address) for address in net.bootstrap), dict[str, Node]()
        for name, url, known in (("swarm", "none", bootstrap), ("NATS", net.server.url, "")):
            *served, own = (net.join(f"{name}-{role}", role) for role in (Role.METRICS, Role.WORKER, Role.GATEWAY))
            await opened.enter_async_context(processes.serving("swarm_mesh", url, *served, known))
            callers[name] = await opened.enter_async_context(member(nodes.settings_of(url, own, known), Role.GATEWAY))
        for node in callers.values():
            await _meet(node)
        for _ in range(options.rounds):
            for name, node in callers.items():
                await found.measure_mesh(name, node, STREAM_ITEMS)
    rows.medians("unary 100 B, p50", found["swarm", "p50"], "us", "over NATS", found["NATS", "p50"])
    rows.medians("unary 100 B, p99", found["swarm", "p99"], "us", "over NATS", found["NATS", "p99"])
    rows.alone("unary, 32 in flight", statistics.median(found["swarm", "rate"]), "calls/s", at_least=15_000)
    rows.medians("unary, 32 in flight", found["swarm", "rate"], "calls/s", "over NATS", found["NATS", "rate"])
    rows.medians("stream, credit on", found["swarm", "stream"], "items/s", "over NATS", found["NATS", "stream"])


async def _measure_infer(rows: Rows, _shared: None, _options: Options) -> None:
    """Time a fresh `aicli infer`, over Hyperswarm alone, from its start to the first byte of the answer."""
    with tempfile.TemporaryDirectory(prefix="aimesh-bench-") as folder:
        async with stacks.stack(AIMESH_ECHO="1", INFERENCE_BACKEND="echo", XDG_CONFIG_HOME=folder) as running:
            ticket = (await running.aicli("admin", "tickets", "create", "--role", "client", "--json")).json()["ticket"]
            connected = await running.aicli("mesh", "connect", ticket, "--name", "cafe", "--api-key-stdin", stdin=running.api_key + "\n")
            assert connected.status == 0, connected.err
            words = ("--profile", "cafe", "infer", "--model", "echo", "hello")
            took = [await tenants.first_byte(running, *words) for _ in range(FRESH_PROCESSES)]
    rows.alone("fresh `aicli infer` to its first token", statistics.median(took), "s", at_most=1.5)


if __name__ == "__main__":
    report.run(__doc__, {"calls": _measure_calls, "aicli infer": _measure_infer}, limits=(600.0, 180.0), serve=_serve, rounds=(3, 1))
