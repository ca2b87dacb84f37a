"""Which requests may have ended an engine.  Pure; the caller brings the clock.

When an engine dies, any of the requests on it may be the reason. Each is then suspect: it runs alone when it comes again, so that a
second death has one reason only. That one is not run a third time (RELIABILITY.md, F20).
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto

import msgspec

from services.inference.jobs.generation_job import GenerationJob

#: A hundred bytes each; thirty deaths of an engine with all its slots in use.
MOST_SUSPECTS = 1000
#: By then somebody has looked at it, or the model, the build or the memory that was missing is another.
KEPT_SECONDS = 3600.0

_encoder = msgspec.msgpack.Encoder()


class RequestSuspicion(Enum):
    CLEAR = auto()
    #: Was running when an engine died.
    SUSPECT = auto()
    #: Ended two engines, the second one alone.
    POISON = auto()


@dataclass(frozen=True, slots=True)
class _SuspectRecord:
    standing: RequestSuspicion
    at: float


def fingerprint(job: GenerationJob) -> bytes:
    """The same for the same request, whoever sends it: also with another seed, and where an answer goes on that was begun before."""
    parameters = msgspec.structs.replace(job.parameters, seed=0)
    return hashlib.sha256(_encoder.encode((job.model, job.messages, parameters, job.grammar, job.asked.tools))).digest()


class PoisonRequests:
    """What the engines of one worker have died of; they share it, because a request may come to another engine the second time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        #: The record that was written last is the last.
        self._records: OrderedDict[bytes, _SuspectRecord] = OrderedDict()

    def standing(self, request: bytes) -> RequestSuspicion:
        record = self._records.get(request)
        if record is None or self._clock() - record.at >= KEPT_SECONDS:
            return RequestSuspicion.CLEAR
        return record.standing

    def died(self, requests: Iterable[bytes], *, alone: bool) -> None:
        """An engine died with these on it. ``alone`` says that it was one, and that there was to be no other."""
        for request in requests:
            guilty = alone or self.standing(request) is RequestSuspicion.POISON
            self._records[request] = _SuspectRecord(RequestSuspicion.POISON if guilty else RequestSuspicion.SUSPECT, self._clock())
            self._records.move_to_end(request)
        while len(self._records) > MOST_SUSPECTS:
            self._records.popitem(last=False)

    def clear(self, request: bytes) -> None:
        """It ran to its end, and the engine lives."""
        self._records.pop(request, None)
