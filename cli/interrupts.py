"""Runs a command's coroutine so that Ctrl-C stops it in order: what it has opened is left properly, within a second."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

#: How long leaving may take after an interrupt: a CANCEL and a close are two packets, and nobody waits for answers.
GRACE_SECONDS = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(work: Coroutine[Any, Any, T], *, grace_seconds: float = GRACE_SECONDS) -> T:
    """The result of ``work``; raises KeyboardInterrupt if SIGINT or SIGTERM came first."""
    return asyncio.run(_until_interrupted(work, grace_seconds))


async def _until_interrupted(work: Coroutine[Any, Any, T], grace_seconds: float) -> T:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    interrupted = asyncio.Event()

    def interrupt() -> None:
        # The first cancel lets clean-up run; the next ones break off whatever clean-up still waits for.
        if not task.done():
            interrupted.set()
            task.cancel()
            loop.call_later(grace_seconds, interrupt)

    for number in _SIGNALS:
        loop.add_signal_handler(number, interrupt)
    try:
        result = await work
    except BaseException:
        # Whatever came up on the way out is of no interest to somebody who has pressed Ctrl-C.
        if interrupted.is_set():
            raise KeyboardInterrupt from None
        raise
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
    if interrupted.is_set():
        raise KeyboardInterrupt
    return result
