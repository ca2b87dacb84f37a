"""The judge of the simulated quarter finds each thing that is wrong, and nothing else."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from shared.types import TenantId
from tests.services.gateway.payments import quarter_judge
from tests.services.gateway.payments.quarter_judge import Account, Outside, Quarter

ADA = TenantId(UUID(int=1))
ACCOUNT: dict[str, Any] = {
    "kept": 2500, "given": 2500, "paid_tokens": {0: 1000, 2: 500}, "tokens": {0: 1000, 2: 500}, "owed": 17, "billed": 17, "due_fees": 2,
    "fees": 2, "failed": 1, "failed_mails": 1,
}  # fmt: skip
OUTSIDE = Outside(
    documents={"INV-2027-000001": {"a"}, "INV-2027-000003": {"b"}, "INV-2028-000001": {"c"}}, void={"INV-2027-000002": "lost"},
    mails=[(ADA, "INV-2027-000001 1"), (ADA, "INV-2027-000001 last")],
)  # fmt: skip


def judge(outside: Outside = OUTSIDE, **changed: object) -> list[str]:
    return quarter_judge.violations(Quarter(accounts={ADA: Account("ada", **ACCOUNT | changed)}, outside=outside))


def test_exact_books_are_right() -> None:
    assert judge() == []


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"given": 5000}, "ada: credits: 2500 were paid and kept, and 5000 given"),
        ({"kept": 0}, "ada: credits: 0 were paid and kept, and 2500 given"),
        ({"tokens": {0: 1000, 2: 1000}}, "ada: tokens: {0: 1000, 2: 500} were paid and kept, by period, and {0: 1000, 2: 1000} given"),
        ({"billed": 34}, "ada: usage: 17 were used beyond the plan, and 34 billed"),
        ({"fees": 3}, "ada: fees: 2 were due, and 3 billed"),
        ({"failed_mails": 2}, "ada: mails: 1 payments failed, and 2 mails say so"),
    ],
)
def test_each_account_has_what_it_paid(changed: dict[str, object], found: str) -> None:
    assert judge(**changed) == [found]


@pytest.mark.parametrize(
    ("outside", "found"),
    [
        (replace(OUTSIDE, void={}), "numbers: INV-2027 has no [2]"),
        (replace(OUTSIDE, void={"INV-2027-000002": ""}), "numbers: INV-2027-000002 is void without a reason"),
        (replace(OUTSIDE, documents={"INV-2027-000001": {"a", "b"}}, void={}), "numbers: INV-2027-000001 is the number of 2 documents"),
        (replace(OUTSIDE, mails=[*OUTSIDE.mails, OUTSIDE.mails[0]]), "mails: ada got one 2 times: INV-2027-000001 1"),
    ],
)  # fmt: skip
def test_the_world_is_told_once(outside: Outside, found: str) -> None:
    assert judge(outside) == [found]


def test_findings_of_the_ledger_are_violations() -> None:
    quarter = Quarter(accounts={}, outside=Outside(documents={}, void={}, mails=()), findings=["drift"])
    assert quarter_judge.violations(quarter) == ["drift"]
