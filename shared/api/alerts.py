"""metrics: what is wrong just now, who looks after it, and who wants to hear nothing of it."""

from datetime import datetime

import msgspec

from shared.api.method import Body, Method, Nothing
from shared.types import Role

PEOPLE = {Role.WEB, Role.CLIENT, Role.OPERATOR}


class ListAlerts(Body, frozen=True):
    pass


class Alert(Body, frozen=True, omit_defaults=False):
    #: For `acknowledgeAlert`; the same for as long as the alert lasts.
    id: str
    name: str
    #: page, critical, warning or ticket.
    severity: str
    labels: dict[str, str]
    #: pending (it has not lasted for long enough), firing, or over.
    state: str
    since: datetime
    ended: datetime | None
    value: float
    summary: str
    description: str
    #: The page that says what to do.
    runbook: str
    #: Who looks after it; empty for nobody.
    seen_by: str
    #: Nobody is told of it.
    silenced: bool
    #: The value with its unit; empty where it says no more than the alert does.
    shown: str = ""


class Silence(Body, frozen=True, omit_defaults=False):
    id: str
    #: Of the alerts; empty for all.
    name: str
    labels: dict[str, str]
    until: datetime
    by: str
    why: str


class Alerts(Body, frozen=True, omit_defaults=False):
    #: The gravest first, then those that are pending, then those of the last day that are over.
    alerts: tuple[Alert, ...]
    silences: tuple[Silence, ...]
    #: The state is of then, because PostgreSQL cannot be read; None where it is of now.
    as_of: datetime | None = None


class AcknowledgeAlert(Body, frozen=True):
    id: str


class SilenceAlerts(Body, frozen=True):
    seconds: float
    #: Of the alerts; empty for all.
    name: str = ""
    #: Those that have all of these.
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    why: str = ""


class EndSilence(Body, frozen=True):
    id: str


list_alerts = Method("metrics.listAlerts", ListAlerts, Alerts, callers=PEOPLE)
acknowledge_alert = Method("metrics.acknowledgeAlert", AcknowledgeAlert, Alert, callers=PEOPLE)
silence_alerts = Method("metrics.silenceAlerts", SilenceAlerts, Silence, callers=PEOPLE)
end_silence = Method("metrics.endSilence", EndSilence, Nothing, callers=PEOPLE)
