"""`aicli admin rollouts`."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from shared.api import configuration as api
from shared.api.configuration import RolloutAction, RolloutGuards, RolloutState
from tests.cli.conftest import Shell

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
START = ("admin", "rollouts", "start", "assistant")


def summary(state: RolloutState = RolloutState.RUNNING, *, share: float = 10.0, reason: str = "", **plan: Any) -> api.RolloutSummary:
    ended_at = None if state in api.OPEN_STATES else NOW
    return api.RolloutSummary(
        UUID(int=4), "assistant", api.RolloutPlan("next", "local", **plan), state, share, 0, NOW, 40, reason, NOW, ended_at
    )


def test_a_start_with_its_defaults_and_with_everything(shell: Shell) -> None:
    shell.mesh.answer(api.start_rollout, summary())
    done = shell(*START, "--to", "next")
    assert done.stdout == "next gets 10 % of local's traffic. To watch it: aicli admin rollouts show assistant\n"
    assert shell.mesh.calls[-1].request == api.StartRollout("assistant", "next")
    guards = ("--guard", "errors=0.5%", "--guard", "thumbs=off", "--guard", "cost=1.5")
    shell(*START, "--to", "next", "--from", "local", "--steps", "5,100", "--every", "1m", "--min-requests", "100", *guards)
    assert shell.mesh.calls[-1].request == api.StartRollout(
        "assistant", "next", "local", steps=(5.0, 100.0), step_seconds=60, step_requests=100,
        guards=RolloutGuards(errors=0.5, thumbs=None, cost=1.5),
    )  # fmt: skip


def test_a_comparison(shell: Shell) -> None:
    shell.mesh.answer(api.start_rollout, summary(only_compares=True))
    shell(*START, "--compare", "next", "--share", "40", "--until", "2d")
    request = shell.mesh.calls[-1].request
    assert isinstance(request, api.StartRollout)
    assert (request.candidate, request.steps, request.only_compares) == ("next", (40.0,), True)
    assert request.until is not None
    assert timedelta(hours=47) < request.until - datetime.now(UTC) < timedelta(hours=49)
    shell(*START, "--compare", "next", "--until", "2026-12-01T12:00+01:00")
    assert shell.mesh.calls[-1].request.until == datetime(2026, 12, 1, 11, 0, tzinfo=UTC)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "name a target with --to or --compare"),
        (("--to", "a", "--compare", "b"), "name a target with --to or --compare"),
        (("--to", "a", "--steps", "10,x"), "is not a list of percentages"),
        (("--to", "a", "--every", "1s"), "a step takes between 5 seconds and 30 days"),
        (("--to", "a", "--guard", "speed=1%"), "is not a guard"),
        (("--to", "a", "--guard", "errors=much"), "is not a guard"),
        (("--to", "a", "--guard", "cost=20%"), "is not a guard"),
        (("--compare", "a", "--until", "soon"), "is not a time"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(shell: Shell, options: tuple[str, ...], message: str) -> None:
    done = shell(*START, *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert shell.mesh.calls == []


def test_a_rollout_shows_its_outcomes_and_says_why(shell: Shell) -> None:
    reason = "next: 9 of 41 answers failed, local: 2 of 388; evidence 1 in 2,300 by chance"
    errors = api.RolloutCondition("errors", 0.01, 9, 41, 2, 388, 0.21, 0.1, 2300.0, "next is worse by at least 11.0 points")
    cost = api.RolloutCondition("cost", 1.2, 0, 0, 0, 0, 0.0, None, 1.0, "not enough outcomes yet")
    thumbs = api.RolloutCondition("thumbs", None, 0, 0, 0, 0, 0.0, None, 1.0, "not enough outcomes yet")
    arms = api.RolloutArm("next", 1_041, 120, 300, 41.25, 9_000, 2_500.0), api.RolloutArm("local", 388, None, None, None, 0, 0.0)
    events = (
        api.RolloutEvent(NOW, RolloutState.RUNNING, 10.0, "", "root"),
        api.RolloutEvent(NOW, RolloutState.ROLLED_BACK, 0.0, reason, ""),
    )
    found = summary(RolloutState.ROLLED_BACK, share=0.0, reason=reason)
    shell.mesh.answer(api.get_rollout, api.RolloutDetails(found, arms, (errors, cost, thumbs), events, 450))
    text = shell("admin", "rollouts", "show", "assistant", "-o", "wide").stdout
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == f"local → next: Rolled back: {reason}"
    assert "next 1,041 22.0 % 120 ms 300 ms 41.2 – 0.0025" in lines
    assert "local 388 0.5 % – – – – –" in lines
    assert "Failed answers 9 of 41 2 of 388 1 point next is worse by at least 11.0 points" in lines
    assert "Upstream cost – – × 1.2 not enough outcomes yet" in lines
    assert "Thumbs down – – Off not enough outcomes yet" in lines
    assert shell.mesh.calls[0].request == api.GetRollout("assistant")
    shell.mesh.answer(api.get_rollout, api.RolloutDetails(summary(), arms, (), (), None))
    assert "next has 10 %, 40 of 500 requests in this step" in shell("admin", "rollouts", "show", "assistant").stdout


def test_the_list(shell: Shell) -> None:
    shell.mesh.answer(api.list_rollouts, api.Rollouts((summary(RolloutState.HOLDING, reason="no outcomes for 15 s"),)))
    text = " ".join(shell("admin", "rollouts", "list", "--route", "assistant", "--open", "-o", "wide").stdout.split())
    assert "assistant local next Waiting for outcomes 10 %" in text
    assert "no outcomes for 15 s" in text
    assert shell.mesh.calls[0].request == api.ListRollouts("assistant", only_open=True, limit=20)


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (RolloutAction.PAUSE, "paused at 10 %"),
        (RolloutAction.RESUME, "running at 10 %"),
        (RolloutAction.PROMOTE, "next has taken over from local"),
        (RolloutAction.ABORT, "the traffic returned to local"),
    ],
)
def test_actions(shell: Shell, action: RolloutAction, text: str) -> None:
    shell.mesh.answer(api.change_rollout, summary())
    assert shell("admin", "rollouts", action.value, "assistant", "--note", "why").stdout == f"assistant: {text}\n"
    assert shell.mesh.calls[0].request == api.ChangeRollout("assistant", action, "why")
