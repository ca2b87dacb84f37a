"""The ledger as its readers and administrators see it: accounts, prices, top-ups, and whether the books add up. Served by gateway.

Amounts are whole micro-credits: 1 credit is 1,000,000 of them. What a credit is worth is the operator's to say.
"""

from datetime import date, datetime

from shared.api.method import Body, Method
from shared.types import MicroCredits, ModelName, RequestId, Role, UserId

PEOPLE = {Role.CLIENT, Role.WEB, Role.OPERATOR}

MICRO = 1_000_000


class Account(Body, frozen=True, omit_defaults=False):
    """What one user has to spend."""

    #: Left of what the tier includes this month.
    included_micro: MicroCredits
    #: Topped up, and not spent yet; below zero where a correction took more than there was.
    balance_micro: MicroCredits
    #: Held by requests that run now.
    reserved_micro: MicroCredits
    #: What the tier includes each month; None is no bound at all.
    monthly_micro: MicroCredits | None
    #: When the included credits are renewed; what is left of them then is gone.
    renews_at: datetime

    @property
    def free_micro(self) -> int:
        """What a new request may still hold."""
        return self.included_micro + self.balance_micro - self.reserved_micro


class ReadAccount(Body, frozen=True):
    """None reads the caller's own; another's only for an administrator."""

    #: A user's id, or an organisation's.
    user_id: UserId | None = None


class TopUp(Body, frozen=True):
    """For administrators: give credits to a user or an organisation, or take back what was given by mistake (an amount below zero)."""

    #: A username, an e-mail address or an id; of an organisation, whose name need not be its alone, the id.
    user: str
    amount_micro: MicroCredits
    #: Why; kept with the entries.
    note: str = ""
    #: Made by who asks: the same one again changes nothing, so that a call whose answer was lost can be repeated.
    transfer_id: RequestId | None = None


class ModelPrice(Body, frozen=True, omit_defaults=False):
    """What a model costs from some moment on. All in micro-credits."""

    #: None for every model that has no price of its own.
    model: ModelName | None
    input_micro_per_million: MicroCredits
    output_micro_per_million: MicroCredits
    request_micro: MicroCredits = MicroCredits(0)
    compute_second_micro: MicroCredits = MicroCredits(0)
    #: When it came into force; a request keeps the price of the moment it was admitted.
    since: datetime | None = None


class SetPrice(Body, frozen=True):
    """For administrators."""

    price: ModelPrice


class ListPrices(Body, frozen=True):
    #: Also those that hold no more.
    history: bool = False


class ModelPrices(Body, frozen=True):
    prices: tuple[ModelPrice, ...]


class RevertRequest(Body, frozen=True):
    """For administrators: give a user back what one request cost, by reversing entries."""

    request_id: RequestId
    note: str = ""


class VerifyLedger(Body, frozen=True):
    """For administrators: sum up the entries since the last signed checkpoint, and compare."""

    #: Sum up every entry instead, and compare each closed day with its checkpoint. It may take minutes.
    full: bool = False


class LedgerReport(Body, frozen=True, omit_defaults=False):
    """All of it 0, or empty, where the books are right."""

    #: Sum over accounts of how far their entries are from their balance.
    drift_micro: MicroCredits
    #: What all entries sum up to; double entry keeps it at 0.
    sum_micro: MicroCredits
    #: How far the held amounts are from the open reservations.
    reserved_drift_micro: MicroCredits
    #: Open reservations whose lease ended more than a minute ago.
    overdue: int
    #: How much was looked at.
    accounts: int
    entries: int
    open_reservations: int
    #: One sentence for each thing that is wrong, for people; at most 20.
    findings: tuple[str, ...] = ()
    #: Checkpoints that are not as they were signed, or whose entries are not those of the day.
    broken_checkpoints: int = 0
    #: The last day that was taken from its checkpoint; None where every entry was summed up.
    closed_until: date | None = None


read_account = Method("gateway.readAccount", ReadAccount, Account, callers=PEOPLE)
top_up = Method("gateway.topUp", TopUp, Account, callers=PEOPLE)
set_price = Method("gateway.setPrice", SetPrice, ModelPrices, callers=PEOPLE)
list_prices = Method("gateway.listPrices", ListPrices, ModelPrices, callers=PEOPLE)
revert_request = Method("gateway.revertRequest", RevertRequest, Account, callers=PEOPLE)
verify_ledger = Method("gateway.verifyLedger", VerifyLedger, LedgerReport, callers={*PEOPLE, Role.METRICS})
