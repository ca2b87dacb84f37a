"""What port 443 costs: a worker that reaches NATS over wss, through nginx or web, against one on NATS's own port.

calls    one call, 32 in flight, and the processor time of NATS, proxy and worker for them
answers  16 streams at once
idle     500 idle nodes on one proxy, in percent of a core

The caller is on NATS itself, as the gateway is. Rounds alternate, because the speed of shared cores drifts.
"""

import asyncio
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bench import calls, nodes, processes, report
from bench.mesh import Echo, Stream
from bench.report import Options, Rows
from shared.api import metrics
from shared.api.inference import ModelConfig, ProcessPrompt, process_prompt
from shared.context import new_request_id
from shared.identity import node_keys
from shared.node import http_server
from shared.node.http_tunnel import TunnelTarget
from shared.node.member import Node, member
from shared.node.settings import NodeSettings
from shared.transports.nats import web_socket
from shared.transports.nats.nats_client import NatsClient
from shared.types import ModelName, Role
from tests.shared.transports.nats.test_tls import make_certificate
from tests.testnet import NatsServer, free_port, until

AT_ONCE, ITEMS = 16, 2_000
IDLE_NODES, IDLE_SECONDS = 500, 20.0
MEET_SECONDS = 20.0
WAYS = ("NATS", "nginx", "web")
_NGINX = """\
worker_processes 1;
daemon off;
error_log stderr error;
pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
  scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {folder}/cert.pem;
    ssl_certificate_key {folder}/key.pem;
    location /mesh {{
      proxy_pass http://127.0.0.1:{to}/;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_read_timeout 1h;
      proxy_send_timeout 1h;
    }}
  }}
}}
"""


class _WebSettings(NodeSettings, frozen=True, kw_only=True):
    to: TunnelTarget

    @property
    def tunnel(self) -> TunnelTarget:
        return self.to


async def _serve(kind: str, *arguments: str) -> None:
    kinds: dict[str, Callable[..., Awaitable[None]]] = {"worker": _serve_worker, "idle": _serve_idle, "web": _serve_web}
    await kinds[kind](*arguments)


async def _serve_worker(url: str, metrics_key: str, worker_key: str) -> None:
    async with AsyncExitStack() as opened:
        for service, key in ((Echo(), metrics_key), (Stream(), worker_key)):
            node = await opened.enter_async_context(member(nodes.settings_of(url, key), service.role))
            await node.serve(service)
        await processes.serve_until_stdin_ends()


async def _serve_idle(url: str, key_file: str) -> None:
    key = node_keys.load(Path(key_file))
    async with asyncio.TaskGroup() as tasks:
        running = []
        for _ in range(IDLE_NODES):
            client = NatsClient(url, key, name="idle")
            await client.connect(deadline_seconds=60)
            running.append(tasks.create_task(client.run()))
        await processes.serve_until_stdin_ends()
        for each in running:
            each.cancel()


async def _serve_web(folder: str, port: str, to: str) -> None:
    settings = _WebSettings(
        node_key_file=Path("/nowhere"), to=TunnelTarget("/mesh", "127.0.0.1", int(to)), tls_cert_file=Path(folder, "cert.pem"),
        tls_key_file=Path(folder, "key.pem"),
    )  # fmt: skip
    with http_server.listen("127.0.0.1", int(port), "") as sock:
        server = http_server.HttpServer(http_server.answer_joining, sock, settings)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.run())
            await processes.serve_until_stdin_ends()
            server.stop()


class Mesh(NamedTuple):
    server: NatsServer
    #: The URL of each way, and the processes that it needs beside the node.
    urls: dict[str, str]
    pids: dict[str, tuple[int, ...]]


@contextmanager
def _nginx(folder: Path, to: int) -> Iterator[tuple[int, int]]:
    port, binary = free_port(), shutil.which("nginx", path="/usr/sbin:/usr/bin")
    assert binary, "nginx is missing: make test-system"
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, port=port, to=to), encoding="utf-8")
    process = subprocess.Popen([binary, "-p", folder, "-c", folder / "nginx.conf"])
    try:
        deadline = time.monotonic() + 10
        while not processes.children_of(process.pid):
            assert time.monotonic() < deadline, "nginx has no worker"
            time.sleep(0.05)
        yield port, next(iter(processes.children_of(process.pid)))
    finally:
        process.terminate()
        process.wait(10)


