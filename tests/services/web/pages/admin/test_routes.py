"""The pages of routes and rollouts."""

import csv
import io
from datetime import UTC, datetime
from uuid import uuid4

import msgspec
import pytest

from services.web.pages.admin import rollouts, routes
from shared.api import configuration as api
from shared.api.business import BusinessGrouping, BusinessRow, BusinessSum
from shared.api.configuration import RolloutAction, RolloutPlan, RolloutState
from shared.config_documents import ConfigKind
from shared.types import MicroCredits
from tests.services.web.browser import Browser, forms_of
from tests.services.web.fake_mesh import NOW
from tests.services.web.pages.admin.admin_mesh import AdminMesh
from tests.services.web.pages.admin.fake_routes import point, rollout

BEFORE, AFTER = "targets:\n  - name: local\n    share: 100\n", "targets:\n  - name: local\n    share: 90\n  - name: next\n    share: 10\n"


async def test_the_list_has_routes_and_rollouts(root: Browser, mesh: AdminMesh) -> None:
    assert "No routes." in (await root.get("/admin/routes")).text
    mesh.add_route("team/assistant")
    mesh.rollouts = [rollout("team/assistant"), rollout("old", state=RolloutState.ROLLED_BACK, reason="next: 9 of 41 answers failed")]
    text = (await root.get("/admin/routes")).text
    assert '<a href="/admin/routes/team/assistant">' in text
    assert "not served" in text
    assert f'<a href="/admin/rollouts/{mesh.rollouts[0].id}"><bdi>next</bdi> at 10 %</a>' in text
    assert '<span class="state" data-state="bad">Rolled back</span>' in text
    assert "next: 9 of 41 answers failed" in text


