"""`aicli admin billing`."""

from datetime import UTC, datetime
from uuid import UUID

import click.testing
import msgspec
import pytest

from shared.api import auth
from shared.api.billing import (
    AdoptPayment,
    Invoice,
    InvoiceDocument,
    InvoiceLine,
    InvoicePurpose,
    Invoices,
    InvoiceState,
    ListInvoices,
    Party,
    ProviderPayment,
    VoidInvoice,
    adopt_payment,
    list_invoices,
    void_invoice,
)
from shared.types import TenantId, Tier, UserId, UserRole
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


def invoice(number: str) -> Invoice:
    at, line = datetime(2026, 11, 1, tzinfo=UTC), InvoiceLine("Prepaid credits", 2500)
    document = InvoiceDocument(
        number, at, at, Party("Mesh Ltd"), Party("ada"), "EUR", (line,), 2500, "", "", 0, 2500, InvoicePurpose.TOP_UP
    )
    return Invoice(document, TenantId(UUID(int=5)), InvoiceState.OPEN)


def test_who_gives_up_numbers_is_told_which_and_asked(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ("admin", "invoices", "void", "INV-2026-000099", "--lost", "--reason", "a restore")
    shell.mesh.answer(list_invoices, Invoices((invoice("INV-2026-000009"),)))
    shell.mesh.answer(void_invoice, invoice("INV-2026-000099"))
    refused = shell(*typed)
    assert (refused.exit_code, "use --yes" in refused.stderr) == (2, True)
    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda self: True)
    asked = shell(*typed, stdin="n\n")
    assert asked.exit_code == 130
    assert "Void all numbers after INV-2026-000009, the newest invoice, up to INV-2026-000099?" in asked.stderr
    assert [call.request for call in shell.mesh.calls] == [ListInvoices(everyone=True, limit=1)]
    done = shell(*typed, stdin="y\n")
    assert done.stdout == "INV-2026-000099 and the lost numbers before it are void.\n"
    assert shell(*typed, "--yes").exit_code == 0
    voided = VoidInvoice("INV-2026-000099", "a restore", lost=True)
    assert [call.request for call in shell.mesh.calls][2:] == [voided, voided]
