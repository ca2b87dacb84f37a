"""Logging in at NATS servers that ask auth, against servers with a static list of users.

connect    one node after the other: by auth callout, with a certificate, and as a static user
round_trip a PING over each of these connections, which must cost the same
storm      200 nodes in 4 processes at once, over a cluster of 3 servers, until one node has heard all of them

auth's part runs in another process: it decides and signs as auth does, without its stores.
"""

import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import calls, nodes, processes, report
from bench.report import Options, Rows
from services.auth.nodes.nats_callout import LoginTrust
from shared.identity import certificates, login_tokens, node_keys
from shared.identity.certificates import Subject
from shared.node import membership_file
from shared.node.member import member
from shared.node.membership_file import MembershipFile
from shared.transports.nats.nats_client import NatsClient
from shared.types import Role
from stack import secret_files, stack_home
from stack.servers import nats_server
from stack.stack_home import StackHome
from tests import logins
from tests.shared.transports.nats.real_servers import cluster
from tests.testnet import MESH, IdleService, until

STORM_PROCESSES, STORM_SERVERS, STORM_SECONDS = 4, 3, 120.0
PINGS = 500


async def _serve(kind: str, *arguments: str) -> None:
    await (_answer_logins if kind == "auth" else _run_nodes)(*arguments)


async def _answer_logins(root: str, url: str) -> None:
    home = stack_home.locate({"AIMESH_HOME": root})
    authority = node_keys.load_authority(home.secrets / "mesh_ca.nk").id
    async with logins.answered(home, url, LoginTrust((authority,), frozenset(), {})):
        await processes.serve_until_stdin_ends()


async def _run_nodes(url: str, *keys: str) -> None:
    """Wait for a line, then start all nodes at once."""
    print("{}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    stop = asyncio.Event()

    async def run(key: str) -> None:
        # Each begins with another server of the cluster.
        servers = url.split(",")
        random.shuffle(servers)
        async with member(nodes.settings_of(",".join(servers), key), Role.WORKER) as node:
            await node.serve(IdleService())
            await stop.wait()

    async with asyncio.TaskGroup() as tasks:
        for key in keys:
            tasks.create_task(run(key))
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        stop.set()


@dataclass(frozen=True)
class Logins:
    home: StackHome
    url: str

    def certified(self, name: str, role: Role) -> Path:
        """Return the key file of a new node with a certificate beside it."""
        key_file = self.home.root / f"{name}.nk"
        key_file.touch(mode=0o600)
        key_file.write_bytes(node_keys.new_seed())
        authority = node_keys.load_authority(self.home.secrets / "mesh_ca.nk")
        body = certificates.issue(authority, Subject(node_keys.load(key_file).id, role), time.time())
        membership_file.save(key_file.with_suffix(".mesh"), MembershipFile(MESH, role, certificate=body, authorities=(authority.id,)))
        return key_file


@asynccontextmanager
async def _servers(number: int) -> AsyncIterator[Logins]:
    """Servers that ask auth, and auth."""
    with tempfile.TemporaryDirectory(prefix="aimesh-bench-") as folder:
        home = stack_home.locate({"AIMESH_HOME": folder})
        stack_home.ensure_folders(home)
        secret_files.ensure(home)
        nats_server.ensure(home, MESH, 0, "callout")
        configuration = (home.nats / "users.conf").read_text() + "max_payload: 2MB\nmax_control_line: 16KB\n"
        with cluster(home.root, number, configuration) as servers:
            url = ",".join(server.url for server in servers)
            async with processes.serving("nats_login", "auth", home.root, url):
                yield Logins(home, url)


def _client(url: str, key_file: Path) -> NatsClient:
    """With its certificate, if there is one beside the key."""
    found = membership_file.load(key_file.with_suffix(".mesh"))
    token = login_tokens.without if found is None else lambda _nonce: login_tokens.of_certificate(found.certificate)
    return NatsClient(url, node_keys.load(key_file), name="bench", token=token)


async def _login_ms(url: str, key_file: Path) -> float:
    client = _client(url, key_file)
    took = await calls.seconds_of(partial(client.connect, deadline_seconds=10))
    await client.close()
    return 1000 * took


async def _ping_ms(client: NatsClient) -> float:
    return 1000 * await calls.seconds_of(client.flush)


async def _measure_connecting(rows: Rows, _shared: None, options: Options) -> None:
    async with _servers(1) as place:
        with nodes.nats_server(Role.WORKER) as (url, (key,)):
            both = {"asked": (place.url, place.certified("one", Role.WORKER)), "static": (url, key)}
            logins = await report.take_turns({name: partial(_login_ms, *each) for name, each in both.items()}, options.logins)
            clients = {name: _client(*each) for name, each in both.items()}
            for client in clients.values():
                await client.connect(deadline_seconds=10)
            pings = await report.take_turns({name: partial(_ping_ms, client) for name, client in clients.items()}, PINGS)
            for client in clients.values():
                await client.close()
    rival, p99 = "as a static user", {name: report.percentile(took, 0.99) for name, took in logins.items()}
    rows.paired("logging in by auth callout, p50", logins["asked"], "ms", rival, logins["static"], at_most=2)
    rows.against("logging in by auth callout, p99", p99["asked"], "ms", rival, p99["static"])
    rows.paired("a round trip to the server, p50", pings["asked"], "ms", rival, pings["static"], at_most=1.02)


async def _measure_storm(rows: Rows, _shared: None, options: Options) -> None:
    took = []
    for _ in range(options.rounds):
        async with _servers(STORM_SERVERS) as place, AsyncExitStack() as opened:
            keys = [str(place.certified(f"w{number}", Role.WORKER)) for number in range(options.nodes)]
            others = [
                await opened.enter_async_context(processes.serving("nats_login", "nodes", place.url, *keys[number::STORM_PROCESSES]))
                for number in range(STORM_PROCESSES)
            ]
            own = place.certified("own", Role.GATEWAY)
            node = await opened.enter_async_context(member(nodes.settings_of(place.url, own), Role.GATEWAY))
            start = time.perf_counter()
            for each in others:
                each.send()
            usable = node.directory.usable
            await until(lambda usable=usable: len(usable(Role.WORKER)) == options.nodes, seconds=STORM_SECONDS)
            took.append(time.perf_counter() - start)
    claim = f"{options.nodes} nodes at once over {STORM_SERVERS} servers, until all are heard"
    rows.alone(claim, statistics.median(took), "s", at_most=5)


if __name__ == "__main__":
    parts: dict[str, report.Part] = {"connect": _measure_connecting, "storm": _measure_storm}
    report.run(__doc__, parts, limits=(300.0, 120.0), serve=_serve, rounds=(3, 1), logins=(200, 50), nodes=(200, 200))
