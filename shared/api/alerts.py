"""metrics: alerts and silences."""

from typing import Annotated

import msgspec

from shared.api.method import PEOPLE_OR_GATEWAY, Body, Method, Nothing
from shared.types import Moment


class ListAlerts(Body, frozen=True):
    pass


class Alert(Body, frozen=True, omit_defaults=False):
    #: Stays the same while the alert lasts.
    id: str
    name: str
    #: page, critical, warning or ticket.
    severity: str
    labels: dict[str, str]
    #: pending (not yet long enough), firing, or over.
    state: str
    since: Moment
    ended: Moment | None
    value: float
    summary: str
    description: str
    #: The URL of the runbook.
    runbook: str
    #: Nobody is notified.
    silenced: bool
    #: The value with its unit; empty if it adds nothing.
    shown: str = ""


class Silence(Body, frozen=True, omit_defaults=False):
    id: str
    #: The alert's name; empty for all alerts.
    name: str
    labels: dict[str, str]
    until: Moment
    by: str
    why: str


class Alerts(Body, frozen=True, omit_defaults=False):
    #: The most severe first, then pending ones, then those that ended in the last day.
    alerts: tuple[Alert, ...]
    silences: tuple[Silence, ...]
    #: When the state was read, if PostgreSQL cannot be read now; None for the current state.
    as_of: Moment | None = None
    #: They are Alertmanager's, which knows neither pending nor resolved ones.
    from_alertmanager: bool = False
    #: The alerts that the metrics service watches itself, by name.
    watched: tuple[str, ...] = ()


_Text = Annotated[str, msgspec.Meta(max_length=200)]


class SilenceAlerts(Body, frozen=True):
    seconds: Annotated[float, msgspec.Meta(ge=1, le=30 * 86_400)]
    #: The alert's name; empty for all alerts.
    name: str = ""
    #: Only alerts with all of these labels.
    labels: Annotated[dict[_Text, _Text], msgspec.Meta(max_length=10)] = msgspec.field(default_factory=dict)
    why: _Text = ""


class EndSilence(Body, frozen=True):
    id: str


list_alerts = Method("metrics.listAlerts", ListAlerts, Alerts, callers=PEOPLE_OR_GATEWAY)
silence_alerts = Method("metrics.silenceAlerts", SilenceAlerts, Silence, callers=PEOPLE_OR_GATEWAY)
end_silence = Method("metrics.endSilence", EndSilence, Nothing, callers=PEOPLE_OR_GATEWAY)
