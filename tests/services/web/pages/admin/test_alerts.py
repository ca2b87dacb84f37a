import pytest
from litestar.types import ASGIApp

from shared import errors
from shared.api.alerts import Silence, SilenceAlerts
from shared.types import UserRole
from tests.services.web.browser import Browser, forms_of
from tests.services.web.fake_mesh import NOW
from tests.services.web.pages.admin import followed
from tests.services.web.pages.admin.admin_mesh import AdminMesh

PATH = "/admin/alerts"
AWAY = errors.NotReachable("no metrics node is reachable", hint="start it with `python -m services.metrics`")


async def test_sections_are_firing_pending_silences_resolved(root: Browser, mesh: AdminMesh) -> None:
    for state, name in (("firing", "no_worker"), ("pending", "cpu_high"), ("over", "disk_low")):
        mesh.add_alert(name, state=state, node="n1")
    mesh.silences.append(Silence("0001", "worker_gone", {}, NOW, "ada", "moving house"))
    page = await root.get(PATH)
    assert page.status_code == 200
    places = [page.text.index(text) for text in ("no_worker is wrong", "cpu_high is wrong", "moving house", "disk_low is wrong")]
    assert places == sorted(places)
    for text in (
        "1 alert</span>",
        '<span data-live="lasted">12 min</span>',
        "Pending",
        'href="/admin/runbooks/no_worker"',
        "node=n1",
        ">97.3 %<",
        ">page<",
    ):
        assert text in page.text
    assert 'data-live-source="/live/alerts"' in page.text
    assert 'aria-current="page">Alerts</a>' in page.text


async def test_without_alerts_the_page_says_what_is_monitored(root: Browser) -> None:
    text = (await root.get(PATH)).text
    assert "No alerts</span>" in text
    assert 'The metrics service watches <span data-live="watched">no_worker, payments_failing</span>.' in text
    assert '<div class="group" data-live-show="now" hidden>' in text


async def test_without_alerts_of_alertmanager_the_page_says_who_looks(root: Browser, mesh: AdminMesh) -> None:
    mesh.from_alertmanager = True
    text = (await root.get(PATH)).text
    assert '<p data-live-show="calm" hidden>' in text
    assert '<p data-live-show="calm_there">Prometheus checks the rules' in text


async def test_unavailable_metrics_service_is_reported_on_the_page(root: Browser, mesh: AdminMesh) -> None:
    mesh.broken["metrics"] = AWAY
    page = await root.get(PATH)
    assert page.status_code == 200
    assert "Unknown</span>" in page.text
    assert '<p data-live-show="away">The metrics service' in page.text
    assert "No alerts" not in page.text


@pytest.mark.parametrize(
    ("covers", "lifetime", "wanted"),
    [
        pytest.param("this", "3600", SilenceAlerts(3600.0, "no_worker", {"node": "n1"}, "moving house"), id="this one for an hour"),
        pytest.param("name", "604800", SilenceAlerts(604_800.0, "no_worker", {}, "moving house"), id="all of its name for a week"),
    ],
)
async def test_silence_covers_one_alert_or_all_of_its_name(
    root: Browser, mesh: AdminMesh, covers: str, lifetime: str, wanted: SilenceAlerts
) -> None:
    mesh.add_alert("cpu_high", node="n1")
    action = f"{PATH}/{mesh.add_alert(node='n1').id}/silence"
    done = await root.submit(await root.get(PATH), action, covers=covers, lifetime=lifetime, why=" moving house ")
    assert (done.status_code, done.headers["location"]) == (303, f"{PATH}?done=silenced")
    assert mesh.requests_of("metrics.silenceAlerts") == [wanted]
    after = (await root.get(done.headers["location"])).text
    assert "Alert silenced" in after
    assert '<span data-live="silenced_until">' in after
    assert after.count("moving house") == 2


