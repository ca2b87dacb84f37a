"""deploy/docker/proxy.cfg in the real HAProxy, in front of replicas of a few lines each."""

import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.deploy import containers
from tests.deploy.containers import Container
from tests.testnet import free_port

pytestmark = pytest.mark.skipif(shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None, reason="needs HAProxy")


class Replica:
    """Answers with the headers that it received; `/stream` sends tokens until `ended`."""

    def __init__(self, name: str) -> None:
        self.name, self.is_ready, self.check_seconds = name, True, 0.0
        self.checks = 0
        self.ended, self.was_left = threading.Event(), threading.Event()
        replica = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/stream":
                    return replica.stream(self)
                if self.path == "/mesh":
                    return replica.tunnel(self)
                if self.path == "/readyz":
                    time.sleep(replica.check_seconds)
                    replica.checks += 1
                body = json.dumps({"name": replica.name, **dict(self.headers)}).encode()
                self.send_response(200 if replica.is_ready or self.path != "/readyz" else 503)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return None

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stream(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            while True:
                is_last = self.ended.wait(0.02)
                handler.wfile.write(b"0\r\n\r\n" if is_last else b"5\r\ntoken\r\n")
                handler.wfile.flush()
                if is_last:
                    return
        except OSError:
            self.was_left.set()

    def tunnel(self, handler: BaseHTTPRequestHandler) -> None:
        """Accept a WebSocket; answer a line with the address that the proxy tells."""
        handler.send_response(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "upgrade"), ("Sec-WebSocket-Accept", containers.WEB_SOCKET_ACCEPT)):
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(f"{handler.headers['X-Forwarded-For']} {handler.rfile.readline().decode()}".encode())
        handler.close_connection = True


class Entry:
    def __init__(self, folder: Path) -> None:
        self.replicas = {name: Replica(name) for name in ("web", "gateway", "gateway-2")}
        self.trusted = {name: folder / "proxy" / f"proxies_of_{name}" for name in ("web", "gateway")}
        (folder / "proxy").mkdir()
        self.trust("192.0.2.1")
        self.ports = {name: replica.port for name, replica in self.replicas.items()}
        self.ports |= {each: free_port() for each in ("proxy-web", "proxy-gateway", "proxy")}
        self.container: Container = containers.run_proxy(
            folder, folder / "proxy", self.ports, {"web": ("web",), "gateway": ("gateway", "gateway-2")}
        )
        self.web, self.gateway, self.health = (
            httpx.Client(base_url=f"http://127.0.0.1:{self.ports[each]}", timeout=30) for each in ("proxy-web", "proxy-gateway", "proxy")
        )

    def trust(self, address: str) -> None:
        for file in self.trusted.values():
            file.write_text(f"{address}\n", encoding="utf-8")

    def serving(self) -> set[str]:
        return {self.gateway.get("/").json()["name"] for _ in range(6)}

    def reload(self) -> None:
        """Send SIGUSR2 until HAProxy's master obeys: it ignores the signal until some time after its first worker serves."""

        def is_reloading() -> bool:
            self.container.process.send_signal(signal.SIGUSR2)
            return "Reloading HAProxy" in self.container.log.read_text("utf-8")

        wait(is_reloading)

    def close(self) -> None:
        self.container.end()
        for each in (self.web, self.gateway, self.health):
            each.close()
        for replica in self.replicas.values():
            replica.ended.set()
            replica.server.shutdown()
            replica.server.server_close()


