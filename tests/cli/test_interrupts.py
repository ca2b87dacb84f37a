"""Ctrl-C: cleanup runs, is bounded, and its errors do not hide the interrupt."""

import asyncio
import os
import signal

import pytest

from cli import interrupts


async def _interrupted() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()


def test_result_is_returned() -> None:
    async def work() -> int:
        return 7

    assert interrupts.run(work()) == 7


def test_error_is_raised() -> None:
    async def work() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        interrupts.run(work())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cleanup_may_take_a_moment(number: signal.Signals) -> None:
    cleaned: list[str] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.001)
            cleaned.append("yes")

    with pytest.raises(KeyboardInterrupt):
        interrupts.run(work())
    assert cleaned == ["yes"]


def test_hanging_cleanup_is_aborted() -> None:
    async def work() -> None:
        try:
            await _interrupted()
        finally:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.Event().wait()

    # Without the grace period this would never return.
    with pytest.raises(KeyboardInterrupt):
        interrupts.run(work(), grace_seconds=0.01)


def test_errors_during_cleanup_are_hidden() -> None:
    async def work() -> None:
        try:
            await _interrupted()
        finally:
            raise ConnectionError("the link is gone")

    with pytest.raises(KeyboardInterrupt):
        interrupts.run(work())


def test_signal_handlers_are_restored() -> None:
    async def work() -> None:
        return None

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    interrupts.run(work())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
