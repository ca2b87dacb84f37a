"""admin invite and admin invitations: the link goes to stdout, everything else to stderr."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from shared import errors
from shared.api import organizations
from shared.api.method import Nothing
from shared.api.organizations import ColleagueInvitation, InviteColleague, InvitedColleague, WithdrawColleagueInvitation
from shared.types import UserRole
from tests.cli.fake_mesh import Shell

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LINK = "https://ai.example/join#secret-code"


def row(**changed: Any) -> ColleagueInvitation:
    fields: dict[str, Any] = {
        "id": "0123456789abcdef", "email": "ben@example.com", "role": UserRole.DEVELOPER, "invited_by": "ann", "created_at": NOW,
        "expires_at": NOW, "organisation_name": "Acme",
    }  # fmt: skip
    return ColleagueInvitation(**{**fields, **changed})


@pytest.mark.parametrize(
    ("link", "is_mailed", "printed", "note"),
    [
        (LINK, True, LINK, "They get it by email. You can also send them this link."),
        (LINK, False, LINK, "Send them this link."),
        ("", False, "secret-code", "Send them this code, to enter on the page /join (set PUBLIC_URL to get a link)."),
    ],
)
def test_the_link_is_all_of_stdout(shell: Shell, link: str, is_mailed: bool, printed: str, note: str) -> None:
    shell.mesh.answer(organizations.invite_colleague, InvitedColleague(row(), "secret-code", link, is_mailed))
    done = shell("admin", "invite", "ben@example.com", "--role", "developer", "--organization", "Acme")
    assert (done.exit_code, done.stdout) == (0, f"{printed}\n")
    assert "Invited ben@example.com as a developer, and a member of Acme, until" in done.stderr
    assert note in done.stderr
    assert "secret-code" not in done.stderr
    assert shell.mesh.calls[0].request == InviteColleague("ben@example.com", UserRole.DEVELOPER, "Acme")


def test_an_invitation_as_json(shell: Shell) -> None:
    shell.mesh.answer(organizations.invite_colleague, InvitedColleague(row(), "secret-code", LINK, True))
    made = json.loads(shell("admin", "invite", "ben@example.com", "--json").stdout)
    assert (made["link"], made["is_mailed"], made["invitation"]["role"]) == (LINK, True, "developer")
    assert shell.mesh.calls[0].request == InviteColleague("ben@example.com")


def test_open_invitations_are_listed(shell: Shell) -> None:
    shell.mesh.answer(organizations.list_colleague_invitations, organizations.ColleagueInvitations((row(), row(organisation_name=""))))
    done = shell("admin", "invitations", "list")
    _, first, second = done.stdout.splitlines()
    assert first.split()[:5] == ["01234567", "ben@example.com", "developer", "Acme", "ann"]
    assert second.split()[3] == "–"
    shell.mesh.answer(organizations.list_colleague_invitations, organizations.ColleagueInvitations(()))
    assert "aicli admin invite EMAIL" in shell("admin", "invitations", "list").stderr


def test_an_invitation_is_revoked(shell: Shell) -> None:
    shell.mesh.answer(organizations.withdraw_colleague_invitation, Nothing())
    assert shell("admin", "invitations", "revoke", "01234567").stdout == "Revoked invitation 01234567.\n"
    assert shell.mesh.calls[0].request == WithdrawColleagueInvitation("01234567")


def test_an_unknown_role_and_a_refusal_are_one_line(shell: Shell) -> None:
    assert shell("admin", "invite", "ben@example.com", "--role", "emperor").exit_code == 2

    def refuse(request: InviteColleague) -> InvitedColleague:
        raise errors.AlreadyExists("a user with this address has an account", hint="change their role")

    shell.mesh.answer(organizations.invite_colleague, refuse)
    done = shell("admin", "invite", "ben@example.com")
    assert done.exit_code != 0
    assert done.stderr.strip() == "error: a user with this address has an account – change their role"
