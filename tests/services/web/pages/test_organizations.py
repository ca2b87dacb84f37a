from uuid import UUID, uuid4

import msgspec
import pytest

from shared import errors
from shared.api.organizations import TeamRole
from shared.types import TenantId
from tests.services.web.browser import SAME_ORIGIN, Browser, forms_of
from tests.services.web.fake_mesh import FakeMesh

EVIL = "<script>alert(1)</script>"


@pytest.fixture
async def alice(mesh: FakeMesh, browser: Browser) -> Browser:
    mesh.add_account("alice", "correct horse")
    mesh.add_account("bob", "battery staple")
    await browser.sign_in("alice", "correct horse")
    return browser


@pytest.fixture
def acme(mesh: FakeMesh, alice: Browser) -> TenantId:
    """An organization that alice owns and bob is a member of."""
    return mesh.add_team("Acme", mesh.accounts["alice"].user, mesh.accounts["bob"].user)


def roles(mesh: FakeMesh, team: TenantId) -> dict[str, TeamRole]:
    return {member.username: member.role for member in mesh.teams[team].members}


async def test_user_without_organizations_is_told_how_to_start(alice: Browser) -> None:
    page = await alice.get("/organisations")
    assert "You aren’t in an organization yet" in page.text
    assert "Personal account" in page.text


async def test_creating_an_organization_leads_to_its_page(alice: Browser, mesh: FakeMesh) -> None:
    answer = await alice.submit(await alice.get("/organisations"), "/organisations", name=" Acme ")
    (team,) = mesh.teams
    assert answer.headers["location"] == f"/organisations/{team}?done=created"
    page = await alice.get(answer.headers["location"])
    assert "<h1>Acme</h1>" in page.text
    assert "No pending invitations." in page.text


async def test_invalid_name_is_kept_in_the_form(alice: Browser, mesh: FakeMesh) -> None:
    page = await alice.submit(await alice.get("/organisations"), "/organisations", name="\u202eAcme")
    assert page.status_code == 400
    assert forms_of(page)["/organisations"]["name"] == "\u202eAcme"
    assert mesh.teams == {}


async def test_switch_to_an_organization_and_back(alice: Browser, mesh: FakeMesh, acme: TenantId) -> None:
    before = alice.client.cookies["aimesh_session"]
    answer = await alice.submit(await alice.get("/organisations"), "/organisations/switch", id=str(acme))
    assert answer.headers["location"] == "/organisations?done=switched"
    assert alice.client.cookies["aimesh_session"] != before
    assert before not in mesh.sessions
    page = await alice.get("/organisations")
    assert "<small>in <bdi>Acme</bdi></small>" in page.text
    await alice.submit(page, "/organisations/switch", id="")
    assert "<small>in <bdi>Acme</bdi></small>" not in (await alice.get("/organisations")).text


@pytest.mark.parametrize(("id_", "status"), [(str(UUID(int=1)), 404), ("nonsense", 400), (EVIL, 400)])
async def test_cannot_act_for_another_organization(alice: Browser, mesh: FakeMesh, acme: TenantId, id_: str, status: int) -> None:
    page = await alice.submit(await alice.get("/organisations"), "/organisations/switch", id=id_)
    assert page.status_code == status
    assert EVIL not in page.text
    assert mesh.acting == {}


async def test_owner_sees_everything_and_members_see_members(alice: Browser, tls_browser: Browser, mesh: FakeMesh, acme: TenantId) -> None:
    here = f"/organisations/{acme}"
    await alice.submit(await alice.get(here), f"{here}/invite", email="carol@example.com")
    owners = await alice.get(here)
    assert {f"{here}/{act}" for act in ("role", "remove", "invite", "revoke", "rename")} <= set(forms_of(owners))
    # The only owner can't leave, so the page doesn't offer it.
    assert f"{here}/leave" not in forms_of(owners)
    assert "You’re the only owner. To leave, make another member an owner first." in owners.text
    await tls_browser.sign_in("bob", "battery staple")
    members = await tls_browser.get(here)
    assert "alice" in members.text
    assert "carol@example.com" not in members.text
    assert {action for action in forms_of(members) if action.startswith(here)} == {f"{here}/leave"}


