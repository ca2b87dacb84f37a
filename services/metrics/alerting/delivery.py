"""What each way to people still has to tell. Until a way has taken it, it is owed: the next leader hands over what this one could not."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol, TypeAlias

from services.metrics.alerting.alert_state import ActiveAlert, AlertNotice, StoredAlertState
from shared.api.gateway import Check


class Way(Protocol):
    """How alerts reach people who do not look at the pages."""

    def tell(self, news: AlertNotice) -> None:
        """Keeps them until ``run`` has handed them on; bounded, and never waits."""
        ...

    async def run(self) -> None:
        """For ever: hand on what waits."""
        ...

    @property
    def waiting(self) -> int:
        """News that nobody has taken yet."""
        ...

    def check(self) -> Check:
        """Whether the last news were taken; the service can do without."""
        ...


#: An alert, and whether it is over.
_Key: TypeAlias = tuple[str, bool]


class Delivery:
    """Of one leader, from when it leads until it does no more."""

    def __init__(self, ways: Iterable[Way]) -> None:
        self.ways = {way.check().name: way for way in ways}
        self._owed: dict[str, dict[_Key, ActiveAlert]] = {name: {} for name in self.ways}
        #: What of that a way has and may not have told yet.
        self._handed: dict[str, set[_Key]] = {name: set() for name in self.ways}

    def note(self, alarms: Iterable[ActiveAlert], names: Iterable[str] | None = None) -> None:
        """To be told, by all ways or by these."""
        alarms = tuple(alarms)
        for name in self.ways if names is None else self.ways.keys() & set(names):
            for alarm in alarms:
                self._owed[name][_key(alarm)] = alarm
                self._handed[name].discard(_key(alarm))

    def resume(self, stored: Iterable[StoredAlertState]) -> None:
        """What the last leader owed."""
        for one in stored:
            self.note([one.alarm], one.owed)

    def hand_over(self) -> None:
        for name, way in self.ways.items():
            fresh = [alarm for key, alarm in self._owed[name].items() if key not in self._handed[name]]
            if fresh:
                way.tell(
                    AlertNotice(tuple(one for one in fresh if one.ended is None), tuple(one for one in fresh if one.ended is not None))
                )
                self._handed[name].update(map(_key, fresh))

    @property
    def has_taken(self) -> bool:
        """Whether a way has told what it was handed, and that is not settled."""
        return any(self._handed[name] and not way.waiting for name, way in self.ways.items())

    def settle(self) -> None:
        """What was told is owed no more."""
        for name, way in self.ways.items():
            if not way.waiting:
                for key in self._handed[name]:
                    del self._owed[name][key]
                self._handed[name].clear()

    def with_owed(self, remembered: Iterable[StoredAlertState]) -> Sequence[StoredAlertState]:
        """Replicas before 0.2 take the end of an alert for told where ``told`` is false."""
        found = []
        for one in remembered:
            owed = tuple(name for name, alarms in self._owed.items() if _key(one.alarm) in alarms)
            found.append(replace(one, owed=owed, told=one.told or bool(owed)))
        return found


def _key(alarm: ActiveAlert) -> _Key:
    return alarm.id, alarm.ended is not None
