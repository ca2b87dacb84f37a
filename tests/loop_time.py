"""Measures how long each callback of the event loop holds it, in the CPU time of its thread: other programs on the machine don't count.

    with loop_time.measured() as callbacks:
        with loop_time.subject("900 messages"):
            await client.post(...)
    callbacks.ensure_below(0.1)

A callback counts for the subject in whose context it runs; tasks inherit the subject that they are created under. Works with asyncio's own
loop, which all tests use; uvloop has other handles.
"""

import asyncio
import heapq
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import pytest

#: The slowest callbacks that a failure lists.
_KEPT = 10

_subject: ContextVar[str] = ContextVar("loop_time_subject", default="")


@dataclass(frozen=True, slots=True, order=True)
class TimedCallback:
    seconds: float
    subject: str
    #: The coroutine of its task, or the function.
    name: str

    def __str__(self) -> str:
        return f"{self.seconds * 1000:.0f} ms for {self.subject or 'no subject'} in {self.name}"


@dataclass(slots=True)
class Callbacks:
    #: The slowest ones, as a heap.
    _slowest: list[TimedCallback] = field(default_factory=list)
    count: int = 0
    #: All callbacks of the longest turn of a loop together: how long a callback that becomes ready meanwhile waits.
    longest_turn_seconds: float = 0.0

    @property
    def slowest(self) -> list[TimedCallback]:
        """Return the slowest callbacks, the slowest first."""
        return sorted(self._slowest, reverse=True)

    def ensure_below(self, seconds: float) -> None:
        """Fail if a callback took this long, or if nothing was measured."""
        assert self.count, "no callback of asyncio's own loop ran: await something inside of the block"
        slow = [str(callback) for callback in self.slowest if callback.seconds >= seconds]
        assert not slow, f"callbacks held the event loop for {seconds * 1000:.0f} ms or longer: " + "; ".join(slow)

    def add(self, callback: TimedCallback) -> None:
        self.count += 1
        if len(self._slowest) < _KEPT:
            heapq.heappush(self._slowest, callback)
        else:
            heapq.heappushpop(self._slowest, callback)


@contextmanager
def subject(name: str) -> Iterator[None]:
    """Name what the callbacks inside of the block work on."""
    token = _subject.set(name)
    try:
        yield
    finally:
        _subject.reset(token)


@contextmanager
def measured() -> Iterator[Callbacks]:
    """Measure all callbacks of all loops. What the block itself does before its first await and after its last one does not count."""
    found = Callbacks()
    run, run_turn = asyncio.Handle._run, asyncio.BaseEventLoop._run_once  # type: ignore[attr-defined]

    def measure(handle: Any) -> None:
        # A callback may change the subject, and a done task knows its coroutine only as long as the handle keeps it.
        name, about = _name_of(handle), handle._context.get(_subject, "")
        began = time.thread_time()
        run(handle)
        seconds = time.thread_time() - began
        found.add(TimedCallback(seconds, handle._context.get(_subject, "") or about, name))

    def measure_turn(loop: Any) -> None:
        began = time.thread_time()
        run_turn(loop)
        found.longest_turn_seconds = max(found.longest_turn_seconds, time.thread_time() - began)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(asyncio.Handle, "_run", measure)
        patched.setattr(asyncio.BaseEventLoop, "_run_once", measure_turn)
        yield found


def _name_of(handle: Any) -> str:
    callback = handle._callback
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return getattr(owner.get_coro(), "__qualname__", repr(owner))
    return getattr(callback, "__qualname__", repr(callback))
