"""From metrics to alerts: the list, the log, the webhook, and what users do about them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from services.metrics.alerting import alert_state, sample_window, webhook
from services.metrics.alerting.alert_state import AlertNotice
from services.metrics.alerting.rule_watch import RuleWatch
from services.metrics.alerting.rules.evaluation import labels
from services.metrics.alerting.rules.expressions import Selector
from services.metrics.alerting.sample_window import Sample
from services.metrics.alerting.webhook import Webhook
from shared import errors
from shared.api import alerts as api
from shared.rpc import RpcCall
from shared.telemetry import instruments
from shared.timing.backoff import Backoff
from tests.services.metrics.alerting.chat import Chat
from tests.services.web.servers import serving
from tests.testnet import until

CALL = cast("RpcCall", type("OfAnOperator", (), {"found": None})())
WELL = "\n".join(
    f'ai_platform_node_up{{service="{service}",node="UAAA"}} 1' for service in ("auth", "gateway", "inference", "metrics", "web")
)
DRIFTING = 'ai_platform_ledger_drift_micro{service="gateway",node="UAAA"} 5\n' + WELL


class Mesh:
    def __init__(self) -> None:
        self.text = WELL
        self.now = 1_000_000.0
        self.notice: list[AlertNotice] = []

    async def read(self) -> str:
        return self.text

    def watch(self) -> RuleWatch:
        return RuleWatch(self.read, lambda: self.now)

    async def look(self, watch: RuleWatch) -> None:
        alerts = await watch.look()
        if alerts:
            self.notice.append(
                AlertNotice(tuple(one for one in alerts if one.ended is None), tuple(one for one in alerts if one.ended is not None))
            )


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


async def states(watch: RuleWatch) -> dict[str, str]:
    found = await watch.list_alerts(api.ListAlerts(), CALL)
    return {alert.name: alert.state for alert in found.alerts}


async def look_for_minutes(mesh: Mesh, watch: RuleWatch, minutes: int) -> None:
    for _ in range(minutes * 4):
        await mesh.look(watch)
        mesh.now += 15


async def test_all_is_well(mesh: Mesh) -> None:
    watch = mesh.watch()
    await look_for_minutes(mesh, watch, 15)
    assert await states(watch) == {}
    assert mesh.notice == []


async def test_alert_is_listed_sent_and_resolved(mesh: Mesh) -> None:
    watch = mesh.watch()
    await look_for_minutes(mesh, watch, 1)
    mesh.text = DRIFTING
    await look_for_minutes(mesh, watch, 10)
    assert await states(watch) == {"ledger_drift": "firing"}
    [alert] = (await watch.list_alerts(api.ListAlerts(), CALL)).alerts
    assert (alert.severity, alert.runbook, alert.silenced, alert.seen_by) == ("page", "docs/runbooks/ledger_drift.md", False, "")
    mesh.text = WELL
    await look_for_minutes(mesh, watch, 10)
    assert await states(watch) == {"ledger_drift": "over"}
    assert [(len(notice.began), len(notice.ended)) for notice in mesh.notice] == [(1, 0), (0, 1)]


async def test_missing_service_raises_an_alert(mesh: Mesh) -> None:
    watch = mesh.watch()
    mesh.text = WELL.replace('ai_platform_node_up{service="gateway",node="UAAA"} 1', 'ai_platform_node_up{service="gateway",node="UAAA"} 0')
    await look_for_minutes(mesh, watch, 5)
    assert (await states(watch))["service_down"] == "firing"


async def test_alerts_can_be_acknowledged_and_silenced(mesh: Mesh) -> None:
    watch = mesh.watch()
    made = await watch.silence_alerts(api.SilenceAlerts(3600, "ledger_drift", why="we are at it"), CALL)
    mesh.text = DRIFTING
    await look_for_minutes(mesh, watch, 10)
    assert mesh.notice == []
    found = await watch.list_alerts(api.ListAlerts(), CALL)
    assert (found.silences, [alert.silenced for alert in found.alerts]) == ((made,), [True])
    seen = await watch.acknowledge_alert(api.AcknowledgeAlert(found.alerts[0].id), CALL)
    assert seen.seen_by == "operator"
    await watch.end_silence(api.EndSilence(made.id), CALL)
    await mesh.look(watch)
    assert [alert.rule.name for alert in mesh.notice[0].began] == ["ledger_drift"]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (api.SilenceAlerts(0), "30 days"),
        (api.SilenceAlerts(float("nan")), "30 days"),
        (api.SilenceAlerts(1e9), "30 days"),
        (api.SilenceAlerts(60, "no_such_alert"), "no alert named"),
        (api.SilenceAlerts(60, labels={str(number): "" for number in range(11)}), "limits are 10 labels"),
        (api.SilenceAlerts(60, why="x" * 201), "200 characters"),
    ],
)
async def test_invalid_silences_are_refused(mesh: Mesh, request_: api.SilenceAlerts, words: str) -> None:
    with pytest.raises(errors.BadRequest, match=words):
        await mesh.watch().silence_alerts(request_, CALL)


async def test_unknown_alerts_and_silences_are_reported(mesh: Mesh) -> None:
    with pytest.raises(errors.NotFound):
        await mesh.watch().acknowledge_alert(api.AcknowledgeAlert("nothing"), CALL)
    with pytest.raises(errors.NotFound):
        await mesh.watch().end_silence(api.EndSilence("nothing"), CALL)


async def test_full_lists_are_reported(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = mesh.watch()
    await watch.look()
    assert watch.check().ok
    monkeypatch.setattr(sample_window, "MAX_SERIES", 5)
    mesh.text = DRIFTING
    await watch.look()
    assert (watch.check().ok, watch.check().needed, "1 series exceed the limit" in watch.check().detail) == (False, False, True)


async def test_omitted_alerts_of_one_rule_are_counted(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = mesh.watch()
    monkeypatch.setattr(alert_state, "MAX_OF_ONE_RULE", 3)
    mesh.text = "\n".join([WELL, *(f'ai_platform_node_up{{service="inference",node="U{number}"}} 0' for number in range(8))])
    await watch.look()
    assert (watch.check().ok, watch.check().needed) == (False, False)
    assert "5 more worker_gone alerts are not listed" in watch.check().detail
    mesh.text, mesh.now = WELL, mesh.now + 15
    await watch.look()
    assert watch.check().ok


def test_only_requested_samples_are_kept() -> None:
    text = '# HELP a b\na{x="1",y=""} 5\na 7\nab 9\nb{x="q\\"\\\\ \\n"} +Inf\nb{x="q\\"\\\\ \\n"} 2.5e3\nc NaN\n'
    assert list(sample_window.read_samples(text, {"a": (), "b": (), "c": ()})) == [
        Sample("a", labels(x="1"), 5),
        Sample("a", (), 7),
        Sample("b", labels(x='q"\\ \n'), 2500),
    ]


def test_unselected_lines_are_skipped_before_parsing() -> None:
    selector = Selector(instruments.REQUESTS, (("service", ("auth", 'a"b')), ("model", ("",))), (("method", ("x",)),))
    name = selector.name
    lines = (
        f'{name}{{service="auth",method="y"}} 1',
        f'{name}{{service="auth",method="y",model=""}} 2',
        f'{name}{{method="x",service="auth"}} 3',
        f'{name}{{service="auth",method="x"}} 3',
        f'{name}{{service="web",method="y"}} 4',
        f'{name}{{service="a\\"b"}} 5',
        f'{name}{{service="auth",xmethod="x"}} 6',
    )
    assert [sample.value for sample in sample_window.read_samples("\n".join(lines), {name: (selector,)})] == [1, 2, 5, 6]


# --- the webhook -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def running_webhook(url: str) -> AsyncIterator[Webhook]:
    hook = Webhook(url, "https://ai.example.org")
    running = asyncio.create_task(hook.run())
    try:
        yield hook
    finally:
        running.cancel()


async def news_of(mesh: Mesh) -> list[AlertNotice]:
    watch = mesh.watch()
    mesh.text = DRIFTING
    await look_for_minutes(mesh, watch, 10)
    mesh.text = WELL
    await look_for_minutes(mesh, watch, 10)
    return mesh.notice


async def test_webhook_gets_the_start_and_the_end(mesh: Mesh) -> None:
    chat = Chat()
    async with serving(chat) as url, running_webhook(f"{url}/hook/secret") as hook:
        for notice in await news_of(mesh):
            hook.notify(notice)
        await until(lambda: len(chat.got) == 2)
    first, second = chat.got
    assert (first["version"], first["status"], second["status"]) == ("4", "firing", "resolved")
    [alert] = first["alerts"]
    assert alert["labels"]["alertname"] == "ledger_drift"
    assert alert["labels"]["severity"] == "page"
    assert alert["generatorURL"] == "https://ai.example.org/admin/alerts"
    assert alert["annotations"]["runbook_url"] == "docs/runbooks/ledger_drift.md"
    assert alert["annotations"]["dashboard"] == "aimesh-ledger"
    assert second["alerts"][0]["fingerprint"] == alert["fingerprint"]
    assert second["alerts"][0]["endsAt"] > alert["startsAt"]


async def test_unavailable_webhook_gets_the_notice_later_and_its_url_is_not_logged(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "_BACKOFF", Backoff(0.01, 60))
    chat = Chat()
    chat.status = 503
    async with serving(chat) as url, running_webhook(f"{url}/hook/secret") as hook:
        for notice in await news_of(mesh):
            hook.notify(notice)
        await until(lambda: chat.requests >= 3)
        assert (hook.check().ok, hook.check().needed) == (False, False)
        assert "secret" not in hook.check().detail
        chat.status = 200
        await until(lambda: len(chat.got) == 2)
        await until(lambda: hook.check().ok)
    assert [got["status"] for got in chat.got] == ["firing", "resolved"]


async def test_undelivered_notices_are_bounded(mesh: Mesh) -> None:
    hook = Webhook("http://127.0.0.1:1/", "")
    [notice, _] = await news_of(mesh)
    for _ in range(webhook.MAX_WAITING * 3):
        hook.notify(notice)
    assert len(hook._waiting) == webhook.MAX_WAITING
