"""The live view: one task owns the screen, and repaints it after each refresh, key and resize."""

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from cli.connection import CliConnection
from cli.top import frame, text_view
from cli.top.readings import MeshReadings
from cli.top.sources import Sources
from cli.top.terminal import Screen, Terminal
from cli.top.text_view import View

#: More keys wait only if the terminal is stopped, and then they mean nothing.
_MAX_EVENTS = 64


@dataclass(frozen=True, slots=True)
class Pressed:
    key: str


@dataclass(frozen=True, slots=True)
class Resized:
    """The next frame asks for the size."""


Event = MeshReadings | Pressed | Resized


class LiveView:
    """Refreshes every ``seconds``. Usable for one run."""

    def __init__(self, connection: CliConnection, seconds: float, terminal: Terminal) -> None:
        self._terminal = terminal
        self._sources = Sources(connection, time.monotonic)
        self._seconds = seconds
        self._events: asyncio.Queue[Event] = asyncio.Queue(_MAX_EVENTS)

    async def run(self) -> None:
        """Run until the user presses q. Raises NotAuthenticated and NotAllowed; always restores the terminal."""
        with self._terminal.taken(lambda key: self._queue_event(Pressed(key))) as screen, self._resizing():
            try:
                async with asyncio.TaskGroup() as tasks:
                    polling = tasks.create_task(self._poll_forever())
                    await self._show(screen)
                    polling.cancel()
            except ExceptionGroup as group:
                raise group.exceptions[0] from None

    async def _poll_forever(self) -> None:
        while True:
            began = time.monotonic()
            await self._events.put(await self._sources.look())
            await asyncio.sleep(began + self._seconds - time.monotonic())

    async def _show(self, screen: Screen) -> None:
        seen, view = MeshReadings(), View()
        while True:
            found = frame.make(seen, time.monotonic(), datetime.now(UTC))
            columns, rows = self._terminal.size()
            view = text_view.scrolled(found, view, columns, rows)
            await screen.paint(text_view.fitted(found, view, columns, rows))
            match await self._events.get():
                case MeshReadings() as newer:
                    seen = newer
                case Pressed(key):
                    pressed = text_view.press(view, key)
                    if pressed is None:
                        return
                    view = pressed
                case Resized():
                    pass

    @contextmanager
    def _resizing(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGWINCH, self._queue_event, Resized())
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGWINCH)

    def _queue_event(self, event: Pressed | Resized) -> None:
        with suppress(asyncio.QueueFull):
            self._events.put_nowait(event)
