"""`aicli alerts`: its output and its calls."""

import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from shared.api import alerts
from shared.api.alerts import Alert, Silence
from shared.api.method import Nothing
from tests.cli.fake_mesh import Shell

DRIFT = Alert(
    id="a1b2c3d4e5f6",
    name="ledger_drift",
    severity="page",
    labels={},
    state="firing",
    since=datetime.now(UTC) - timedelta(minutes=5),
    ended=None,
    value=5,
    summary="The books do not add up",
    description="Accounts and entries differ.",
    runbook="docs/runbooks/ledger_drift.md",
    silenced=False,
)
QUIET = Silence("0001", "cpu_high", {"node": "UABC"}, datetime(2026, 11, 21, tzinfo=UTC), "ann", "it compiles")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (alerts.Alerts((), ()), "No alerts\n"),
        (alerts.Alerts((), (), from_alertmanager=True), "No alerts in Alertmanager\n"),
        (
            alerts.Alerts((), (), watched=("no_worker", "disk_low")),
            "No alerts. The metrics service watches no_worker, disk_low; Prometheus",
        ),
    ],
)
def test_no_alerts_says_what_is_watched(shell: Shell, found: alerts.Alerts, said: str) -> None:
    shell.mesh.answer(alerts.list_alerts, found)
    done = shell("alerts", "list")
    assert done.stdout == ""
    assert done.stderr.startswith(said)


def test_firing_alerts_are_listed_with_advice_before_silences(shell: Shell) -> None:
    pending = msgspec.structs.replace(DRIFT, id="b", name="cpu_high", state="pending")
    shell.mesh.answer(alerts.list_alerts, alerts.Alerts((DRIFT, pending), (QUIET,)))
    shown = shell("alerts", "list").stdout
    assert shell("alerts").stdout == shown
    assert "ledger_drift" in shown
    assert "docs/runbooks/ledger_drift.md" in shown
    assert "Pending" not in shown
    assert "node=UABC" in shown
    assert "it compiles" in shown
    assert "Pending" in shell("alerts", "list", "--all").stdout
    found = json.loads(shell("alerts", "list", "--json").stdout)
    assert [alert["name"] for alert in found["alerts"]] == ["ledger_drift"]
    assert found["silences"][0]["by"] == "ann"


def test_old_data_is_marked(shell: Shell) -> None:
    shell.mesh.answer(alerts.list_alerts, alerts.Alerts((DRIFT,), (), datetime.now(UTC) - timedelta(minutes=3)))
    done = shell("alerts", "list")
    assert "ledger_drift" in done.stdout
    assert done.stderr == "As of 3 min ago: the metrics service cannot read PostgreSQL.\n"
    assert "as_of" in json.loads(shell("alerts", "list", "--json").stdout)


def test_alerts_of_the_same_name_are_distinguished_by_labels(shell: Shell) -> None:
    two = tuple(msgspec.structs.replace(DRIFT, id=node, labels={"node": node}) for node in ("UABC", "UDEF"))
    shell.mesh.answer(alerts.list_alerts, alerts.Alerts(two, ()))
    shown = shell("alerts", "list").stdout
    assert "node=UABC" in shown
    assert "node=UDEF" in shown


@pytest.mark.parametrize(("silenced", "words"), [(True, "Firing, silenced"), (False, "Firing")])
def test_state_shows_a_silence(shell: Shell, silenced: bool, words: str) -> None:
    shell.mesh.answer(alerts.list_alerts, alerts.Alerts((msgspec.structs.replace(DRIFT, silenced=silenced),), ()))
    assert words in shell("alerts", "list").stdout


def test_silence_and_unsilence(shell: Shell) -> None:
    shell.mesh.answer(alerts.silence_alerts, QUIET)
    done = shell("alerts", "silence", "cpu_high", "--for", "30m", "--label", "node=UABC", "--why", "it compiles")
    assert "aicli alerts unsilence 0001" in done.stdout
    assert shell.mesh.calls[-1].request == alerts.SilenceAlerts(1800, "cpu_high", {"node": "UABC"}, "it compiles")
    shell.mesh.answer(alerts.end_silence, Nothing())
    assert "notify again" in shell("alerts", "unsilence", "0001").stdout


@pytest.mark.parametrize("time", ["0s", "31d", "soon", "5", "-3h", "1.5h"])
def test_invalid_duration_is_refused_before_any_call(shell: Shell, time: str) -> None:
    assert shell("alerts", "silence", "--for", time).exit_code == 2
    assert shell.mesh.calls == []


@pytest.mark.parametrize(
    ("typed", "labels"),
    [
        ("model=llama3:8b", {"model": "llama3:8b"}),
        ("model=llama3%3A8b,node=U%2CB", {"model": "llama3:8b", "node": "U,B"}),
        ("path=a=b", {"path": "a=b"}),
        ("share=50%25", {"share": "50%"}),
        ("owner=J%C3%B6rg", {"owner": "J\u00f6rg"}),
        ("owner=J\u00f6rg Wu", {"owner": "J\u00f6rg Wu"}),
    ],
)
def test_label_value_may_be_anything(shell: Shell, typed: str, labels: dict[str, str]) -> None:
    shell.mesh.answer(alerts.silence_alerts, QUIET)
    assert shell("alerts", "silence", "--label", typed).exit_code == 0
    assert shell.mesh.calls[-1].request == alerts.SilenceAlerts(7200, "", labels, "")


@pytest.mark.parametrize("typed", ["", "model", "model=", "=llama3", "model=a,,b=c", "share=50%", "share=%zz", "name=%FF"])
def test_invalid_label_is_refused_before_any_call(shell: Shell, typed: str) -> None:
    done = shell("alerts", "silence", "--label", typed)
    assert done.exit_code == 2
    assert repr(typed.split(",")[1 if ",," in typed else 0]) in done.stderr
    assert shell.mesh.calls == []
