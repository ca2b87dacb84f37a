"""Track what each channel still has to send. The next leader continues with what this one could not deliver."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol, TypeAlias

from services.metrics.alerting.alert_state import ActiveAlert, AlertNotice, StoredAlertState
from shared.api.gateway import Check


class NotificationChannel(Protocol):
    """A notification channel: webhook or email."""

    def notify(self, notice: AlertNotice) -> None:
        """Queue alerts for ``run``; bounded, never blocks."""
        ...

    async def run(self) -> None:
        """Send queued alerts until cancelled."""
        ...

    @property
    def waiting(self) -> int:
        """Return the number of unsent notices."""
        ...

    def check(self) -> Check:
        """Check whether the last delivery succeeded. Never required for readiness."""
        ...


_Key: TypeAlias = tuple[str, bool]


class Delivery:
    """The deliveries of one leader."""

    def __init__(self, channels: Iterable[NotificationChannel]) -> None:
        self.channels = {channel.check().name: channel for channel in channels}
        self._owed: dict[str, dict[_Key, ActiveAlert]] = {name: {} for name in self.channels}
        #: The part of it that was passed to the channel, which may not have sent it yet.
        self._handed: dict[str, set[_Key]] = {name: set() for name in self.channels}

    def note(self, alerts: Iterable[ActiveAlert], names: Iterable[str] | None = None) -> None:
        """Schedule alerts for all channels, or for ``names``."""
        alerts = tuple(alerts)
        for name in self.channels if names is None else self.channels.keys() & set(names):
            for alert in alerts:
                self._owed[name][_key(alert)] = alert
                self._handed[name].discard(_key(alert))

    def resume(self, stored: Iterable[StoredAlertState]) -> None:
        """Take over the last leader's unsent alerts."""
        for one in stored:
            self.note([one.alert], one.owed)

    def hand_over(self) -> None:
        for name, channel in self.channels.items():
            fresh = [alert for key, alert in self._owed[name].items() if key not in self._handed[name]]
            if fresh:
                channel.notify(
                    AlertNotice(tuple(one for one in fresh if one.ended is None), tuple(one for one in fresh if one.ended is not None))
                )
                self._handed[name].update(map(_key, fresh))

    @property
    def has_taken(self) -> bool:
        """Return whether a channel has sent everything, and ``settle`` was not called yet."""
        return any(self._handed[name] and not channel.waiting for name, channel in self.channels.items())

    def settle(self) -> None:
        """Forget what was sent."""
        for name, channel in self.channels.items():
            if not channel.waiting:
                for key in self._handed[name]:
                    del self._owed[name][key]
                self._handed[name].clear()

    def with_owed(self, remembered: Iterable[StoredAlertState]) -> Sequence[StoredAlertState]:
        """Add the unsent channels. Sets ``notified`` for replicas before 0.2, which else assume that the end was sent."""
        found = []
        for one in remembered:
            owed = tuple(name for name, alerts in self._owed.items() if _key(one.alert) in alerts)
            found.append(replace(one, owed=owed, notified=one.notified or bool(owed)))
        return found


def _key(alert: ActiveAlert) -> _Key:
    return alert.id, alert.ended is not None
