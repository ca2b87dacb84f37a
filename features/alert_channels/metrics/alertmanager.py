"""Show the alerts and silences of Alertmanager (API v2), and silence there. Nothing is evaluated or sent here."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from services.metrics.alerting import silence_store
from services.metrics.alerting.rules import RANKS, Severity
from shared import errors
from shared.api import alerts as api
from shared.api.gateway import Check
from shared.api.method import Nothing
from shared.rpc import RpcCall, serves
from shared.transports.http_transport import HttpTransport
from shared.types import Moment

#: Less than the deadline of a page.
_SECONDS: Final = 2.0
#: Some thousand alerts.
_MAX_BYTES: Final = 8 * 2**20
_NAME, _SEVERITY = "alertname", "severity"
_EXPIRED: Final = "expired"
#: What its versions return for an unknown silence, or for an id that is none.
_NO_SILENCE: Final = (301, 400, 404, 422, 500)
_HINT: Final = "check that it is running and that ALERTMANAGER_URL is right"


class _Status(msgspec.Struct):
    state: str


class _Alert(msgspec.Struct, rename="camel"):
    fingerprint: str
    labels: dict[str, str]
    annotations: dict[str, str]
    starts_at: Moment
    status: _Status


class _Matcher(msgspec.Struct, rename="camel"):
    name: str
    value: str
    is_regex: bool = False
    is_equal: bool = True


class _Silence(msgspec.Struct, rename="camel"):
    matchers: list[_Matcher]
    starts_at: Moment
    ends_at: Moment
    created_by: str
    comment: str
    id: str | None = None
    status: _Status | None = None


class _Made(msgspec.Struct, rename={"id": "silenceID"}):
    id: str


T = TypeVar("T")
_ALERTS = msgspec.json.Decoder(list[_Alert])
_SILENCES = msgspec.json.Decoder(list[_Silence])
_MADE = msgspec.json.Decoder(_Made)


class Alertmanager:
    """The handlers. They raise Unavailable if Alertmanager does not answer."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._trouble = ""

    def checks(self) -> tuple[Check, ...]:
        return (Check("Alertmanager", ok=not self._trouble, detail=self._trouble, needed=False),)

    @serves(api.list_alerts)
    async def list_alerts(self, request: api.ListAlerts, call: RpcCall) -> api.Alerts:
        found = [_shown(one) for one in await self._ask("GET", "alerts", _ALERTS.decode)]
        # The watchdog always fires.
        wanted = [alert for alert in found if alert.severity != Severity.NONE]
        ranks = {severity.value: rank for severity, rank in RANKS.items()}
        wanted.sort(key=lambda alert: (ranks.get(alert.severity, len(ranks)), alert.since))
        silences = await self._ask("GET", "silences", _SILENCES.decode)
        lasting = (one for one in silences if one.status is None or one.status.state != _EXPIRED)
        return api.Alerts(tuple(wanted), tuple(map(_shown_silence, lasting)), from_alertmanager=True)

    @serves(api.silence_alerts)
    async def silence_alerts(self, request: api.SilenceAlerts, call: RpcCall) -> api.Silence:
        matchers = [_Matcher(name, value) for name, value in sorted(request.labels.items())]
        matchers.insert(0, _Matcher(_NAME, request.name) if request.name else _Matcher(_NAME, ".+", is_regex=True))
        now = datetime.now(UTC).replace(microsecond=0)
        by = silence_store.name_of_caller(call)
        made = _Silence(matchers, now, now + timedelta(seconds=request.seconds), by, request.why or "no reason given")
        return _shown_silence(msgspec.structs.replace(made, id=(await self._ask("POST", "silences", _MADE.decode, made)).id))

    @serves(api.end_silence)
    async def end_silence(self, request: api.EndSilence, call: RpcCall) -> Nothing:
        await self._ask("DELETE", f"silence/{quote(request.id, safe='')}", bytes)
        return Nothing()

    async def _ask(self, method: str, path: str, read: Callable[[bytes], T], body: _Silence | None = None) -> T:
        try:
            status, content = await self._send(method, path, body)
            if status < 300:
                found = read(content)
                self._trouble = ""
                return found
            trouble = f"it returned {status}"
        except (httpx.HTTPError, OSError, ValueError) as error:
            status, trouble = 0, f"it does not answer: {type(error).__name__}"
        if method == "DELETE" and status in _NO_SILENCE:
            raise errors.NotFound("there is no such silence", hint="run `aicli alerts` to list them")
        self._trouble = f"{trouble}; {_HINT}"
        raise errors.Unavailable(f"Alertmanager: {trouble}", hint=_HINT)

    async def _send(self, method: str, path: str, body: _Silence | None) -> tuple[int, bytes]:
        """Raises ValueError for an answer that is too long."""
        content = None if body is None else msgspec.json.encode(body)
        headers = {} if content is None else {"content-type": "application/json"}
        async with (
            httpx.AsyncClient(transport=HttpTransport(trust_env=False), timeout=_SECONDS) as client,
            client.stream(method, f"{self._url}/api/v2/{path}", content=content, headers=headers) as answer,
        ):
            found = b""
            async for piece in answer.aiter_bytes():
                found += piece
                if len(found) > _MAX_BYTES:
                    raise ValueError("too long")
            return answer.status_code, found


def _shown(one: _Alert) -> api.Alert:
    texts = one.annotations
    return api.Alert(
        id=one.fingerprint,
        name=one.labels.get(_NAME, ""),
        severity=one.labels.get(_SEVERITY, ""),
        labels={name: value for name, value in one.labels.items() if name not in (_NAME, _SEVERITY)},
        state="firing",
        since=one.starts_at,
        ended=None,
        value=0.0,
        summary=texts.get("summary", one.labels.get(_NAME, "")),
        description=texts.get("description", ""),
        runbook=texts.get("runbook_url", ""),
        # By a silence, or because another alert inhibits it.
        silenced=one.status.state == "suppressed",
    )


def _shown_silence(one: _Silence) -> api.Silence:
    """A matcher that is no equality is shown as it is written, such as `node=~…` or `node!=…`."""
    exact = {matcher.name: matcher.value for matcher in one.matchers if matcher.is_equal and not matcher.is_regex}
    every = _Matcher(_NAME, ".+", is_regex=True)
    others = {
        matcher.name + ("" if matcher.is_equal else "!"): ("~" if matcher.is_regex else "") + matcher.value
        for matcher in one.matchers
        if matcher != every and (matcher.is_regex or not matcher.is_equal)
    }
    return api.Silence(one.id or "", exact.pop(_NAME, ""), {**exact, **others}, one.ends_at, one.created_by, one.comment)
