"""Which account somebody gets whom the provider vouches for."""

from uuid import UUID

import pytest

from services.auth.oidc import accounts
from services.auth.oidc.accounts import Create, Found, Link, LogIn
from services.auth.oidc.mapping import Identity, RoleTable
from shared import errors
from shared.types import UserId, UserRole

ANN, BOB = UserId(UUID(int=1)), UserId(UUID(int=2))
IDENTITY = Identity("i", "s", "ann@example.com", email_verified=True, groups=("makers",))
TABLE = RoleTable({"makers": UserRole.DEVELOPER})


@pytest.mark.parametrize(
    ("link_to", "found", "table", "decision"),
    [
        pytest.param(None, Found(ANN), RoleTable(), LogIn(ANN, None), id="somebody who came before"),
        pytest.param(None, Found(ANN), TABLE, LogIn(ANN, UserRole.DEVELOPER), id="whose groups say what they are now"),
        pytest.param(None, Found(ANN, BOB), TABLE, LogIn(ANN, UserRole.DEVELOPER), id="whose address is another's by now"),
        pytest.param(ANN, Found(ANN), TABLE, LogIn(ANN, UserRole.DEVELOPER), id="who is linked already"),
        pytest.param(ANN, Found(), TABLE, Link(ANN, UserRole.DEVELOPER), id="who asked to be linked"),
        pytest.param(ANN, Found(None, BOB), RoleTable(), Link(ANN, None), id="to another account than the address says"),
        pytest.param(None, Found(), TABLE, Create("ann@example.com", UserRole.DEVELOPER), id="somebody new"),
        pytest.param(None, Found(), RoleTable(), Create("ann@example.com", UserRole.USER), id="somebody new, a plain user"),
    ],
)
def test_whose_account(link_to: UserId | None, found: Found, table: RoleTable, decision: object) -> None:
    assert accounts.decide(IDENTITY, link_to, found, table) == decision


@pytest.mark.parametrize("verified", [True, False])
def test_an_account_is_not_taken_over_by_its_address(verified: bool) -> None:
    identity = Identity("i", "s", "ann@example.com", email_verified=verified)
    with pytest.raises(errors.AlreadyExists, match="with your e-mail address") as refused:
        accounts.decide(identity, None, Found(None, ANN), TABLE)
    assert "password" in refused.value.hint
    assert "link" in refused.value.hint


def test_one_login_at_the_provider_does_not_open_two_accounts() -> None:
    with pytest.raises(errors.AlreadyExists, match="another account"):
        accounts.decide(IDENTITY, BOB, Found(ANN), TABLE)


@pytest.mark.parametrize(
    ("email", "kind"),
    [
        (None, errors.BadRequest),
        ("no address", errors.BadRequest),
        ("ann@\0", errors.BadRequest),
        ("admin@localhost", errors.AlreadyExists),
    ],
)
def test_nobody_gets_an_account_without_an_address(email: str | None, kind: type[errors.AimeshError]) -> None:
    with pytest.raises(kind) as refused:
        accounts.decide(Identity("i", "s", email), None, Found(), TABLE)
    assert refused.value.hint
