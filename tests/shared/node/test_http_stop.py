"""A port that stops: every accepted connection gets an answer, because a proxy cannot repeat a request that it has sent."""

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path

import uvloop

from shared.node import http_server
from shared.node.http_server import HttpServer, Receive, Scope, Send
from shared.node.settings import NodeSettings
from tests.shared.node import http_ports

REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
#: Longer than the server's clock ticks. The test blocks the loop on purpose.
BLOCKED_SECONDS = 0.15


async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
    await http_ports.respond(send, b"served")


async def _answers(act: Callable[[int, HttpServer], list[socket.socket]]) -> tuple[list[bytes], float]:
    """Return what the clients read that ``act`` connects while it stops the server, and how long the stop took."""
    sock = http_server.listen("127.0.0.1", 0, "PORT")
    server = HttpServer(app, sock, NodeSettings(node_key_file=Path("/nowhere")))
    port = sock.getsockname()[1]
    serving = asyncio.create_task(server.run())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST)
    await reader.readuntil(b"served")
    clients = act(port, server)
    began = time.monotonic()
    await serving
    took = time.monotonic() - began
    writer.close()
    return [await asyncio.to_thread(_read, client) for client in clients], took


def _read(client: socket.socket) -> bytes:
    with client:
        try:
            found = b""
            while piece := client.recv(4096):
                found += piece
        except ConnectionError as error:
            return repr(error).encode()
    return found


def connect(port: int, request: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    client.sendall(request)
    return client


def stop_with_waiting_clients(port: int, server: HttpServer) -> list[socket.socket]:
    """Block the loop: afterwards it finds the connections and the server's end at the same time."""
    server.stop()
    clients = [connect(port, REQUEST) for _ in range(20)]
    time.sleep(BLOCKED_SECONDS)
    return clients


def stop_with_silent_clients(port: int, server: HttpServer) -> list[socket.socket]:
    server.stop()
    clients = [connect(port, b"") for _ in range(3)]
    time.sleep(BLOCKED_SECONDS)
    return clients


def test_connections_that_wait_are_served() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answers, took = runner.run(_answers(stop_with_waiting_clients))
    assert [answer.endswith(b"served") for answer in answers] == [True] * 20, answers
    assert took < 5


def test_connections_without_a_request_do_not_hold_it_up() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answers, took = runner.run(_answers(stop_with_silent_clients))
    assert answers == [b""] * 3
    assert took < 5
