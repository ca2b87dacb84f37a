"""Show the alerts, live, with their runbooks, and let administrators silence them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from services.web import live_updates, runbooks
from services.web.http import forms
from services.web.http.event_response import EventResponse
from services.web.pages.admin import alert_view
from services.web.pages.admin.alert_view import AlertsView, AlertView
from services.web.request_context import PAGE_CALL_SECONDS, Page, PageRequest
from shared import errors
from shared.api import alerts
from shared.lists.alerts import STATES
from shared.lists.columns import Column

_RUNBOOKS = "/admin/runbooks"
#: Duration of a silence in seconds -> label.
LIFETIMES = {3600: "1 hour", 4 * 3600: "4 hours", 86_400: "1 day", 7 * 86_400: "1 week"}
_DONE = {
    "silenced": "Alert silenced. It stays on this list, but sends no notifications.",
    "ended": "Silence ended. Alerts that still fire send notifications again.",
}


class SilenceForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    lifetime: str = "3600"
    #: `this`: the alert with these labels; `name`: all alerts of this name.
    covers: str = "this"
    why: str = ""


NOTHING_TYPED = SilenceForm()


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertsPage:
    lines: AlertsView
    lifetimes: ClassVar[Mapping[int, str]] = LIFETIMES
    #: Templates for rows added later.
    blank: ClassVar[AlertView] = AlertView()
    blank_silence: ClassVar[Mapping[str, str]] = alert_view.BLANK_SILENCE
    silence_columns: ClassVar[tuple[Column[alerts.Silence], ...]] = alert_view.SILENCE_COLUMNS
    states: ClassVar[Mapping[str, str]] = STATES
    nothing_typed: ClassVar[SilenceForm] = NOTHING_TYPED
    #: The alert and the values of a rejected silence.
    typed_for: str = ""
    typed: SilenceForm = NOTHING_TYPED


@dataclass(frozen=True, slots=True, kw_only=True)
class RunbookPage:
    name: str
    #: Markdown, which the page's script formats.
    text: str


@get("/admin/alerts")
async def show_alerts(page_request: NamedDependency[PageRequest]) -> Page:
    found = await page_request.fetch(alerts.list_alerts, alerts.ListAlerts())
    if found is not None:
        # Update the banner on all pages.
        page_request.app.alert_poller.note(found)
    return page_request.page("admin/alerts.html", AlertsPage(lines=alert_view.describe(found, page_request.app.now())), notices=_DONE)


@get("/live/alerts")
async def follow_alerts(page_request: NamedDependency[PageRequest]) -> EventResponse:
    """Stream the alerts. If the metrics service goes down, the page keeps its content and is marked as stale."""

    async def read() -> live_updates.Values:
        found = await page_request.call(alerts.list_alerts, alerts.ListAlerts(), deadline_seconds=PAGE_CALL_SECONDS)
        page_request.app.alert_poller.note(found)
        return asdict(alert_view.describe(found, page_request.app.now()))

    return page_request.follow(read)


@post("/admin/alerts/{alert_id:str}/silence")
async def silence(page_request: NamedDependency[PageRequest], alert_id: FromPath[str]) -> Page:
    form = await page_request.read_form(SilenceForm)
    try:
        found = await page_request.submit(alerts.list_alerts, alerts.ListAlerts(), deadline_seconds=PAGE_CALL_SECONDS)
        wanted = read_silence(form, find(found, alert_id))
        await page_request.submit(alerts.silence_alerts, wanted, deadline_seconds=PAGE_CALL_SECONDS)
    except (errors.CallerError, errors.PeerError) as error:
        return await _refused(page_request, error, typed_for=alert_id, typed=form)
    return page_request.redirect("/admin/alerts?done=silenced")


@post("/admin/alerts/silences/{silence_id:str}/end")
async def end_silence(page_request: NamedDependency[PageRequest], silence_id: FromPath[str]) -> Page:
    await page_request.read_form(forms.Confirmation)
    try:
        await page_request.submit(alerts.end_silence, alerts.EndSilence(silence_id), deadline_seconds=PAGE_CALL_SECONDS)
    except (errors.CallerError, errors.PeerError) as error:
        return await _refused(page_request, error)
    return page_request.redirect("/admin/alerts?done=ended")


def find(found: alerts.Alerts, alert_id: str) -> alerts.Alert:
    """Return the alert. Raises NotFound. Resolved alerts can be silenced, because they may fire again."""
    for alert in found.alerts:
        if alert.id == alert_id:
            return alert
    raise errors.NotFound("this alert was resolved and is no longer listed", hint="choose one from the list")


def read_silence(form: SilenceForm, alert: alerts.Alert) -> alerts.SilenceAlerts:
    """Return the request for a silence. Raises BadRequest."""
    if form.lifetime not in map(str, LIFETIMES):
        raise errors.BadRequest("unknown duration", hint=f"choose one of {', '.join(LIFETIMES.values())}")
    if form.covers not in ("this", "name"):
        raise errors.BadRequest("unknown scope", hint="choose this alert or all alerts of its name")
    why = forms.read_text(form.why, "the reason", alerts.SilenceAlerts, "why")
    return alerts.SilenceAlerts(float(form.lifetime), alert.name, alert.labels if form.covers == "this" else {}, why)


@get(f"{_RUNBOOKS}/{{name:str}}")
async def show_runbook(page_request: NamedDependency[PageRequest], name: FromPath[str]) -> Page:
    text = page_request.app.runbooks.get(name)
    if text is None:
        raise errors.NotFound("there is no such runbook", hint="look in docs/runbooks of the source code")
    return page_request.page("admin/runbook.html", RunbookPage(name=name, text=runbooks.prepare(text, page_request.address + _RUNBOOKS)))


async def _refused(
    page_request: PageRequest, error: errors.AimeshError, *, typed_for: str = "", typed: SilenceForm = NOTHING_TYPED
) -> Page:
    found = await page_request.fetch(alerts.list_alerts, alerts.ListAlerts())
    lines = alert_view.describe(found, page_request.app.now())
    return page_request.page("admin/alerts.html", AlertsPage(lines=lines, typed_for=typed_for, typed=typed), problem=error)
