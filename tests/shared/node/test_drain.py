"""The end of a program: it waits for its HTTP requests as long as for its calls."""

import asyncio
from types import SimpleNamespace
from typing import Any

from shared.node import program
from tests.shared.timing.virtual_time import VirtualLoop

DRAIN_SECONDS = 70.0


class HttpServer:
    """Serves requests that end this many seconds after the server was asked to stop."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        self._stopped.set()

    async def run(self) -> None:
        await self._stopped.wait()
        await asyncio.sleep(self._seconds)


async def _drain_calls(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def _drain(http_seconds: float, call_seconds: float) -> tuple[bool, float]:
    """Return whether HTTP was finished, and how long the drain took."""
    loop = asyncio.get_running_loop()
    server: Any = HttpServer(http_seconds)
    node: Any = SimpleNamespace(dispatcher=SimpleNamespace(running=0), drain=lambda most: _drain_calls(min(call_seconds, most)))
    serving = asyncio.create_task(server.run())
    began = loop.time()
    await program._drain(node, server, serving, DRAIN_SECONDS)
    done, took = serving.done(), loop.time() - began
    serving.cancel()
    return done, took


def drain(http_seconds: float, call_seconds: float) -> tuple[bool, float]:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        done, took = runner.run(_drain(http_seconds, call_seconds))
    return done, round(took, 1)


def test_requests_have_as_long_as_calls_have() -> None:
    assert drain(DRAIN_SECONDS - 1, 0) == (True, DRAIN_SECONDS - 1)


def test_requests_and_calls_have_the_same_time() -> None:
    assert drain(DRAIN_SECONDS - 1, DRAIN_SECONDS) == (True, DRAIN_SECONDS)


def test_a_server_that_does_not_end_is_left_behind() -> None:
    assert drain(1000, DRAIN_SECONDS) == (False, DRAIN_SECONDS + 5)
