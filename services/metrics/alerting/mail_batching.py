"""When a mail about alerts is due, and which alerts are in it: those that came together, and not too many mails in an hour.

Pure; the caller brings the clock, seconds that are never set back.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from services.metrics.alerting.alert_state import ActiveAlert, AlertNotice
from services.metrics.alerting.rules.alert_rule import Severity

#: What nobody has to get up for waits so long for more of its kind; so does the word that something is over.
GATHER_SECONDS: Final = 180.0
#: A storm of alerts is one trouble, and whoever gets a mail a minute reads none.
MOST_AN_HOUR: Final = 20
#: The gravest of so many alerts wait; of the others there is the number.
MOST_WAITING: Final = 500
_HOUR_SECONDS: Final = 3600.0

_GRAVITY: Final = {severity: place for place, severity in enumerate(Severity)}
_AT_ONCE: Final = (Severity.PAGE, Severity.CRITICAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class MailBatch:
    """What one mail tells, the gravest first."""

    began: tuple[ActiveAlert, ...]
    ended: tuple[ActiveAlert, ...]
    #: Beyond these so many were not kept.
    left_out: int = 0
    #: So long it has waited because of too many mails before; None where it has not.
    held_seconds: float | None = None
    #: It is the last that this hour allows: so long no other goes out.
    pause_seconds: float | None = None

    def __len__(self) -> int:
        return len(self.began) + len(self.ended) + self.left_out


class MailBatching:
    def __init__(self) -> None:
        #: The latest of each: what began and ended while it waited is over.
        self._waiting: dict[str, ActiveAlert] = {}
        self._left_out = 0
        #: When what waits shall go out; None while nothing does.
        self._due_at: float | None = None
        #: When mails of the last hour went out.
        self._sent: list[float] = []
        #: When the last pause ended, or will end.
        self._pause_until = float("-inf")

    def __len__(self) -> int:
        """Alerts that nobody was told of yet."""
        return len(self._waiting) + self._left_out

    def note(self, news: AlertNotice, now: float) -> None:
        for alarm in (*news.began, *news.ended):
            self._waiting[alarm.id] = alarm
        gravest = sorted(self._waiting.values(), key=_rank)
        for alarm in gravest[MOST_WAITING:]:
            del self._waiting[alarm.id]
            self._left_out += 1
        if news:
            is_urgent = any(alarm.rule.severity in _AT_ONCE for alarm in news.began)
            due_at = now if is_urgent else now + GATHER_SECONDS
            self._due_at = due_at if self._due_at is None else min(self._due_at, due_at)

    def seconds_to_wait(self, now: float) -> float | None:
        """Until there is one to take; None while nothing waits."""
        return None if self._due_at is None else max(0.0, max(self._due_at, self._room_at(now)) - now)

    def take_due(self, now: float) -> MailBatch | None:
        """It is the caller's now, and counts as sent."""
        due_at = self._due_at
        if due_at is None or due_at > now or self._room_at(now) > now:
            return None
        self._sent.append(now)
        made = MailBatch(
            began=_sorted(alarm for alarm in self._waiting.values() if alarm.ended is None),
            ended=_sorted(alarm for alarm in self._waiting.values() if alarm.ended is not None),
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


def _sorted(alarms: Iterable[ActiveAlert]) -> tuple[ActiveAlert, ...]:
    return tuple(sorted(alarms, key=_rank))


def _rank(alarm: ActiveAlert) -> tuple[bool, int, float]:
    """What is over comes last, then the less grave, then the younger."""
    return alarm.ended is not None, _GRAVITY[alarm.rule.severity], alarm.since
