"""Ctrl-C: cleanup runs, is bounded, and its errors do not hide the interrupt."""

import asyncio
import os
import signal
from contextlib import suppress

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


# --- interrupting part of a command ----------------------------------------------------------------------------------


def test_part_is_interrupted_and_the_command_continues() -> None:
    cleaned: list[str] = []

    async def work() -> str:
        for name in ("first", "second"):
            with pytest.raises(interrupts.PartInterrupted), interrupts.part():
                try:
                    await _interrupted()
                finally:
                    await asyncio.sleep(0.001)
                    cleaned.append(name)
        await asyncio.sleep(0.001)
        return "done"

    assert interrupts.run(work()) == "done"
    assert cleaned == ["first", "second"]


def test_interrupt_after_a_part_ends_the_command() -> None:
    async def work() -> None:
        with interrupts.part():
            await asyncio.sleep(0)
        await _interrupted()

    with pytest.raises(KeyboardInterrupt):
        interrupts.run(work())


def test_sigterm_in_a_part_ends_the_command() -> None:
    async def work() -> None:
        with interrupts.part():
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        interrupts.run(work())


def test_sigterm_during_the_cleanup_of_a_part_ends_the_command() -> None:
    async def work() -> None:
        with interrupts.part():
            try:
                await _interrupted()
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.Event().wait()
        raise AssertionError("continued")

    with pytest.raises(KeyboardInterrupt):
        interrupts.run(work())


def test_second_interrupt_aborts_a_hanging_cleanup_of_a_part() -> None:
    async def work() -> str:
        with pytest.raises(interrupts.PartInterrupted), interrupts.part():
            try:
                await _interrupted()
            finally:
                await _interrupted()
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
        return "done"

    assert interrupts.run(work()) == "done"


def test_errors_of_a_part_are_raised_and_those_after_ctrl_c_are_hidden() -> None:
    async def work() -> None:
        with pytest.raises(LookupError), interrupts.part():
            raise LookupError
        with pytest.raises(interrupts.PartInterrupted), interrupts.part():
            try:
                await _interrupted()
            finally:
                raise ConnectionError("the link is gone")
        # Code that swallows the cancellation does not hide the interrupt.
        with pytest.raises(interrupts.PartInterrupted), interrupts.part(), suppress(asyncio.CancelledError):
            await _interrupted()

    interrupts.run(work())