async def test_strangers_cannot_see_that_it_exists(tls_browser: Browser, mesh: FakeMesh, acme: TenantId) -> None:
    mesh.add_account("mallory", "x")
    await tls_browser.sign_in("mallory", "x")
    assert (await tls_browser.get(f"/organisations/{acme}")).status_code == 404
    assert (await tls_browser.get(f"/organisations/{uuid4()}")).status_code == 404
    assert (await tls_browser.get("/organisations/not-an-id")).status_code == 404


async def test_invitation_link_is_shown_once(alice: Browser, mesh: FakeMesh, acme: TenantId) -> None:
    here = f"/organisations/{acme}"
    page = await alice.submit(await alice.get(here), f"{here}/invite", email="carol@example.com", role="owner")
    assert page.status_code == 201
    assert ">http://localhost:3000/invitation#invitation-token</textarea>" in page.text
    assert mesh.teams[acme].invitations[0].role is TeamRole.OWNER
    again = await alice.get(here)
    assert "invitation-token" not in again.text
    assert "carol@example.com" in again.text


@pytest.mark.parametrize(("email", "role"), [("nobody", "member"), ("carol@example.com", "king")])
async def test_refused_invitation_keeps_the_input(alice: Browser, acme: TenantId, email: str, role: str) -> None:
    here = f"/organisations/{acme}"
    page = await alice.submit(await alice.get(here), f"{here}/invite", email=email, role=role)
    assert page.status_code == 400
    assert forms_of(page)[f"{here}/invite"]["email"] == email


async def test_invitation_needs_confirmation(alice: Browser, mesh: FakeMesh, acme: TenantId) -> None:
    here = f"/organisations/{acme}"
    mesh.is_stale = True
    confirm_page = await alice.submit(await alice.get(here), f"{here}/invite", email="carol@example.com", role="member")
    assert mesh.invitations == {}
    page = await alice.submit(confirm_page, f"{here}/invite", confirm_password="correct horse")
    assert page.status_code == 201
    assert "<bdi>carol@example.com</bdi> was invited" in page.text


async def test_withdraw_an_invitation(alice: Browser, mesh: FakeMesh, acme: TenantId) -> None:
    here = f"/organisations/{acme}"
    await alice.submit(await alice.get(here), f"{here}/invite", email="carol@example.com")
    page = await alice.get(here)
    answer = await alice.submit(page, f"{here}/revoke")
    assert answer.headers["location"] == f"{here}?done=revoked"
    assert mesh.teams[acme].invitations == ()
    again = await alice.submit(page, f"{here}/revoke")
    assert again.status_code == 404
    assert "There is no open invitation with this id." in again.text


async def test_roles_can_be_set_except_for_the_last_owner(alice: Browser, mesh: FakeMesh, acme: TenantId) -> None:
    here, page = f"/organisations/{acme}", await alice.get(f"/organisations/{acme}")
    alice_id, bob_id = (str(mesh.accounts[name].user.id) for name in ("alice", "bob"))
    refused = await alice.submit(page, f"{here}/role", user_id=alice_id, role="member")
    assert refused.status_code == 403
    assert "An organization needs at least one owner." in refused.text
    assert (await alice.submit(page, f"{here}/role", user_id=bob_id, role="owner")).status_code == 303
    assert (await alice.submit(page, f"{here}/role", user_id=alice_id, role="member")).status_code == 303
    assert roles(mesh, acme) == {"alice": TeamRole.MEMBER, "bob": TeamRole.OWNER}


async def test_remove_a_member(alice: Browser, mesh: FakeMesh, acme: TenantId) -> None:
    here = f"/organisations/{acme}"
    page = await alice.get(here)
    assert "data-confirm" in page.text
    answer = await alice.submit(page, f"{here}/remove", user_id=str(mesh.accounts["bob"].user.id))
    assert answer.headers["location"] == f"{here}?done=removed"
    assert set(roles(mesh, acme)) == {"alice"}