async def test_a_route_shows_what_its_targets_did(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_route("team/assistant", BEFORE, AFTER)
    sums = BusinessSum(succeeded=30, failed=1, timed_out=1, response_ms=60_000, upstream_micro=MicroCredits(2_000_000))
    mesh.report_rows = [BusinessRow("team/assistant/local", sums), BusinessRow("team/assistant/next", BusinessSum(succeeded=96))]
    page = await root.get("/admin/routes/team/assistant")
    text = " ".join(page.text.split())
    for cell in (
        '<td role="cell" class="n" data-label="Share in 7 days">25.0 %</td>', "75.0 %", 'data-label="Failed">2<', "2.0 s", "0.25 of 1",
        '<td role="cell" class="n" data-label="Workers">0</td>',
    ):  # fmt: skip
        assert cell in text, cell
    assert "+ - name: next" in text
    assert "-    share: 100" in page.text
    assert mesh.calls[-1].request.by is BusinessGrouping.TARGET  # type: ignore[attr-defined]
    assert "cached for" not in text
    mesh.routes[0] = msgspec.structs.replace(mesh.routes[0], cache_seconds=3600)
    assert "answers cached for 3,600 s" in (await root.get("/admin/routes/team/assistant")).text
    assert (await root.get("/admin/routes/other")).status_code == 404


async def test_a_version_is_made_current_again(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_route("assistant", BEFORE, AFTER)
    page = await root.get("/admin/routes/assistant")
    assert page.text.count(">Roll back to version") == 1, "not to the current one"
    done = await root.submit(page, "/admin/routes")
    assert done.headers["location"] == "/admin/routes/assistant?done=back"
    assert "Rolled back" in (await root.get(done.headers["location"])).text
    sent = next(call.request for call in mesh.calls if call.method == "gateway.rollbackConfig")
    assert sent == api.RollbackConfig(ConfigKind.ROUTE, "assistant", 1)
    wrong = await root.submit(page, "/admin/routes", version="1e3")
    assert "is no whole number" in wrong.text


async def test_a_try_shows_where_requests_would_go(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_route()
    tried = (api.TriedTarget("local", "smollm2", 995, None, ""), api.TriedTarget("next", "x", 0, None, "not_served"))
    mesh.tried = api.TriedRoute("assistant", 1, tried, 5)
    text = (await root.get("/admin/routes/assistant?prompt_tokens=3000&features=tools")).text
    assert ">99.5 %<" in text
    assert "<bdi>not served</bdi>" in text
    assert "0.5 % of the requests have no target and fail." in text
    sent = next(call.request for call in mesh.calls if call.method == "gateway.tryRoute")
    assert sent == api.TryRoute("assistant", prompt_tokens=3000, tools=True)
    assert 'value="3000"' in text
    assert '<option value="tools" selected>' in text
    wrong = await root.get("/admin/routes/assistant?prompt_tokens=many")
    assert (wrong.status_code, 'id="prompt_tokens-mistake">&#39;many&#39; is no whole number.' in wrong.text) == (400, True)


async def test_a_rollout_is_started(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_route()
    page = await root.get("/admin/routes/assistant")
    assert forms_of(page)["/admin/rollouts"]["steps"] == "10, 50, 100"
    fields = {"candidate": "next", "mode": "rollout", "steps": "5, 100 %", "minutes": "2", "requests": "50"}
    done = await root.submit(page, "/admin/rollouts", **fields)
    assert done.headers["location"] == f"/admin/rollouts/{mesh.rollouts[0].id}"
    sent = next(call.request for call in mesh.calls if call.method == "gateway.startRollout")
    assert sent == api.StartRollout("assistant", "next", steps=(5.0, 100.0), step_seconds=120, step_requests=50)
    page = await root.get("/admin/routes/assistant")
    assert "/admin/rollouts" not in forms_of(page), "one at a time"
    assert "gives <bdi>next</bdi> 10 % of the traffic of <bdi>local</bdi>" in page.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": "ten"}, "The steps must be percentages"),
        ({"steps": "200"}, "This plan is not possible"),
        ({"minutes": "0"}, "This plan is not possible"),
        ({"requests": "-1"}, "is no whole number"),
        ({"candidate": "local"}, "the same target"),
    ],
)
async def test_a_plan_that_cannot_work_is_shown_again(root: Browser, mesh: AdminMesh, fields: dict[str, str], message: str) -> None:
    mesh.add_route()
    page = await root.get("/admin/routes/assistant")
    answer = await root.submit(page, "/admin/rollouts", **{"candidate": "next", "mode": "rollout"} | fields)
    assert answer.status_code == 400
    assert message in answer.text
    assert mesh.rollouts == []
    shown = forms_of(answer)["/admin/rollouts"]
    assert {name: shown[name] for name in fields if name != "candidate"} == {name: fields[name] for name in fields if name != "candidate"}


async def test_a_comparison_has_one_share(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_route()
    page = await root.get("/admin/routes/assistant")
    await root.submit(page, "/admin/rollouts", candidate="next", mode="compare", steps="50, 100")
    sent = next(call.request for call in mesh.calls if call.method == "gateway.startRollout")
    assert (sent.only_compares, sent.steps) == (True, (50.0,))  # type: ignore[attr-defined]


# --- one rollout ----------------------------------------------------------------------------------------------------------


async def test_a_rollout_shows_its_targets_guards_and_steps(root: Browser, mesh: AdminMesh) -> None:
    mesh.rollouts = [rollout(state=RolloutState.ROLLED_BACK, reason="next: 9 of 41 answers failed", ended_at=NOW, share=0.0)]
    page = await root.get(f"/admin/rollouts/{mesh.rollouts[0].id}")
    text = " ".join(page.text.split())
    for part in (
        "Next: 9 of 41 answers failed.", "22.0 %", "120 ms", "300 ms", "41.2", "25.0 %", "9 of 41", "2 of 388", "1 point<", "× 1.2",
        ">Off<", "next is worse by at least 11.0 points", "<bdi>root</bdi>", "the gateways", "Charts appear after the first minutes.",
        "10 % → 50 % → 100 %; each step takes 30 minutes",
    ):  # fmt: skip
        assert part in text, part
    assert not any("/admin/rollouts/" in action for action in forms_of(page)), "it has ended"
    assert (await root.get(f"/admin/rollouts/{uuid4()}")).status_code == 404


@pytest.mark.parametrize("action", list(RolloutAction))
async def test_buttons(root: Browser, mesh: AdminMesh, action: RolloutAction) -> None:
    state = RolloutState.PAUSED if action is RolloutAction.RESUME else RolloutState.RUNNING
    mesh.rollouts = [rollout(state=state)]
    path = f"/admin/rollouts/{mesh.rollouts[0].id}"
    page = await root.get(path)
    done = await root.submit(page, f"{path}/{action.value}")
    assert done.headers["location"] == f"{path}?done={action.value}"
    sent = next(call.request for call in mesh.calls if call.method == "gateway.changeRollout")
    assert sent == api.ChangeRollout("assistant", action)
    assert 'class="notice' in (await root.get(done.headers["location"])).text


async def test_an_ended_rollout_does_not_change_its_successor(root: Browser, mesh: AdminMesh) -> None:
    mesh.rollouts = [rollout(), rollout()]
    old = mesh.rollouts[1]
    page = await root.get(f"/admin/rollouts/{old.id}")
    mesh.rollouts[1] = rollout(id=old.id, state=RolloutState.ENDED)
    answer = await root.submit(page, f"/admin/rollouts/{old.id}/abort")
    assert "The rollout has ended" in answer.text
    assert mesh.rollouts[0].state is RolloutState.RUNNING


async def test_charts_show_each_period_and_the_difference(root: Browser, mesh: AdminMesh) -> None:
    mesh.rollouts = [rollout()]
    mesh.points = (point(0, 0, 10, None), point(1, 5, 20), point(2, 5, 20), point(3, 6, 30))
    page = await root.get(f"/admin/rollouts/{mesh.rollouts[0].id}")
    details = mesh._get_rollout(api.GetRollout(id=mesh.rollouts[0].id, points=True), None)
    failed, difference, first = rollouts.charts(details)
    assert [row.cells for row in failed.rows] == [
        (("50.0 %", "50"), ("0.0 %", "0")), (("–", ""), ("–", "")), (("10.0 %", "10"), ("0.0 %", "0"))
    ]  # fmt: skip
    assert [row.cells for row in difference.rows][:2] == [(("–", ""),) * 3, (("+25.0", "25"), ("+15.0", "15"), ("+35.0", "35"))]
    assert first.rows[0].cells == (("300 ms", "300"), ("300 ms", "300"))
    assert first.rows[0].seconds == int(NOW.timestamp())
    assert page.text.count('<table data-chart="lines">') == 3, "nothing is known about first tokens"
    assert rollouts.charts(api.RolloutDetails(*(getattr(details, name) for name in details.__struct_fields__[:-1]))) == ()


async def test_the_course_is_downloaded(root: Browser, mesh: AdminMesh) -> None:
    mesh.rollouts, mesh.points = [rollout()], (point(0, 0, 10), point(1, 5, 20))
    answer = await root.get(f"/admin/rollouts/{mesh.rollouts[0].id}/points.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["target"], row["requests"], row["failed"], row["failed_of"]) for row in rows] == [
        ("next", "10", "0", "10"), ("local", "40", "0", "40"), ("next", "20", "5", "20"), ("local", "80", "0", "80")
    ]  # fmt: skip
    assert (rows[0]["upstream_credits"], rows[0]["thumbs"]) == ("0.009", "0")


def test_a_plan_in_words() -> None:
    until = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)
    compared = rollout(plan=RolloutPlan("next", "local", steps=(40.0,), only_compares=True, until=until))
    assert rollouts.describe_steps(compared) == "A comparison at 40 %, until 2026-12-01 12:00 UTC"
    for seconds, words in ((5, "5 seconds"), (60, "1 minute"), (7200, "2 hours"), (86_400, "1 day"), (90, "90 seconds")):
        assert f"takes {words} and" in rollouts.describe_steps(rollout(plan=RolloutPlan("a", "b", step_seconds=seconds)))
    assert routes.address("a/b") == "/admin/routes/a/b"
