"""The page of webhook endpoints."""

from msgspec.structs import replace

from tests.services.web.browser import SAME_ORIGIN, Browser, forms_of, shown_key
from tests.services.web.fake_mesh import FakeMesh

HERE = "/settings/webhooks"
ID = f"whe_{'a' * 26}"


async def create(alice: Browser, **typed: str) -> str:
    page = await alice.submit(await alice.get(HERE), HERE, **{"name": "mine", "url": "https://example.org/hook", **typed})
    assert page.status_code == 201
    return shown_key(page) or ""


async def test_a_secret_is_shown_once(alice: Browser, mesh: FakeMesh) -> None:
    assert await create(alice, events="batch.") == "whsec_first"
    assert {event.partition(".")[0] for event in mesh.webhook_endpoints[ID].event_types} == {"batch"}
    listed = await alice.get(HERE)
    assert "whsec_first" not in listed.text
    assert "https://example.org/hook" in listed.text
    rotated = await alice.submit(listed, f"{HERE}/{ID}/rotate")
    assert (rotated.status_code, shown_key(rotated)) == (201, "whsec_second")


async def test_a_refused_url_keeps_the_input(alice: Browser, mesh: FakeMesh) -> None:
    page = await alice.submit(await alice.get(HERE), HERE, name="mine", url="http://example.org/")
    assert page.status_code == 400
    assert "must begin with https://" in page.text
    assert 'value="http://example.org/"' in page.text
    assert mesh.webhook_endpoints == {}


async def test_a_test_is_a_success_only_for_2xx(alice: Browser, mesh: FakeMesh) -> None:
    await create(alice)
    mesh.webhook_status = 302
    failed = await alice.submit(await alice.get(HERE), f"{HERE}/{ID}/test")
    assert failed.status_code == 400
    assert "test failed: returned 302" in failed.text
    mesh.webhook_status = 204
    answer = await alice.submit(failed, f"{HERE}/{ID}/test")
    assert answer.headers["location"] == f"{HERE}?done=test"
    shown = (await alice.get(f"{HERE}?done=test")).text
    assert "Test delivered." in shown
    assert "returned 204" in shown


async def test_a_disabled_endpoint_says_why_and_can_be_enabled(alice: Browser, mesh: FakeMesh) -> None:
    await create(alice)
    await alice.submit(await alice.get(HERE), f"{HERE}/{ID}/test")
    mesh.webhook_endpoints[ID] = replace(mesh.webhook_endpoints[ID], disabled_why="it answered 410 Gone")
    page = await alice.get(HERE)
    assert "it answered 410 Gone" in page.text
    assert f"{HERE}/{ID}/test" not in page.text
    answer = await alice.submit(page, f"{HERE}/{ID}/enable")
    assert answer.headers["location"] == f"{HERE}?done=enable"
    assert not mesh.webhook_endpoints[ID].disabled_why


async def test_an_endpoint_is_deleted_once(alice: Browser, mesh: FakeMesh) -> None:
    await create(alice)
    page = await alice.get(HERE)
    assert (await alice.submit(page, f"{HERE}/{ID}/delete")).headers["location"] == f"{HERE}?done=delete"
    assert mesh.webhook_endpoints == {}
    assert (await alice.submit(page, f"{HERE}/{ID}/delete")).status_code == 404


async def test_there_are_no_other_actions(alice: Browser, mesh: FakeMesh) -> None:
    await create(alice)
    fields = forms_of(await alice.get(HERE))[f"{HERE}/{ID}/test"]
    answer = await alice.client.post(f"{HERE}/{ID}/forget", data=fields, headers=SAME_ORIGIN)
    assert answer.status_code == 404
    assert list(mesh.webhook_endpoints) == [ID]