def wait(until: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + 30
    while not until():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


@pytest.fixture
def entry(tmp_path: Path) -> Iterator[Entry]:
    with ExitStack() as ends:
        built = Entry(tmp_path)
        ends.callback(built.close)

        def is_ready() -> bool:
            try:
                return built.health.get("/readyz").status_code == 200 and built.serving() == {"gateway", "gateway-2"}
            except httpx.HTTPError:
                return False

        wait(is_ready)
        yield built


def test_the_address_of_the_client_is_what_the_connection_says(entry: Entry) -> None:
    forged = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https", "Forwarded": "for=203.0.113.9"}
    for client in (entry.web, entry.gateway):
        got = {name.lower(): value for name, value in client.get("/", headers=forged).json().items()}
        assert (got["x-forwarded-for"], got["x-forwarded-proto"]) == ("127.0.0.1", "http")
        assert "forwarded" not in got


def test_a_web_socket_passes_and_says_the_address_that_the_connection_has(entry: Entry) -> None:
    with containers.web_socket(entry.ports["proxy-web"], "X-Forwarded-For: 203.0.113.9\r\n") as (machine, answer):
        machine.sendall(b"hello\n")
        assert answer.readline() == b"127.0.0.1 hello\n"


def test_a_proxy_in_front_tells_the_address_of_the_client(entry: Entry) -> None:
    entry.trust("127.0.0.0/8")
    entry.reload()
    told = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}

    def is_told() -> bool:
        with httpx.Client() as new:
            got = {name.lower(): value for name, value in new.get(entry.gateway.base_url, headers=told).json().items()}
        return (got["x-forwarded-for"], got["x-forwarded-proto"]) == ("203.0.113.9", "https")

    wait(is_told)
    with httpx.Client() as new:  # a program on the host that is no proxy
        assert {name.lower(): value for name, value in new.get(entry.gateway.base_url).json().items()}["x-forwarded-for"] == "127.0.0.1"


def test_a_gateway_that_is_not_ready_gets_no_new_requests_and_its_streams_go_on(entry: Entry) -> None:
    with entry.gateway.stream("GET", "/stream") as answer:
        parts = answer.iter_raw()
        assert next(parts).startswith(b"token"), "the proxy waits for the end of a stream"
        for replica in entry.replicas.values():
            replica.is_ready = replica.name == "web"
        wait(lambda: entry.health.get("/readyz").status_code == 503)
        assert entry.gateway.get("/").status_code == 503
        entry.replicas["gateway-2"].is_ready = True
        wait(lambda: entry.health.get("/readyz").status_code == 200)
        assert entry.serving() == {"gateway-2"}
        assert next(parts)
        for replica in entry.replicas.values():
            replica.ended.set()
        assert b"".join(parts).replace(b"token", b"") == b""


def test_a_gateway_whose_check_takes_long_because_postgresql_hangs_keeps_its_place(entry: Entry) -> None:
    gateways = [entry.replicas["gateway"], entry.replicas["gateway-2"]]
    begun = [gateway.checks for gateway in gateways]
    for gateway in gateways:
        gateway.check_seconds = 1.6
    wait(lambda: all(gateway.checks >= before + 3 for gateway, before in zip(gateways, begun, strict=True)))
    assert entry.health.get("/readyz").status_code == 200
    assert entry.serving() == {"gateway", "gateway-2"}


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGUSR1"])
def test_a_reload_and_a_stop_let_streams_end(entry: Entry, name: str) -> None:
    with entry.gateway.stream("GET", "/stream") as answer:
        parts = answer.iter_raw()
        next(parts)
        if name == "SIGUSR2":
            entry.reload()
            wait(lambda: entry.container.log.read_text("utf-8").count("Loading success") >= 2)
            assert httpx.get(entry.gateway.base_url).status_code == 200
        else:
            wait(lambda: _is_stopped(entry))
        for _ in range(20):
            next(parts)
        for replica in entry.replicas.values():
            replica.ended.set()
        assert b"".join(parts).replace(b"token", b"") == b""
    if name == "SIGUSR1":
        for client in (entry.web, entry.gateway, entry.health):
            client.close()  # idle connections, which the proxy would wait for
        assert entry.container.process.wait(timeout=30) == 0


def _is_stopped(entry: Entry) -> bool:
    entry.container.process.send_signal(signal.SIGUSR1)
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", entry.ports["proxy-gateway"])) != 0


def test_a_client_that_leaves_is_left_by_the_proxy(entry: Entry) -> None:
    with entry.gateway.stream("GET", "/stream") as answer:
        next(answer.iter_raw())
    gateways = [entry.replicas["gateway"], entry.replicas["gateway-2"]]
    wait(lambda: any(gateway.was_left.is_set() for gateway in gateways))
