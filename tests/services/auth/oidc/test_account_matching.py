"""Which account somebody gets whom the provider vouches for."""

from uuid import UUID

import pytest

from services.auth.oidc import account_matching
from services.auth.oidc.account_matching import CreateAccount, FoundAccounts, LinkAccount, LogInToAccount
from services.auth.oidc.claim_mapping import Identity, RoleTable
from shared import errors
from shared.types import UserId, UserRole

ANN, BOB = UserId(UUID(int=1)), UserId(UUID(int=2))
IDENTITY = Identity("i", "s", "ann@example.com", email_verified=True, groups=("makers",))
TABLE = RoleTable({"makers": UserRole.DEVELOPER})


@pytest.mark.parametrize(
    ("link_to", "found", "table", "decision"),
    [
        pytest.param(None, FoundAccounts(ANN), RoleTable(), LogInToAccount(ANN, None), id="somebody who came before"),
        pytest.param(None, FoundAccounts(ANN), TABLE, LogInToAccount(ANN, UserRole.DEVELOPER), id="whose groups say what they are now"),
        pytest.param(None, FoundAccounts(ANN, BOB), TABLE, LogInToAccount(ANN, UserRole.DEVELOPER), id="whose address is another's by now"),
        pytest.param(ANN, FoundAccounts(ANN), TABLE, LogInToAccount(ANN, UserRole.DEVELOPER), id="who is linked already"),
        pytest.param(ANN, FoundAccounts(), TABLE, LinkAccount(ANN, UserRole.DEVELOPER), id="who asked to be linked"),
        pytest.param(ANN, FoundAccounts(None, BOB), RoleTable(), LinkAccount(ANN, None), id="to another account than the address says"),
        pytest.param(None, FoundAccounts(), TABLE, CreateAccount("ann@example.com", UserRole.DEVELOPER), id="somebody new"),
        pytest.param(None, FoundAccounts(), RoleTable(), CreateAccount("ann@example.com", UserRole.USER), id="somebody new, a plain user"),
    ],
)
def test_whose_account(link_to: UserId | None, found: FoundAccounts, table: RoleTable, decision: object) -> None:
    assert account_matching.decide(IDENTITY, link_to, found, table) == decision


@pytest.mark.parametrize("verified", [True, False])
def test_an_account_is_not_taken_over_by_its_address(verified: bool) -> None:
    identity = Identity("i", "s", "ann@example.com", email_verified=verified)
    with pytest.raises(errors.AlreadyExists, match="with your e-mail address") as refused:
        account_matching.decide(identity, None, FoundAccounts(None, ANN), TABLE)
    assert "password" in refused.value.hint
    assert "link" in refused.value.hint


def test_one_login_at_the_provider_does_not_open_two_accounts() -> None:
    with pytest.raises(errors.AlreadyExists, match="another account"):
        account_matching.decide(IDENTITY, BOB, FoundAccounts(ANN), TABLE)


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
        account_matching.decide(Identity("i", "s", email), None, FoundAccounts(), TABLE)
    assert refused.value.hint
