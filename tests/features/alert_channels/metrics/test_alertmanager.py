"""Alerts and silences of a real Alertmanager, through the metrics service; and an Alertmanager that is away or something else."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from features.alert_channels.metrics.alertmanager import Alertmanager
from features.alert_channels.settings import AlertChannelSettings
from services.metrics.service import MetricsService
from services.metrics.settings import MetricsSettings
from shared import config, errors
from shared.api import alerts as api
from shared.types import Role
from tests.deploy import debian
from tests.deploy.test_alert_delivery import running
from tests.features.alert_channels.metrics.chat import Chat
from tests.services.metrics.replicas import CALL
from tests.services.web.servers import serving
from tests.stacks import until
from tests.testnet import MESH, free_port, testnet

CONFIG = """
route: {receiver: nobody}
receivers: [{name: nobody}]
inhibit_rules: [{source_matchers: [alertname = no_worker], target_matchers: [alertname = worker_gone]}]
"""


def alert(name: str, severity: str, **labels: str) -> dict[str, object]:
    texts = {"summary": f"{name} is wrong", "description": "It is.", "runbook_url": f"docs/runbooks/{name}.md"}
    return {"labels": {"alertname": name, "severity": severity, **labels}, "annotations": texts}


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    program, address = debian.program("alertmanager"), f"127.0.0.1:{free_port()}"
    (tmp_path / "config.yml").write_text(CONFIG, encoding="utf-8")
    options = (f"--config.file={tmp_path / 'config.yml'}", f"--storage.path={tmp_path / 'data'}", "--cluster.listen-address=")
    with running(tmp_path / "run", program, *options, f"--web.listen-address={address}"):
        async with httpx.AsyncClient(base_url=f"http://{address}") as http:

            async def is_ready() -> bool:
                return (await http.get("/-/ready")).status_code == 200

            await until(is_ready, seconds=60, ignoring=(httpx.TransportError,))
            posted = [
                alert("cpu_high", "warning", machine="m1"), alert("no_worker", "page"), alert("worker_gone", "warning", node="n1"),
                alert("watchdog", "none"),
            ]  # fmt: skip
            assert (await http.post("/api/v2/alerts", json=posted)).status_code == 200
            yield f"http://{address}"


async def listed(url: str) -> api.Alerts:
    return await Alertmanager(url).list_alerts(api.ListAlerts(), CALL)


async def test_its_alerts_are_listed_most_severe_first(url: str) -> None:
    async def is_inhibited() -> bool:
        return any(one.silenced for one in (await listed(url)).alerts)

    await until(is_inhibited)
    found = await listed(f"{url}/")
    assert found.from_alertmanager
    assert [(one.name, one.severity, one.labels, one.silenced) for one in found.alerts] == [
        ("no_worker", "page", {}, False),
        ("cpu_high", "warning", {"machine": "m1"}, False),
        ("worker_gone", "warning", {"node": "n1"}, True),
    ]
    first = found.alerts[0]
    assert (first.state, first.summary, first.runbook) == ("firing", "no_worker is wrong", "docs/runbooks/no_worker.md")


async def test_it_is_silenced_there(url: str) -> None:
    there = Alertmanager(url)
    made = await there.silence_alerts(api.SilenceAlerts(3600, "cpu_high", {"machine": "m1"}, "it compiles"), CALL)
    assert (made.name, made.labels, made.by, made.why) == ("cpu_high", {"machine": "m1"}, "operator", "it compiles")

    async def is_silenced() -> bool:
        return any(one.silenced and one.name == "cpu_high" for one in (await listed(url)).alerts)

    await until(is_silenced)
    every = await there.silence_alerts(api.SilenceAlerts(60), CALL)
    assert (every.name, every.labels) == ("", {})
    found = {one.id: one for one in (await listed(url)).silences}
    assert found.keys() == {made.id, every.id}
    assert (found[made.id].until, found[every.id].name) == (made.until, "")
    for each in (made, every):
        await there.end_silence(api.EndSilence(each.id), CALL)
    assert (await listed(url)).silences == ()
    for unknown in ("f3c3d5ae-0000-4000-8000-000000000000", "../alerts"):
        with pytest.raises(errors.NotFound, match="no such silence"):
            await there.end_silence(api.EndSilence(unknown), CALL)


async def test_service_passes_questions_on_and_sends_nothing_itself(url: str) -> None:
    async with testnet() as net:
        key = net.server.key("metrics", Role.METRICS)
        more = (AlertChannelSettings(alertmanager_url=url),)
        settings = MetricsSettings(node_key_file=key, port=0, prometheus_port=0, mesh=MESH, nats_url=net.server.url, more=more)
        service = (await net.start(MetricsService, settings)).service
        assert isinstance(service, MetricsService)
        assert "Alertmanager" in {check.name for check in await service.checks()}
        assert service._alerting not in service._leader._duties
        (handler,) = (one for one in service._node.dispatcher.handlers if one.method is api.list_alerts)
        assert (await handler.function(api.ListAlerts(), CALL)).from_alertmanager


async def test_silence_made_elsewhere_shows_how_it_matches(url: str) -> None:
    matchers = [{"name": "node", "value": "a|b", "isRegex": True}, {"name": "model", "value": "m", "isRegex": False, "isEqual": False}]
    times = {"startsAt": "2020-01-01T00:00:00Z", "endsAt": "2999-01-01T00:00:00Z"}
    async with httpx.AsyncClient() as http:
        body = {"matchers": matchers, "createdBy": "ann", "comment": "moving", **times}
        assert (await http.post(f"{url}/api/v2/silences", json=body)).status_code == 200
    [silence] = (await listed(url)).silences
    assert (silence.name, silence.labels, silence.by) == ("", {"node": "~a|b", "model!": "m"}, "ann")


async def test_an_alertmanager_that_is_away_or_something_else_is_named() -> None:
    away = Alertmanager("http://127.0.0.1:1")
    assert away.checks()[0].ok
    with pytest.raises(errors.Unavailable, match="it does not answer: ConnectError"):
        await away.list_alerts(api.ListAlerts(), CALL)
    [check] = away.checks()
    assert (check.ok, check.needed) == (False, False)
    assert "ALERTMANAGER_URL" in check.detail
    chat = Chat()
    async with serving(chat) as url:
        with pytest.raises(errors.Unavailable, match="it does not answer"):
            await listed(url)
        chat.status = 503
        with pytest.raises(errors.Unavailable, match="it returned 503"):
            await listed(url)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ALERTMANAGER_URL": "alertmanager:9093"}, "ALERTMANAGER_URL: must be a URL"),
        ({"ALERTMANAGER_URL": "http://a", "ALERT_WEBHOOK_URL": "http://b"}, "unset ALERT_WEBHOOK_URL"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path: Path, environment: dict[str, str], message: str) -> None:
    with pytest.raises(errors.BadSettings, match=message):
        config.load(MetricsSettings, {"NODE_KEY_FILE": str(tmp_path / "node.nk"), **environment})
