"""gateway: accounts, prices, top-ups and verification of the ledger.

Amounts are whole micro-credits: 1 credit is 1,000,000 of them. The operator decides what a credit is worth.
"""

from datetime import UTC, date, datetime, timedelta
from typing import Annotated

from msgspec import Meta

from shared.api.auth import Budget
from shared.api.method import PEOPLE, Body, Method
from shared.types import MicroCredits, ModelName, Moment, RequestId, Role, UserId

MICRO = 1_000_000


class Allowance(Body, frozen=True, omit_defaults=False):
    """The tokens that a plan includes in a period. Never add them to money."""

    #: None: as many as are used.
    included: int | None
    used: int
    #: Held by running requests.
    held: int
    #: The end of the period. Unused tokens are lost.
    renews_at: Moment

    @property
    def left(self) -> int | None:
        return None if self.included is None else max(0, self.included - self.used - self.held)


class Account(Body, frozen=True, omit_defaults=False):
    """What one user or organization can spend."""

    #: Prepaid credits; below zero: owed.
    balance_micro: MicroCredits
    #: Held by running requests.
    reserved_micro: MicroCredits
    #: How far the balance may fall below zero; None: it doesn't bound requests.
    overage_micro: MicroCredits | None = None
    #: None while MONEY is off.
    allowance: Allowance | None = None
    #: What all requests of the owner may cost, and what they have cost since it was renewed.
    budget: Budget | None = None
    spent_micro: MicroCredits = MicroCredits(0)
    #: False: it is done, but the recovery log on disk lacks it for now.
    logged: bool = True

    @property
    def free_micro(self) -> int | None:
        """Return how much money a new request may cost; None if nothing bounds it."""
        of_balance = None if self.overage_micro is None else self.balance_micro + self.overage_micro - self.reserved_micro
        of_budget = None if self.budget is None else self.budget.micro - self.spent_micro - self.reserved_micro
        bounds = [bound for bound in (of_balance, of_budget) if bound is not None]
        return max(0, min(bounds)) if bounds else None


class AccountFor03(Account, frozen=True, omit_defaults=False, kw_only=True):
    """With what clients of release 0.3 can't do without: credits that a tier included each month."""

    included_micro: MicroCredits = MicroCredits(0)
    monthly_micro: MicroCredits | None = None
    renews_at: Moment

    @classmethod
    def of(cls, account: Account) -> Account:
        return cls(*(getattr(account, name) for name in Account.__struct_fields__), renews_at=renews_at(account))


def renews_at(account: Account) -> datetime:
    """Return when release 0.3 says that an account gets its credits of the next month."""
    if account.allowance is not None:
        return account.allowance.renews_at
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (today.replace(day=1) + timedelta(days=31)).replace(day=1)


class ReadAccount(Body, frozen=True):
    """None reads the caller's own account. Only administrators may read another."""

    #: The id of a user or organization.
    user_id: UserId | None = None


class TopUp(Body, frozen=True):
    """For administrators: give credits to a user or organization, or take them back with a negative amount."""

    #: A username, an email address or an id. For an organization, only the id, because names are not unique.
    user: str
    amount_micro: MicroCredits
    #: The reason; stored with the entries.
    note: str = ""
    #: Chosen by the caller. Repeating a top-up with the same id has no effect, so a lost call can be retried.
    transfer_id: RequestId | None = None


class ModelPrice(Body, frozen=True, omit_defaults=False):
    """A model's prices from some time on, in micro-credits."""

    #: None for all models without a price of their own.
    model: ModelName | None
    input_micro_per_million: MicroCredits
    output_micro_per_million: MicroCredits
    request_micro: MicroCredits = MicroCredits(0)
    compute_second_micro: MicroCredits = MicroCredits(0)
    #: How many tokens of a plan's allowance a token uses; 0: the allowance never covers this model.
    allowance_weight: Annotated[int, Meta(ge=0, le=1000)] = 1
    #: When the price took effect. A request pays the price at its admission.
    since: Moment | None = None
    #: What requests of batches pay of each price.
    batch_percent: Annotated[int, Meta(ge=0, le=100)] = 50


class SetPrice(Body, frozen=True):
    """For administrators."""

    price: ModelPrice


class ListPrices(Body, frozen=True):
    #: Include former prices.
    history: bool = False


class ModelPrices(Body, frozen=True):
    prices: tuple[ModelPrice, ...]


class RevertRequest(Body, frozen=True):
    """For administrators: refund one request with reversing entries."""

    request_id: RequestId
    note: str = ""


class VerifyLedger(Body, frozen=True):
    """For administrators: verify the entries since the last signed checkpoint."""

    #: Verify all entries and compare each closed day with its checkpoint. This may take minutes.
    full: bool = False


class LedgerReport(Body, frozen=True, omit_defaults=False):
    """Everything is 0 or empty if the ledger is correct."""

    #: The sum, over accounts, of the difference between entries and balance.
    drift_micro: MicroCredits
    #: The sum of all entries; 0 in double-entry bookkeeping.
    sum_micro: MicroCredits
    #: The difference between held amounts and open reservations.
    reserved_drift_micro: MicroCredits
    #: Open reservations whose lease expired more than a minute ago.
    overdue: int
    #: How much was verified.
    accounts: int
    entries: int
    open_reservations: int
    #: One sentence per problem, at most 20.
    findings: tuple[str, ...] = ()
    #: Checkpoints whose signature or entries do not match.
    broken_checkpoints: int = 0
    #: As the first three, in tokens of plans.
    drift_tokens: int = 0
    #: The last day that was taken from its checkpoint; None if every entry was added up.
    closed_until: date | None = None


read_account = Method("gateway.readAccount", ReadAccount, Account, callers=PEOPLE)
top_up = Method("gateway.topUp", TopUp, Account, callers=PEOPLE)
set_price = Method("gateway.setPrice", SetPrice, ModelPrices, callers=PEOPLE)
list_prices = Method("gateway.listPrices", ListPrices, ModelPrices, callers=PEOPLE)
revert_request = Method("gateway.revertRequest", RevertRequest, Account, callers=PEOPLE)
verify_ledger = Method("gateway.verifyLedger", VerifyLedger, LedgerReport, callers={*PEOPLE, Role.METRICS})
