"""Tracks the requests that may have crashed an engine.  Pure; the caller passes the clock.

When an engine dies, any of its requests may be the reason. Each becomes a suspect and runs alone when it is retried. If the engine
dies again, that request is not run a third time (RELIABILITY.md, F20).
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto

import msgspec

from services.inference.jobs import GenerationJob

#: A hundred bytes each; enough for thirty crashes of a full engine.
MAX_SUSPECTS = 1000
#: After so long the cause may be gone.
KEPT_SECONDS = 3600.0

_encoder = msgspec.msgpack.Encoder()


class RequestSuspicion(Enum):
    CLEAR = auto()
    #: Ran when an engine died.
    SUSPECT = auto()
    #: Crashed two engines, the second one alone.
    POISON = auto()


@dataclass(frozen=True, slots=True)
class _SuspectRecord:
    suspicion: RequestSuspicion
    at: float


def fingerprint(job: GenerationJob) -> bytes:
    """Identify a request, regardless of the caller, the seed and tokens that were delivered before."""
    requested = msgspec.structs.replace(job.requested, seed=None)
    return hashlib.sha256(_encoder.encode((job.model, job.messages, requested))).digest()


def text_fingerprint(*what: object) -> bytes:
    return hashlib.sha256(_encoder.encode(what)).digest()


class PoisonRequests:
    """The suspects of one worker. Its engines share it, because a retry may run on another engine."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._records: OrderedDict[bytes, _SuspectRecord] = OrderedDict()

    def suspicion(self, request: bytes) -> RequestSuspicion:
        record = self._records.get(request)
        if record is None or self._clock() - record.at >= KEPT_SECONDS:
            return RequestSuspicion.CLEAR
        return record.suspicion

    def died(self, requests: Iterable[bytes], *, alone: bool) -> None:
        """An engine died while it ran these. ``alone``: it was a single request with an exclusive turn."""
        for request in requests:
            guilty = alone or self.suspicion(request) is RequestSuspicion.POISON
            self._records[request] = _SuspectRecord(RequestSuspicion.POISON if guilty else RequestSuspicion.SUSPECT, self._clock())
            self._records.move_to_end(request)
        while len(self._records) > MAX_SUSPECTS:
            self._records.popitem(last=False)

    def clear(self, request: bytes) -> None:
        """Forget a request that finished without a crash."""
        self._records.pop(request, None)