async def test_rename_an_organization(alice: Browser, mesh: FakeMesh, acme: TenantId) -> None:
    here = f"/organisations/{acme}"
    answer = await alice.submit(await alice.get(here), f"{here}/rename", name=EVIL)
    assert answer.headers["location"] == f"{here}?done=renamed"
    page = await alice.get(here)
    assert EVIL not in page.text
    assert "&lt;script&gt;" in page.text
    assert EVIL not in (await alice.get("/organisations")).text


async def test_leaving_the_active_organization_switches_back(tls_browser: Browser, mesh: FakeMesh, acme: TenantId) -> None:
    here = f"/organisations/{acme}"
    await tls_browser.sign_in("bob", "battery staple")
    await tls_browser.submit(await tls_browser.get("/organisations"), "/organisations/switch", id=str(acme))
    answer = await tls_browser.submit(await tls_browser.get(here), f"{here}/leave")
    assert answer.headers["location"] == "/organisations?done=left"
    page = await tls_browser.get("/organisations?done=left")
    assert page.status_code == 200
    assert "You left the organization." in page.text
    assert set(roles(mesh, acme)) == {"alice"}


async def test_last_owner_cannot_leave_and_stays_switched(alice: Browser, mesh: FakeMesh, acme: TenantId) -> None:
    here = f"/organisations/{acme}"
    await alice.submit(await alice.get("/organisations"), "/organisations/switch", id=str(acme))
    token = forms_of(await alice.get(here))[f"{here}/rename"]["token"]
    page = await alice.client.post(f"{here}/leave", data={"token": token}, headers=SAME_ORIGIN)
    assert page.status_code == 403
    assert "Make another member an owner first." in page.text
    assert "<small>in <bdi>Acme</bdi></small>" in (await alice.get(here)).text


async def test_owner_may_leave_if_another_remains(alice: Browser, mesh: FakeMesh, acme: TenantId) -> None:
    here = f"/organisations/{acme}"
    page = await alice.get(here)
    await alice.submit(page, f"{here}/role", user_id=str(mesh.accounts["bob"].user.id), role="owner")
    answer = await alice.submit(await alice.get(here), f"{here}/leave")
    assert answer.headers["location"] == "/organisations?done=left"
    assert roles(mesh, acme) == {"bob": TeamRole.OWNER}


async def test_unavailable_auth_gives_503(alice: Browser, mesh: FakeMesh, acme: TenantId) -> None:
    mesh.broken |= {name: errors.NotReachable("nobody is there") for name in ("auth.listOrganisations", "auth.getOrganisation")}
    for path in ("/organisations", f"/organisations/{acme}"):
        assert (await alice.get(path)).status_code == 503


@pytest.mark.parametrize("act", ["rename", "invite", "role", "remove", "leave"])
async def test_cross_site_forms_are_refused(alice: Browser, mesh: FakeMesh, acme: TenantId, act: str) -> None:
    here = f"/organisations/{acme}"
    if act == "leave":
        # The only owner has no such form, so make bob an owner, too.
        await alice.submit(await alice.get(here), f"{here}/role", user_id=str(mesh.accounts["bob"].user.id), role="owner")
    page = await alice.get(here)
    before = mesh.teams[acme]
    chosen = {"role": "owner"} if act in ("invite", "role") else {}
    assert (await alice.submit(page, f"{here}/{act}", {"Sec-Fetch-Site": "cross-site"}, **chosen)).status_code == 403
    assert (await alice.submit(page, f"{here}/{act}", **chosen, token="")).status_code == 403
    assert mesh.teams[acme] == before


async def test_shared_limits_of_the_founder_are_mentioned(alice: Browser, mesh: FakeMesh, acme: TenantId) -> None:
    for path in ("/organisations", f"/organisations/{acme}"):
        assert "pro tier" in (await alice.get(path)).text
    page = mesh.teams[acme]
    mesh.teams[acme] = msgspec.structs.replace(page, organisation=msgspec.structs.replace(page.organisation, shares_limits=True))
    for path in ("/organisations", f"/organisations/{acme}"):
        text = (await alice.get(path)).text
        assert "shares its founder’s limits" in text
        assert "pro tier" not in text
