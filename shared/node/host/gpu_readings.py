"""Reads the NVIDIA GPUs of this machine every few seconds in threads, so that a hanging driver blocks nothing."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from shared.node.host import nvml
from shared.node.host.nvml import Gpu
from shared.telemetry import logs

EVERY_SECONDS = 5.0
#: Without NVML or GPUs that rarely changes, and looking costs only a failed open of a file.
EVERY_SECONDS_WITHOUT = 60.0
#: An idle driver takes some seconds to start. Together with EVERY_SECONDS this is less than KEPT_SECONDS, so that one hanging GPU does
#: not hide the others.
ANSWER_SECONDS = 8.0
KEPT_SECONDS = 15.0

T = TypeVar("T")
_log = logs.get()


class Driver(Protocol):
    """``nvml.Nvml``, or a test's own. Both methods block, raise NoDriver or NvmlRefused, and must be thread-safe."""

    def count(self) -> int: ...

    def read(self, index: int) -> Gpu: ...


class Gpus:
    """Owns the threads that query the driver: at most one for the list and one per GPU."""

    def __init__(
        self, driver: Driver | None = None, clock: Callable[[], float] = time.monotonic, answer_seconds: float = ANSWER_SECONDS
    ) -> None:
        self._driver = driver or nvml.Nvml()
        self._clock = clock
        self._answer_seconds = answer_seconds
        self._answered: dict[str, Callable[[], bool]] = {}
        self._read: dict[int, tuple[Gpu, float]] = {}
        #: What does not answer, and why, so that it is logged only once.
        self._failing: dict[str, str] = {}

    async def run(self) -> None:
        """Ends by cancellation. A hanging thread does not delay the end of the process."""
        while True:
            has_driver = await self.look()
            await asyncio.sleep(EVERY_SECONDS if has_driver else EVERY_SECONDS_WITHOUT)

    def fresh(self) -> list[Gpu]:
        """Return the last readings of the GPUs that answered recently."""
        now = self._clock()
        return [gpu for gpu, read_at in self._read.values() if now - read_at <= KEPT_SECONDS]

    async def look(self) -> bool:
        """Query all GPUs once. Returns whether there are any, and so whether to query again soon."""
        count = await self._ask("driver", self._driver.count)
        if isinstance(count, nvml.NoDriver):
            return False
        if isinstance(count, nvml.NvmlRefused):
            self._log_failure("driver", str(count))
            self._read.clear()
            return bool(self._answered.keys() - {"driver"})
        self._log_recovery("driver")
        indexes = {*range(count), *self._read}
        await asyncio.gather(*(self._read_gpu(index, listed=index < count) for index in indexes))
        return bool(indexes)

    async def _read_gpu(self, index: int, listed: bool) -> None:
        began = self._clock()
        found = await self._ask(f"GPU {index}", lambda: self._driver.read(index)) if listed else nvml.NvmlRefused("it is no longer listed")
        if isinstance(found, Gpu):
            self._read[index] = (found, began)
            self._log_recovery(f"GPU {index}")
        else:
            self._read.pop(index, None)
            self._log_failure(f"GPU {index}", str(found) or "there is no driver")

    async def _ask(self, what: str, work: Callable[[], T]) -> T | nvml.NoDriver | nvml.NvmlRefused:
        """Return the answer, or why there is none. A query that is still open is not repeated."""
        if (answered := self._answered.get(what)) is not None and not answered():
            return nvml.NvmlRefused("it does not answer")
        answer: asyncio.Future[T | nvml.NoDriver | nvml.NvmlRefused] = asyncio.get_running_loop().create_future()
        self._answered[what] = answer.done
        # Not a pool: its threads would be joined when the process ends, and a thread that hangs in the driver would prevent that.
        threading.Thread(target=_answer, args=(answer, work), name=f"nvml {what}", daemon=True).start()
        # Not wait_for, which would cancel the future that the thread still has to resolve.
        done, _ = await asyncio.wait({answer}, timeout=self._answer_seconds)
        return answer.result() if done else nvml.NvmlRefused(f"it did not answer within {self._answer_seconds:g} s")

    def _log_failure(self, what: str, why: str) -> None:
        if what not in self._failing:
            _log.warning("NVML does not report a GPU", of=what, why=why, do="see `nvidia-smi` and the kernel's log")
        self._failing[what] = why

    def _log_recovery(self, what: str) -> None:
        if self._failing.pop(what, None) is not None:
            _log.info("NVML works again", of=what)


def _answer(answer: "asyncio.Future[T | nvml.NoDriver | nvml.NvmlRefused]", work: Callable[[], T]) -> None:
    """Runs in the thread."""
    outcome: T | nvml.NoDriver | nvml.NvmlRefused
    try:
        outcome = work()
    except (nvml.NoDriver, nvml.NvmlRefused) as error:
        outcome = error
    try:
        answer.get_loop().call_soon_threadsafe(_settle, answer, outcome)
    except RuntimeError:
        pass  # the loop has ended


def _settle(answer: asyncio.Future[T], outcome: T) -> None:
    if not answer.done():
        answer.set_result(outcome)