@asynccontextmanager
async def _mesh(_options: Options) -> AsyncIterator[Mesh]:
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        make_certificate(folder, "127.0.0.1")
        pin = web_socket.pin_of(x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes()).public_bytes(Encoding.DER))
        server, web_port = NatsServer(folder), free_port()
        server.start()
        try:
            with _nginx(folder, server.web_port) as (port, nginx):
                async with processes.serving("reach", "web", folder, web_port, server.web_port) as web:
                    urls = {"NATS": server.url} | {
                        name: f"wss://127.0.0.1:{at}/mesh?pin={pin}" for name, at in (("nginx", port), ("web", web_port))
                    }
                    nats = server.pid
                    yield Mesh(server, urls, {"NATS": (nats,), "nginx": (nats, nginx), "web": (nats, web.pid)})
        finally:
            server.kill()


class Way(NamedTuple):
    node: Node
    pids: tuple[int, ...]

    def spent(self) -> float:
        return sum(map(processes.spent_ms, self.pids))


async def _opened(mesh: Mesh, name: str, opened: AsyncExitStack) -> Way:
    keys = [mesh.server.key(f"{name}-{role}", role) for role in (Role.METRICS, Role.WORKER, Role.GATEWAY)]
    worker = await opened.enter_async_context(processes.serving("reach", "worker", mesh.urls[name], *keys[:2]))
    node = await opened.enter_async_context(member(nodes.settings_of(mesh.server.url, keys[2]), Role.GATEWAY))
    usable = node.directory.usable
    await until(lambda: usable(Role.METRICS) and usable(Role.WORKER), seconds=MEET_SECONDS)
    return Way(node, (*mesh.pids[name], worker.pid))


async def _figures_of_calls(mesh: Mesh, name: str) -> dict[str, float]:
    # One way at a time is there, so that each caller has only its own worker.
    async with AsyncExitStack() as opened:
        way = await _opened(mesh, name, opened)
        before = way.spent()
        figures = await calls.figures_of(
            lambda: way.node.rpc.call(metrics.record_metric, metrics.RecordMetric("x" * 60, 1.0, {"label": "y" * 20}))
        )
        return {**figures, "processor": way.spent() - before}


async def _measure_calls(rows: Rows, mesh: Mesh, options: Options) -> None:
    found = report.by_name(await report.take_turns({name: partial(_figures_of_calls, mesh, name) for name in WAYS}, options.rounds))
    for name in WAYS[1:]:
        own, others = found[name], found["NATS"]
        rows.paired(f"a call, p50, through {name}", own["p50"], "us", "NATS", others["p50"])
        rows.paired(f"32 in flight, through {name}", own["rate"], "calls/s", "NATS", others["rate"], at_least=0.5)
        rows.paired(f"processor of all, through {name}", own["processor"], "ms", "NATS", others["processor"], at_most=2)


async def _figures_of_answers(mesh: Mesh, name: str) -> dict[str, float]:
    async with AsyncExitStack() as opened:
        way = await _opened(mesh, name, opened)

        async def answer() -> int:
            prompt = ProcessPrompt("", ModelConfig(model=ModelName("m"), max_tokens=ITEMS), new_request_id())
            async with way.node.rpc.stream(process_prompt, prompt) as stream:
                return sum([1 async for _ in stream])

        await answer()
        start = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(answer()) for _ in range(AT_ONCE)]
        took = time.perf_counter() - start
        assert all(each.result() == ITEMS for each in answers)
        return {"items": AT_ONCE * ITEMS / took}


async def _measure_answers(rows: Rows, mesh: Mesh, options: Options) -> None:
    found = report.by_name(await report.take_turns({name: partial(_figures_of_answers, mesh, name) for name in WAYS}, options.rounds))
    for name, least in (("nginx", 0.9), ("web", 0.8)):
        rows.paired(f"{AT_ONCE} answers, through {name}", found[name]["items"], "items/s", "NATS", found["NATS"]["items"], at_least=least)


async def _measure_idle(rows: Rows, mesh: Mesh, _options: Options) -> None:
    for name, most in (("nginx", 1), ("web", 3)):
        key = mesh.server.key(f"idle-{name}", Role.GATEWAY)
        async with processes.serving("reach", "idle", mesh.urls[name], key):
            proxy = mesh.pids[name][-1]
            before = processes.spent_ms(proxy)
            await asyncio.sleep(IDLE_SECONDS)
            percent = (processes.spent_ms(proxy) - before) / IDLE_SECONDS / 10
            rows.alone(f"{IDLE_NODES} idle nodes on {name}", percent, "% of a core", at_most=most)


if __name__ == "__main__":
    parts: dict[str, report.Part] = {"calls": _measure_calls, "answers": _measure_answers, "idle": _measure_idle}
    report.run(__doc__, parts, limits=(900.0, 300.0), quick_parts=("calls", "answers"), setting=_mesh, serve=_serve, rounds=(5, 3))
