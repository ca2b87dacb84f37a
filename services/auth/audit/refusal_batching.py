"""Refusals on their way into the log: equal ones together, never more than a bound, and what is beyond it counted. Pure.

The first of a kind may be written at once; the equal ones that follow within a minute become one row when the minute is over, so that
somebody who tries a thousand passwords fills a row a minute and not a table.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec

from services.auth import audit_records
from shared.api.audit import AuditedAct

#: How long equal refusals are gathered into one row.
GATHER_SECONDS = 60
#: Acts that wait: some megabytes. With PostgreSQL away, or under different refusals from everywhere, more are only counted.
MOST_WAITING = 5000

_Kind = tuple[str, UUID | None, UUID | None, str, str, str, tuple[tuple[str, str], ...]]


@dataclass(slots=True)
class _Open:
    """A kind that was seen less than a minute ago."""

    until: float
    #: The first that came after the one that was handed out, for its time and its request; None where none did.
    following: AuditedAct | None = None
    times: int = 0


class RefusalBatching:
    """``note`` what happens, ``take`` what is to be written, ``give_back`` what could not be. ``now`` is a monotonic time."""

    def __init__(self, most: int = MOST_WAITING) -> None:
        self._most = most
        self._ready: deque[AuditedAct] = deque()
        #: In the order in which their minutes end.
        self._open: OrderedDict[_Kind, _Open] = OrderedDict()
        self._overlooked = 0

    def __len__(self) -> int:
        return len(self._ready) + len(self._open)

    def note(self, act: AuditedAct, now: float) -> None:
        kind = _kind(act)
        known = self._open.get(kind)
        if known is not None and now < known.until:
            known.following = known.following or act
            known.times += act.times
            return
        if len(self) >= self._most:
            self._overlooked += act.times
            return
        if known is not None:
            self._close(kind, known)
        self._ready.append(act)
        self._open[kind] = _Open(now + GATHER_SECONDS)

    def take(self, most: int, now: float, *, all_of_them: bool = False) -> list[AuditedAct]:
        """The oldest that are to be written now; ``all_of_them`` does not wait for a minute to end."""
        while self._open:
            kind, first = next(iter(self._open.items()))
            if first.until > now and not all_of_them:
                break
            self._close(kind, first)
        if self._overlooked and len(self._ready) < most:
            self._ready.append(audit_records.overlooked(self._overlooked))
            self._overlooked = 0
        return [self._ready.popleft() for _ in range(min(most, len(self._ready)))]

    def give_back(self, taken: Sequence[AuditedAct]) -> None:
        """They go first the next time; what has no room any more is counted."""
        room = max(0, self._most - len(self))
        self._ready.extendleft(reversed(taken[:room]))
        self._overlooked += sum(act.times for act in taken[room:])

    def _close(self, kind: _Kind, known: _Open) -> None:
        del self._open[kind]
        if known.following is not None:
            self._ready.append(msgspec.structs.replace(known.following, times=known.times))


def _kind(act: AuditedAct) -> _Kind:
    return (act.action, act.tenant_id, act.actor, act.result, act.target, act.address, tuple(act.details.items()))
