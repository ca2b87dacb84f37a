"""`aicli admin billing`."""

from datetime import UTC, datetime
from uuid import UUID

import msgspec

from shared.api import auth
from shared.api.billing import AdoptPayment, ProviderPayment, adopt_payment
from shared.types import Tier, UserId, UserRole
from tests.cli.fake_mesh import Shell

ALICE = auth.User(UserId(UUID(int=5)), "alice", "alice@example.org", UserRole.USER, Tier.PRO, True, datetime(2026, 2, 1, tzinfo=UTC))
PAYMENT = ProviderPayment("txn_1", True, 2900, "EUR", "ctm_1", None, {"owner": "\x1b[2J"})


def test_a_payment_is_shown_and_adopted(shell: Shell) -> None:
    shell.mesh.answer(auth.get_user_called, ALICE)
    shell.mesh.answer(adopt_payment, PAYMENT)
    shown = shell("admin", "billing", "adopt", "txn_1").stdout
    assert "29.00 EUR" in shown
    assert "\x1b" not in shown
    shell("admin", "billing", "adopt", "txn_1", "--owner", "alice", "--reason", "she wrote")
    requests = [call.request for call in shell.mesh.calls if isinstance(call.request, AdoptPayment)]
    assert requests == [AdoptPayment("txn_1"), AdoptPayment("txn_1", ALICE.id, "she wrote")]


def test_an_unpaid_payment_says_so(shell: Shell) -> None:
    shell.mesh.answer(adopt_payment, msgspec.structs.replace(PAYMENT, is_paid=False, customer=None, subscription="sub_1"))
    lines = shell("admin", "billing", "adopt", "txn_1").stdout.splitlines()
    assert lines[0] == "payment       txn_1, not paid"
    assert "subscription  sub_1" in lines
