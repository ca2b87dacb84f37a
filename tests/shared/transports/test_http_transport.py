"""A server that resets connections as soon as they are open, as it does when it restarts."""

import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
import uvloop

from shared.transports.http_transport import HttpTransport
from tests.testnet import free_port

#: One in thirty meets the moment between opening and use.
TRIES = 2000


@pytest.fixture
def port() -> Iterator[int]:
    """A port whose server listens for a moment at a time. Closing it resets the connections that it has not accepted."""
    port, is_over = free_port(), threading.Event()

    def listen() -> None:
        while not is_over.is_set():
            with socket.create_server(("127.0.0.1", port), backlog=64):
                is_over.wait(0.001)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield port
    finally:
        is_over.set()
        thread.join()


def test_reset_connections_are_failed_requests(port: int) -> None:
    async def ask() -> int:
        failed = 0
        async with httpx.AsyncClient(transport=HttpTransport(), trust_env=False) as client:
            for _ in range(TRIES):
                try:
                    await client.get(f"http://127.0.0.1:{port}/")
                except httpx.TransportError:
                    failed += 1
        return failed

    assert uvloop.run(ask()) == TRIES


async def test_address_of_a_reset_connection_is_a_failed_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask_for_address(*_: object) -> httpx.Response:
        # What anyio does if uvloop has no socket.
        return None.getpeername()  # type: ignore[attr-defined,no-any-return]

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", ask_for_address)
    async with httpx.AsyncClient(transport=HttpTransport()) as client:
        with pytest.raises(httpx.ConnectError, match="reset as soon as it was open"):
            await client.get("http://127.0.0.1/")


async def test_other_mistakes_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> httpx.Response:
        raise AttributeError("a mistake of ours", name="spelled")

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", fail)
    async with httpx.AsyncClient(transport=HttpTransport()) as client:
        with pytest.raises(AttributeError, match="a mistake of ours"):
            await client.get("http://127.0.0.1/")
