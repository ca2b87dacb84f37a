"""gateway: accounts, prices, top-ups and verification of the ledger.

Amounts are whole micro-credits: 1 credit is 1,000,000 of them. The operator decides what a credit is worth.
"""

from datetime import date, datetime

from shared.api.method import PEOPLE, Body, Method
from shared.types import MicroCredits, ModelName, RequestId, Role, UserId

MICRO = 1_000_000


class Account(Body, frozen=True, omit_defaults=False):
    """What one user or organization can spend."""

    #: Left of the tier's monthly credits.
    included_micro: MicroCredits
    #: Topped-up credits; negative if a correction took more than there was.
    balance_micro: MicroCredits
    #: Held by running requests.
    reserved_micro: MicroCredits
    #: The tier's monthly credits; None is unlimited.
    monthly_micro: MicroCredits | None
    #: When the monthly credits are renewed. Unused ones are lost.
    renews_at: datetime
    #: False: it is done, but the recovery log on disk lacks it for now.
    logged: bool = True

    @property
    def free_micro(self) -> int:
        """Return how much a new request may cost."""
        return self.included_micro + self.balance_micro - self.reserved_micro


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
    #: When the price took effect. A request pays the price at its admission.
    since: datetime | None = None


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
    #: The last day that was taken from its checkpoint; None if every entry was added up.
    closed_until: date | None = None


read_account = Method("gateway.readAccount", ReadAccount, Account, callers=PEOPLE)
top_up = Method("gateway.topUp", TopUp, Account, callers=PEOPLE)
set_price = Method("gateway.setPrice", SetPrice, ModelPrices, callers=PEOPLE)
list_prices = Method("gateway.listPrices", ListPrices, ModelPrices, callers=PEOPLE)
revert_request = Method("gateway.revertRequest", RevertRequest, Account, callers=PEOPLE)
verify_ledger = Method("gateway.verifyLedger", VerifyLedger, LedgerReport, callers={*PEOPLE, Role.METRICS})
