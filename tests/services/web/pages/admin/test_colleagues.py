"""Inviting people to the mesh, as an administrator."""

import pytest

from shared.api.organizations import InviteColleague
from shared.types import UserRole
from tests.services.web.browser import CONFIRM, Browser, forms_of
from tests.services.web.pages.admin.admin_mesh import AdminMesh

HERE = "/admin/invitations"


@pytest.mark.parametrize("sends_mail", [True, False])
async def test_an_administrator_invites_and_gets_the_link_once(root: Browser, mesh: AdminMesh, sends_mail: bool) -> None:
    mesh.sends_mail = sends_mail
    mesh.add_organisation("Acme")
    page = await root.get(HERE)
    assert '<option value="Acme">' in page.text
    answer = await root.submit(page, HERE, email=" ben@example.com ", role="developer", organisation="Acme")
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    assert "http://localhost:3000/join#code-of-a-colleague</textarea>" in answer.text
    assert ("on its way by email" in answer.text) is sends_mail
    assert mesh.requests_of("auth.inviteColleague") == [InviteColleague("ben@example.com", UserRole.DEVELOPER, "Acme")]
    listed = await root.get(HERE)
    assert "ben@example.com" in listed.text
    assert "code-of-a-colleague" not in listed.text


async def test_a_pending_invitation_is_withdrawn_once(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_colleague("code", "ben@example.com")
    page = await root.get(HERE)
    assert (await root.submit(page, f"{HERE}/revoke")).headers["location"] == f"{HERE}?done=revoked"
    assert mesh.colleagues == {}
    again = await root.submit(page, f"{HERE}/revoke")
    assert (again.status_code, "no open invitation with this id" in again.text) == (404, True)


@pytest.mark.parametrize(("field", "value"), [("email", "nowhere"), ("role", "emperor")])
async def test_a_refused_form_keeps_what_was_typed(root: Browser, mesh: AdminMesh, field: str, value: str) -> None:
    typed = {"email": "ben@example.com", "role": "user", "organisation": "Acme"} | {field: value}
    answer = await root.submit(await root.get(HERE), HERE, **typed)
    assert answer.status_code == 400
    assert forms_of(answer)[HERE]["email"] == typed["email"]
    assert mesh.colleagues == {}


async def test_an_old_sign_in_is_confirmed_first(root: Browser, mesh: AdminMesh) -> None:
    mesh.is_stale = True
    asked = await root.submit(await root.get(HERE), HERE, email="ben@example.com", role="user")
    assert (asked.status_code, CONFIRM in asked.text) == (403, True)
    assert forms_of(asked)[HERE]["email"] == "ben@example.com"
    assert mesh.colleagues == {}
