"""Run a command's coroutine so that Ctrl-C stops it cleanly, within a second."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

#: The time for clean-up after an interrupt: CANCEL and close are two packets, and nothing waits for answers.
GRACE_SECONDS = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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

    for number in _SIGNALS:
        loop.add_signal_handler(number, interrupt)
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
