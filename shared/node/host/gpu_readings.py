"""The NVIDIA GPUs of this machine, looked at every few seconds in threads, so that a driver that hangs holds up nobody."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from shared.node.host import nvml
from shared.node.host.nvml import Gpu
from shared.telemetry import logs

#: Readings are to be at most a scrape old.
EVERY_SECONDS = 5.0
#: Where NVML is not there or tells of no GPU, that may change; looking costs a failed open of a file.
EVERY_SECONDS_WITHOUT = 60.0
#: A driver that nobody used for a while takes some seconds to start. With EVERY_SECONDS it stays below KEPT_SECONDS, so that
#: one GPU that hangs takes none of the others along.
ANSWER_SECONDS = 8.0
#: What was read longer ago says nothing any more.
KEPT_SECONDS = 15.0

T = TypeVar("T")
_log = logs.get()


class Driver(Protocol):
    """``nvml.Nvml``, or a test's own. Both block, and raise NoDriver or Refused; both may be called from several threads."""

    def count(self) -> int: ...

    def read(self, index: int) -> Gpu: ...


class Gpus:
    """Owns the threads that ask the driver: at most one for the list and one for each GPU, however long they take."""

    def __init__(
        self, driver: Driver | None = None, clock: Callable[[], float] = time.monotonic, answer_seconds: float = ANSWER_SECONDS
    ) -> None:
        self._driver = driver or nvml.Nvml()
        self._clock = clock
        self._answer_seconds = answer_seconds
        #: Of each question that was put, whether it has been answered.
        self._answered: dict[str, Callable[[], bool]] = {}
        #: The last reading of each GPU, and when it was asked for.
        self._read: dict[int, tuple[Gpu, float]] = {}
        #: What does not answer, so that it is said once: why, by what it is.
        self._silent: dict[str, str] = {}

    async def run(self) -> None:
        """Ends by cancellation; a thread that hangs then ends with the process, and does not hold it up."""
        while True:
            has_driver = await self.look()
            await asyncio.sleep(EVERY_SECONDS if has_driver else EVERY_SECONDS_WITHOUT)

    def fresh(self) -> list[Gpu]:
        """The GPUs that answered a short while ago, as they were."""
        now = self._clock()
        return [gpu for gpu, read_at in self._read.values() if now - read_at <= KEPT_SECONDS]

    async def look(self) -> bool:
        """Ask for all of them once. Returns whether there are any, and so whether to look again soon."""
        count = await self._ask("driver", self._driver.count)
        if isinstance(count, nvml.NoDriver):
            return False
        if isinstance(count, nvml.NvmlRefused):
            self._lost("driver", str(count))
            self._read.clear()
            return bool(self._answered.keys() - {"driver"})
        self._heard("driver")
        indexes = {*range(count), *self._read}
        await asyncio.gather(*(self._look_at(index, listed=index < count) for index in indexes))
        return bool(indexes)

    async def _look_at(self, index: int, listed: bool) -> None:
        began = self._clock()
        found = await self._ask(f"GPU {index}", lambda: self._driver.read(index)) if listed else nvml.NvmlRefused("it is no longer listed")
        if isinstance(found, Gpu):
            self._read[index] = (found, began)
            self._heard(f"GPU {index}")
        else:
            self._read.pop(index, None)
            self._lost(f"GPU {index}", str(found) or "there is no driver")

    async def _ask(self, what: str, work: Callable[[], T]) -> T | nvml.NoDriver | nvml.NvmlRefused:
        """The answer, or why there is none. A question that is still open is not put again."""
        if (answered := self._answered.get(what)) is not None and not answered():
            return nvml.NvmlRefused("it does not answer")
        answer: asyncio.Future[T | nvml.NoDriver | nvml.NvmlRefused] = asyncio.get_running_loop().create_future()
        self._answered[what] = answer.done
        # No pool: a pool's threads are joined when the process ends, and one that hangs in the driver would keep it from ending.
        threading.Thread(target=_answer, args=(answer, work), name=f"nvml {what}", daemon=True).start()
        # Not wait_for, which would cancel the future that the thread has yet to answer.
        done, _ = await asyncio.wait({answer}, timeout=self._answer_seconds)
        return answer.result() if done else nvml.NvmlRefused(f"it did not answer within {self._answer_seconds:g} s")

    def _lost(self, what: str, why: str) -> None:
        if what not in self._silent:
            _log.warning("NVML does not tell of a GPU", of=what, why=why, do="see `nvidia-smi` and the kernel's log")
        self._silent[what] = why

    def _heard(self, what: str) -> None:
        if self._silent.pop(what, None) is not None:
            _log.info("NVML tells again", of=what)


def _answer(answer: "asyncio.Future[T | nvml.NoDriver | nvml.NvmlRefused]", work: Callable[[], T]) -> None:
    """In the thread."""
    outcome: T | nvml.NoDriver | nvml.NvmlRefused
    try:
        outcome = work()
    except (nvml.NoDriver, nvml.NvmlRefused) as error:
        outcome = error
    try:
        answer.get_loop().call_soon_threadsafe(_settle, answer, outcome)
    except RuntimeError:
        pass  # the loop has ended meanwhile


def _settle(answer: asyncio.Future[T], outcome: T) -> None:
    if not answer.done():
        answer.set_result(outcome)
