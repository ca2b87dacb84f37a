"""Combine equal refusals before they are logged, within a bound; count what exceeds it. Pure.

The first of a kind can be written at once. Equal ones within a minute become one row at its end, so a thousand failed logins fill a row per
minute and not a table.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec

from services.auth import audit_records
from shared.api.audit import AuditedAct

BATCH_SECONDS = 60
#: Some megabytes. If PostgreSQL is down, or under many different refusals, further ones are only counted.
MAX_WAITING = 5000

_Kind = tuple[str, UUID | None, UUID | None, str, str, str, tuple[tuple[str, str], ...]]


@dataclass(slots=True)
class _Open:
    """A kind that was seen less than a minute ago."""

    until: float
    #: The first after the written one, for its time and request.
    next_refusal: AuditedAct | None = None
    times: int = 0


class RefusalBatching:
    """``add`` refusals, ``take`` what to write, and ``requeue`` what could not be written. ``now`` is a monotonic time."""

    def __init__(self, most: int = MAX_WAITING) -> None:
        self._most = most
        self._ready: deque[AuditedAct] = deque()
        #: In the order in which their minutes end.
        self._open: OrderedDict[_Kind, _Open] = OrderedDict()
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._ready) + len(self._open)

    def add(self, act: AuditedAct, now: float) -> None:
        kind = _kind(act)
        known = self._open.get(kind)
        if known is not None and now < known.until:
            known.next_refusal = known.next_refusal or act
            known.times += act.times
            return
        if len(self) >= self._most:
            self._dropped += act.times
            return
        if known is not None:
            self._close(kind, known)
        self._ready.append(act)
        self._open[kind] = _Open(now + BATCH_SECONDS)

    def take(self, most: int, now: float, *, all_of_them: bool = False) -> list[AuditedAct]:
        """Return the oldest ones to write now. ``all_of_them`` doesn't wait for a minute to end."""
        while self._open:
            kind, first = next(iter(self._open.items()))
            if first.until > now and not all_of_them:
                break
            self._close(kind, first)
        if self._dropped and len(self._ready) < most:
            self._ready.append(audit_records.overflow(self._dropped))
            self._dropped = 0
        return [self._ready.popleft() for _ in range(min(most, len(self._ready)))]

    def requeue(self, taken: Sequence[AuditedAct]) -> None:
        """Put them first in the queue; count those that no longer fit."""
        room = max(0, self._most - len(self))
        self._ready.extendleft(reversed(taken[:room]))
        self._dropped += sum(act.times for act in taken[room:])

    def _close(self, kind: _Kind, known: _Open) -> None:
        del self._open[kind]
        if known.next_refusal is not None:
            self._ready.append(msgspec.structs.replace(known.next_refusal, times=known.times))


def _kind(act: AuditedAct) -> _Kind:
    return (act.action, act.tenant_id, act.actor, act.result, act.target, act.address, tuple(act.details.items()))
