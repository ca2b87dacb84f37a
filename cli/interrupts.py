"""Run a command's coroutine so that Ctrl-C stops it cleanly, within a second, or only stops a part of it."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

#: The time for clean-up after an interrupt: CANCEL and close are two packets, and nothing waits for answers.
GRACE_SECONDS = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Interrupts the whole command.
_interrupt_command: ContextVar[Callable[[], None]] = ContextVar("interrupt_command")


class PartInterrupted(Exception):
    """Ctrl-C stopped a part of the command; the command continues."""


@contextmanager
def part() -> Iterator[None]:
    """In this block of a coroutine of ``run``, Ctrl-C cancels only the block, which then raises PartInterrupted."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    interrupts = 0

    def interrupt() -> None:
        nonlocal interrupts
        interrupts += 1
        task.cancel()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        try:
            yield
        finally:
            for _ in range(interrupts):
                task.uncancel()
    except BaseException as error:
        # SIGTERM meanwhile ends the command. Other errors of the clean-up do not matter to the user.
        if interrupts and not (task.cancelling() and isinstance(error, asyncio.CancelledError)):
            raise PartInterrupted from None
        raise
    finally:
        loop.add_signal_handler(signal.SIGINT, _interrupt_command.get())
    if interrupts:
        raise PartInterrupted  # although the block swallowed the cancel


def run(work: Coroutine[Any, Any, T], *, grace_seconds: float = GRACE_SECONDS) -> T:
    """Return the result of ``work``. Raises KeyboardInterrupt if SIGINT or SIGTERM comes first."""
    return asyncio.run(_until_interrupted(work, grace_seconds))


async def _until_interrupted(work: Coroutine[Any, Any, T], grace_seconds: float) -> T:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    interrupted = asyncio.Event()

    def interrupt() -> None:
        # The first cancel starts the clean-up; later ones interrupt it.
        if not task.done():
            interrupted.set()
            task.cancel()
            loop.call_later(grace_seconds, interrupt)

    _interrupt_command.set(interrupt)
    try:
        for number in _SIGNALS:
            loop.add_signal_handler(number, interrupt)
    except NotImplementedError:
        # On Windows asyncio.run alone handles Ctrl-C: it cancels the work and waits for its end.
        return await work
    try:
        result = await work
    except BaseException:
        # After Ctrl-C, errors of the clean-up do not matter to the user.
        if interrupted.is_set():
            raise KeyboardInterrupt from None
        raise
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
    if interrupted.is_set():
        raise KeyboardInterrupt
    return result