async def test_silence_can_be_ended(root: Browser, mesh: AdminMesh) -> None:
    mesh.silences.append(Silence("0001", "no_worker", {}, NOW, "ada", ""))
    done = await root.submit(await root.get(PATH), f"{PATH}/silences/0001/end")
    assert (done.status_code, done.headers["location"]) == (303, f"{PATH}?done=ended")
    assert mesh.silences == []
    assert "Silence ended." in (await root.get(done.headers["location"])).text


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        pytest.param({"lifetime": "60"}, "Unknown duration.", id="a time of its own"),
        pytest.param({"lifetime": "3600.0"}, "Unknown duration.", id="a number written otherwise"),
        pytest.param({"covers": "everything"}, "Unknown scope.", id="all alerts"),
        pytest.param({"why": "x" * 201}, "The reason must have at most 200 characters.", id="a long story"),
    ],
)
async def test_invalid_silence_is_refused(root: Browser, mesh: AdminMesh, typed: dict[str, str], message: str) -> None:
    action = f"{PATH}/{mesh.add_alert().id}/silence"
    page = await root.submit(await root.get(PATH), action, **{"lifetime": "3600", "covers": "this", "why": ""} | typed)
    assert page.status_code == 400
    assert message in page.text
    assert mesh.silences == []


async def test_refused_silence_keeps_the_input_in_its_form(root: Browser, mesh: AdminMesh) -> None:
    mesh.most_silences = 0
    first, second = (f"{PATH}/{mesh.add_alert(node=node).id}/silence" for node in ("n1", "n2"))
    page = await root.submit(await root.get(PATH), second, lifetime="86400", covers="name", why="moving house")
    assert "There are too many silences." in page.text
    forms = forms_of(page)
    assert (forms[first]["why"], forms[second]["why"]) == ("", "moving house")
    assert page.text.count('<details class="silencing" open>') == 1
    assert page.text.count('value="86400" selected') == 1


async def test_alert_that_is_gone_cannot_be_silenced(root: Browser, mesh: AdminMesh) -> None:
    alert = mesh.add_alert()
    page = await root.get(PATH)
    mesh.alerts.clear()
    answer = await root.submit(page, f"{PATH}/{alert.id}/silence", lifetime="3600", covers="this")
    assert answer.status_code == 404
    assert 'role="alert"' in answer.text
    assert "No alerts</span>" in answer.text


async def test_failed_actions_are_reported_while_metrics_is_down(root: Browser, mesh: AdminMesh) -> None:
    alert = mesh.add_alert()
    mesh.silences.append(Silence("0001", "no_worker", {}, NOW, "ada", ""))
    page = await root.get(PATH)
    mesh.broken["metrics"] = AWAY
    for path in (f"{alert.id}/silence", "silences/0001/end"):
        answer = await root.submit(page, f"{PATH}/{path}")
        assert answer.status_code == 503
        assert "No metrics node is reachable." in answer.text
        assert "<code>python -m services.metrics</code>" in answer.text


async def test_cross_site_actions_are_refused(root: Browser, mesh: AdminMesh) -> None:
    mesh.silences.append(Silence("0001", "other", {}, NOW, "ada", ""))
    alert = mesh.add_alert()
    page = await root.get(PATH)
    for path in (f"{alert.id}/silence", "silences/0001/end"):
        assert (await root.submit(page, f"{PATH}/{path}", {"Sec-Fetch-Site": "cross-site"})).status_code == 403
        assert (await root.submit(page, f"{PATH}/{path}", token="forged")).status_code == 403
    assert len(mesh.silences) == 1


async def test_page_is_live(app: ASGIApp, mesh: AdminMesh) -> None:
    mesh.add_person("root", UserRole.ADMIN)
    mesh.add_alert(node="n1")
    values = await followed.first_event(app, "/live/alerts", "root")
    assert (values["word"], values["away"], values["connection"]) == ("1 alert", False, "")
    assert values["now"][0]["summary"] == "no_worker is wrong"


async def test_live_page_keeps_its_content_while_metrics_is_down(app: ASGIApp, mesh: AdminMesh) -> None:
    mesh.add_person("root", UserRole.ADMIN)
    mesh.broken["metrics"] = AWAY
    assert await followed.first_event(app, "/live/alerts", "root") == {"connection": "stale"}


async def test_only_administrators_open_and_follow_it(browser: Browser, mesh: AdminMesh) -> None:
    mesh.add_person("bob", UserRole.NODE_OWNER)
    await browser.sign_in("bob", "correct horse")
    for path in (PATH, "/live/alerts"):
        assert (await browser.get(path)).status_code == 403
    assert "metrics.listAlerts" not in mesh.called_methods()
