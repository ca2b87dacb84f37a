"""The fake mesh, alert part of the metrics service: tests add alerts, and users silence them."""

from datetime import timedelta

import msgspec

from shared import errors
from shared.api import alerts, auth
from shared.api.alerts import Alert, Silence
from shared.api.method import Nothing
from shared.types import Credential
from tests.services.web.fake_mesh import NOW, FakeMesh


class FakeAlerts(FakeMesh):
    """Handlers, mixed into ``AdminMesh``."""

    def __init__(self) -> None:
        super().__init__()
        #: Most severe first, the service's order.
        self.alerts: list[Alert] = []
        self.silences: list[Silence] = []
        self.most_silences = 100
        self.from_alertmanager = False

    def add_alert(
        self,
        name: str = "no_worker",
        severity: str = "page",
        state: str = "firing",
        *,
        minutes: float = 12,
        ended_minutes_ago: float = 0,
        **labels: str,
    ) -> Alert:
        """Add an alert that has been firing for this many minutes."""
        ended = NOW - timedelta(minutes=ended_minutes_ago) if state == "over" else None
        alert = Alert(
            f"{len(self.alerts):012x}", name, severity, labels, state, (ended or NOW) - timedelta(minutes=minutes), ended, 0.97345,
            f"{name} is wrong", f"What {name} means for users.", f"docs/runbooks/{name}.md", False, "97.3 %",
        )  # fmt: skip
        self.alerts.append(alert)
        return alert

    def _admin(self, credential: Credential | None) -> auth.User:
        """Raises NotAllowed for other users."""
        raise NotImplementedError

    def _list_alerts(self, _request: alerts.ListAlerts, credential: Credential | None) -> alerts.Alerts:
        self._admin(credential)
        return alerts.Alerts(
            tuple(map(self._seen, self.alerts)),
            tuple(self.silences),
            from_alertmanager=self.from_alertmanager,
            watched=("no_worker", "payments_failing"),
        )

    def _silence_alerts(self, request: alerts.SilenceAlerts, credential: Credential | None) -> Silence:
        by = self._admin(credential).username
        if len(self.silences) >= self.most_silences:
            raise errors.BadRequest("there are too many silences", hint="`aicli alerts` lists them; end some")
        until = NOW + timedelta(seconds=request.seconds)
        made = Silence(f"{len(self.silences) + 1:04d}", request.name, request.labels, until, by, request.why)
        self.silences.append(made)
        return made

    def _end_silence(self, request: alerts.EndSilence, credential: Credential | None) -> Nothing:
        self._admin(credential)
        for silence in self.silences:
            if silence.id == request.id:
                self.silences.remove(silence)
                return Nothing()
        raise errors.NotFound(f"there is no silence {request.id[:40]!r}", hint="`aicli alerts` lists them")

    def _seen(self, alert: Alert) -> Alert:
        covered = any(one.name in ("", alert.name) and one.labels.items() <= alert.labels.items() for one in self.silences)
        return msgspec.structs.replace(alert, silenced=covered)
