"""What must hold after a simulated quarter: the mesh has given what was paid and kept, and told the world everything once. Pure.

What should be comes from the books of the fakes and of the customers, and what is from the ledger, the documents and the mails.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from shared.types import TenantId


@dataclass(slots=True)
class Account:
    """Of one customer. Money is in minor units."""

    name: str
    #: Payments for credits, less refunds, and disputes that are open or lost; and what the ledger has given for them.
    kept: int = 0
    given: int = 0
    #: Tokens by period: those that were paid and kept, or whose payment is not late yet; and those that the plan has had.
    paid_tokens: Mapping[int, int] = field(default_factory=dict)
    tokens: Mapping[int, int] = field(default_factory=dict)
    #: What requests have cost beyond the plan; and what was billed for it, by the provider and by invoice.
    owed: int = 0
    billed: int = 0
    #: Fees that are due; and the invoices about them.
    due_fees: int = 0
    fees: int = 0
    #: Payments that the provider could not collect; and the mails about them.
    failed: int = 0
    failed_mails: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """What the world has seen, whatever was restored."""

    #: Each number, with everything that was ever shown under it.
    documents: Mapping[str, set[str]]
    #: Numbers that say why they have no document.
    void: Mapping[str, str]
    #: Whose they are, and what they say.
    mails: Sequence[tuple[TenantId, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarter:
    accounts: Mapping[TenantId, Account]
    outside: Outside
    #: What the ledger's own check has found, and items that wait and aren't forged.
    findings: Sequence[str] = field(default_factory=tuple)


def violations(quarter: Quarter) -> list[str]:
    found = [f"{account.name}: {what}" for account in quarter.accounts.values() for what in _of_account(account)]
    return [*found, *_of_numbers(quarter.outside), *_of_mails(quarter), *quarter.findings]


def _of_account(account: Account) -> Iterator[str]:
    if account.given != account.kept:
        yield f"credits: {account.kept} were paid and kept, and {account.given} given"
    if account.tokens != account.paid_tokens:
        yield f"tokens: {account.paid_tokens} were paid and kept, by period, and {account.tokens} given"
    if account.billed != account.owed:
        yield f"usage: {account.owed} were used beyond the plan, and {account.billed} billed"
    if account.fees != account.due_fees:
        yield f"fees: {account.due_fees} were due, and {account.fees} billed"
    if account.failed_mails != account.failed:
        yield f"mails: {account.failed} payments failed, and {account.failed_mails} mails say so"


def _of_numbers(outside: Outside) -> Iterator[str]:
    series = defaultdict[str, set[int]](set)
    for number in {*outside.documents, *outside.void}:
        name, _, count = number.rpartition("-")
        series[name].add(int(count))
    for name, counts in series.items():
        if missing := set(range(1, max(counts) + 1)) - counts:
            yield f"numbers: {name} has no {sorted(missing)}"
    for number, shown in outside.documents.items():
        if len(shown) > 1:
            yield f"numbers: {number} is the number of {len(shown)} documents"
    yield from (f"numbers: {number} is void without a reason" for number, reason in outside.void.items() if not reason)


def _of_mails(quarter: Quarter) -> Iterator[str]:
    for (owner, text), times in Counter(quarter.outside.mails).items():
        if times > 1:
            yield f"mails: {quarter.accounts[owner].name} got one {times} times: {text}"
