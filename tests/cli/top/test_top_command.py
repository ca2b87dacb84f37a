"""`aicli top` without a terminal: one frame as text, or JSON objects."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from cli.output.exit_codes import ExitCode
from shared import errors
from shared.api import alerts, gateway, metrics
from shared.api.metrics import GetHistory, History
from tests.cli.conftest import KEY
from tests.cli.fake_mesh import Shell
from tests.cli.top import seen
from tests.cli.top.seen import WORKER


@pytest.fixture
def watching(shell: Shell) -> Shell:
    seen.fill(shell.mesh)
    return shell


def test_without_a_terminal_one_plain_frame_is_printed(watching: Shell) -> None:
    done = watching("top")
    assert (done.exit_code, done.stderr) == (0, "")
    rows = done.stdout.splitlines()
    assert rows[0].startswith("aimesh Degraded   1 alert")
    assert "12 requests/s   0.5 errors/s   tokens/s: 340 in, 1,234 out   2 running   drafts: 16 tokens/s, 75% accepted" in rows
    assert rows[-1].split()[-7:] == ["75%", "25%", "2/4", "+1", "80", "smollm2", "–"]
    assert "\x1b" not in done.stdout
    assert watching("top", "--once").stdout.splitlines()[1:] == rows[1:]
    assert {call.credential for call in watching.mesh.calls} == {KEY}


def test_json_is_one_object_per_line(watching: Shell) -> None:
    (line,) = watching("top", "--json", "--once").stdout.splitlines()
    found = json.loads(line)
    assert (found["health"], found["streams_running"], found["queues"], found["silent"]) == ("degraded", 2, {"smollm2": 3}, [])
    assert found["alerts"][0]["name"] == "worker_gone"
    worker = next(node for node in found["nodes"] if node["id"] == WORKER)
    assert (worker["gpu_memory"], worker["tokens_per_second"], worker["round_trip_ms"]) == (0.25, 80, 1.25)


def test_json_continues_until_interrupted(watching: Shell) -> None:
    looks = 0

    def ended(_request: gateway.ListNodes) -> gateway.NodeRows:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise errors.NotAllowed("the key was revoked")
        return gateway.NodeRows(seen.NODES)

    watching.mesh.answer(gateway.list_nodes, ended)
    done = watching("top", "--json", "--every", "0.5")
    assert [len(json.loads(line)["nodes"]) for line in done.stdout.splitlines()] == [3, 3]
    assert json.loads(done.stderr)["error"]["code"] == "not_allowed"


def test_non_administrator_gets_an_explanation(watching: Shell) -> None:
    watching.mesh.answer(alerts.list_alerts, errors.NotAllowed("ada is no administrator", hint="ask an administrator"))
    done = watching("top")
    assert (done.exit_code, done.stdout) == (ExitCode.FAILED, "")
    assert done.stderr == "error: ada is no administrator – ask an administrator\n"


def test_unavailable_source_is_mentioned_and_the_rest_is_shown(watching: Shell) -> None:
    away = errors.NotReachable("no metrics answers")
    watching.mesh.answer(metrics.get_system_health, away)
    watching.mesh.answer(alerts.list_alerts, away)
    watching.mesh.answer(metrics.get_history, away)
    done = watching("top")
    assert done.exit_code == 0
    assert "the health, the alerts, the rates: unknown – no metrics answers" in done.stdout
    assert WORKER[:9] in done.stdout


def test_alerts_read_long_ago_are_marked_as_old(watching: Shell) -> None:
    watching.mesh.answer(alerts.list_alerts, alerts.Alerts((seen.alert(),), (), datetime.now(UTC) - timedelta(minutes=3)))
    done = watching("top")
    assert seen.alert().summary in done.stdout
    assert "the alerts: 3 min old – the metrics service cannot read PostgreSQL" in done.stdout


def test_no_answer_at_all_fails_with_the_reason(shell: Shell) -> None:
    for arguments in (("top",), ("top", "--json", "--once")):
        done = shell(*arguments)
        assert (done.exit_code, done.stdout) == (ExitCode.NOTHING_SERVES, "")
        assert "answers" in done.stderr


def test_too_many_nodes_for_one_response_lose_only_their_loads(watching: Shell) -> None:
    def few(request: GetHistory) -> History:
        if "node" in request.by:
            raise errors.BadRequest("by: that would be 400 lines")
        return seen.history_of(request)

    watching.mesh.answer(metrics.get_history, few)
    done = watching("top")
    assert "tokens/s: 340 in, 1,234 out" in done.stdout
    assert "50%" not in done.stdout
    watching.mesh.answer(metrics.get_history, errors.BadRequest("since and until: no time that is over is between them"))
    assert "the rates: unknown – since and until" in watching("top").stdout


@pytest.mark.parametrize("seconds", ["0", "0.4", "-1", "3601", "nan", "soon"])
def test_invalid_interval_is_refused_before_any_call(watching: Shell, seconds: str) -> None:
    assert watching("top", "--every", seconds).exit_code == 2
    assert watching.mesh.calls == []
