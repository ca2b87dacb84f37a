"""Nodes of PostgreSQL under the real Patroni, with the configuration of deploy/compose, and etcd, on loopback."""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil

from stack import processes
from stack.servers import postgres
from tests import capabilities
from tests.stacks import until
from tests.testnet import free_port

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATION = ROOT / "deploy/compose/patroni.yaml"
ADMIN = "aimesh_admin"
_START_SECONDS = 90
_INSTALL_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Node:
    port: int
    data: Path
    patroni: "subprocess.Popen[bytes]"

    def kill(self) -> None:
        """Kill Patroni and its PostgreSQL, which isn't Patroni's child, at once, as when the machine is lost."""
        postmaster = psutil.Process(int((self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0]))
        family = [psutil.Process(self.patroni.pid), postmaster, *postmaster.children(recursive=True)]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for each in family:
                with suppress(psutil.NoSuchProcess):
                    each.send_signal(number)


@dataclass(frozen=True, slots=True)
class Cluster:
    nodes: tuple[Node, ...]
    password: str

    def url(self, *nodes: Node, database: str = "postgres") -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes or self.nodes)
        return f"postgresql://{ADMIN}:{self.password}@{hosts}/{database}"

    async def leader(self) -> Node:
        """Wait until one node accepts writes and has a synchronous standby, and return it."""

        async def find() -> Node | None:
            for node in self.nodes:
                with suppress(OSError, asyncpg.PostgresError, TimeoutError):
                    connection = await asyncpg.connect(self.url(node), timeout=5)
                    try:
                        if await connection.fetchval("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"):
                            return node
                    finally:
                        await connection.close()
            return None

        return await until(find, seconds=_START_SECONDS, what="a leader has a synchronous standby")


def install(folder: Path) -> Path:
    """Install Patroni as its image does, and return its program."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=_INSTALL_SECONDS)
    words = ["install", "--quiet", "--require-hashes", "-r", str(ROOT / "requirements/patroni.lock")]
    subprocess.run([str(folder / "bin/pip"), *words], check=True, timeout=_INSTALL_SECONDS)
    return folder / "bin/patroni"


@asynccontextmanager
async def running(folder: Path, count: int = 3) -> AsyncIterator[Cluster]:
    """Run a cluster whose nodes all follow the leader."""
    capabilities.require("etcd")
    etcd = capabilities.find_program("etcd")
    assert etcd is not None
    patroni = await asyncio.to_thread(install, folder / "venv")
    password = secrets.token_urlsafe(16)
    with ExitStack() as stack:

        def launch(name: str, *command: str, **variables: str) -> "subprocess.Popen[bytes]":
            with (folder / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(
                    command,
                    env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **variables},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=processes.dies_with_parent(signal.SIGTERM, os.getpid()),  # noqa: PLW1509 - fork from the main thread
                )
            stack.callback(_end, process)
            return process

        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        launch(
            "etcd", etcd, f"--data-dir={folder}/etcd", f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
        )  # fmt: skip
        nodes = []
        for number in range(1, count + 1):
            name, port, api = f"node{number}", free_port(), f"127.0.0.1:{free_port()}"
            variables = {
                "NAME": name,
                "ETCD3_HOSTS": client.removeprefix("http://"),
                "RESTAPI_LISTEN": api,
                "RESTAPI_CONNECT_ADDRESS": api,
                "POSTGRESQL_LISTEN": f"127.0.0.1:{port}",
                "POSTGRESQL_CONNECT_ADDRESS": f"127.0.0.1:{port}",
                "POSTGRESQL_DATA_DIR": str(folder / name),
                "POSTGRESQL_BIN_DIR": str(postgres.binaries()),
                "POSTGRESQL_PGPASS": str(folder / f"{name}.pgpass"),
                **{
                    f"{role}_{what}": word
                    for role in ("SUPERUSER", "REPLICATION")
                    for what, word in (("USERNAME", ADMIN), ("PASSWORD", password))
                },
            }
            command = postgres.unprivileged(str(patroni), str(CONFIGURATION))
            nodes.append(Node(port, folder / name, launch(name, *command, **{f"PATRONI_{key}": word for key, word in variables.items()})))
        cluster = Cluster(tuple(nodes), password)
        try:
            await cluster.leader()
            yield cluster
        except BaseException:
            _show_logs(folder)
            raise


def _show_logs(folder: Path) -> None:
    for log in sorted(folder.glob("*.log")):
        sys.stderr.write(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}\n")


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
