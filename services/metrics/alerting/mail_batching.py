"""Decide when to send an email about alerts, and which alerts it has. Limits the emails per hour.

Pure; the caller supplies a monotonic clock.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from services.metrics.alerting.alert_state import ActiveAlert, AlertNotice
from services.metrics.alerting.rules.alert_rule import Severity

#: How long less severe and resolved alerts wait for others, to share an email.
GATHER_SECONDS: Final = 180.0
#: Nobody reads an email per minute.
MOST_AN_HOUR: Final = 20
#: The most severe alerts are queued; the rest are counted.
MOST_WAITING: Final = 500
_HOUR_SECONDS: Final = 3600.0

_RANK: Final = {severity: place for place, severity in enumerate(Severity)}
_AT_ONCE: Final = (Severity.PAGE, Severity.CRITICAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class MailBatch:
    """The content of one email, most severe first."""

    began: tuple[ActiveAlert, ...]
    ended: tuple[ActiveAlert, ...]
    #: How many further alerts are only counted.
    left_out: int = 0
    #: How long the hourly limit delayed it; None without a delay.
    held_seconds: float | None = None
    #: If it is the last that the hourly limit allows: the pause until the next.
    pause_seconds: float | None = None

    def __len__(self) -> int:
        return len(self.began) + len(self.ended) + self.left_out


class MailBatching:
    def __init__(self) -> None:
        self._waiting: dict[str, ActiveAlert] = {}
        self._left_out = 0
        #: When to send the next email; None if nothing is queued.
        self._due_at: float | None = None
        self._sent: list[float] = []
        self._pause_until = float("-inf")

    def __len__(self) -> int:
        """Return the number of unsent alerts."""
        return len(self._waiting) + self._left_out

    def note(self, notice: AlertNotice, now: float) -> None:
        for alert in (*notice.began, *notice.ended):
            self._waiting[alert.id] = alert
        gravest = sorted(self._waiting.values(), key=_rank)
        for alert in gravest[MOST_WAITING:]:
            del self._waiting[alert.id]
            self._left_out += 1
        if notice:
            is_urgent = any(alert.rule.severity in _AT_ONCE for alert in notice.began)
            due_at = now if is_urgent else now + GATHER_SECONDS
            self._due_at = due_at if self._due_at is None else min(self._due_at, due_at)

    def seconds_to_wait(self, now: float) -> float | None:
        """Return the time until the next email; None if nothing is queued."""
        return None if self._due_at is None else max(0.0, max(self._due_at, self._room_at(now)) - now)

    def take_due(self, now: float) -> MailBatch | None:
        """Return the email to send now, or None. It then counts as sent."""
        due_at = self._due_at
        if due_at is None or due_at > now or self._room_at(now) > now:
            return None
        self._sent.append(now)
        made = MailBatch(
            began=_sorted(alert for alert in self._waiting.values() if alert.ended is None),
            ended=_sorted(alert for alert in self._waiting.values() if alert.ended is not None),
            left_out=self._left_out,
            held_seconds=now - due_at if due_at < self._pause_until else None,
            pause_seconds=self._room_at(now) - now if len(self._sent) >= MOST_AN_HOUR else None,
        )
        self._pause_until = self._room_at(now)
        self._waiting, self._left_out, self._due_at = {}, 0, None
        return made

    def _room_at(self, now: float) -> float:
        self._sent = [at for at in self._sent if now - at < _HOUR_SECONDS]
        return self._sent[-MOST_AN_HOUR] + _HOUR_SECONDS if len(self._sent) >= MOST_AN_HOUR else now


def _sorted(alerts: Iterable[ActiveAlert]) -> tuple[ActiveAlert, ...]:
    return tuple(sorted(alerts, key=_rank))


def _rank(alert: ActiveAlert) -> tuple[bool, int, float]:
    return alert.ended is not None, _RANK[alert.rule.severity], alert.since
