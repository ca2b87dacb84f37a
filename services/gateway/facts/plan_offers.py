"""The plans that accounts can have, and who sells them. Pure."""

from dataclasses import dataclass
from decimal import Decimal

from services.gateway.facts.tiers import TierPlan
from shared import currency, limits
from shared.api.billing import Party, Plan
from shared.types import MicroCredits


@dataclass(frozen=True, slots=True)
class PlanOffer:
    name: str
    version: int
    terms: TierPlan

    @property
    def versioned(self) -> str:
        """Return the name that keeps these terms."""
        return f"{self.name}@{self.version}"

    @property
    def fee_micro(self) -> MicroCredits | None:
        return self.terms.fee_micro

    @property
    def for_sale(self) -> bool:
        return self.terms.for_sale and self.terms.fee_micro is not None

    def shown(self, sold_in: str) -> Plan:
        terms = self.terms
        return Plan(
            self.name,
            self.version,
            None if terms.fee_micro is None else currency.minor(terms.fee_micro, sold_in),
            sold_in,
            terms.included_tokens,
            None if terms.overage_micro is None else currency.minor(terms.overage_micro, sold_in),
            tuple(f"{number:,} {kind.words}" for kind in limits.LIMITS if (number := kind.of(terms)) is not None),
            self.for_sale,
        )


_NOBODY = Party("")


@dataclass(frozen=True, slots=True)
class Seller:
    """From the settings SELLER_…, TAX_… and CURRENCY."""

    party: Party = _NOBODY
    tax_name: str = ""
    tax_percent: Decimal = Decimal(0)
    currency: str = "USD"

    def series(self, year: int) -> str:
        """Return what the numbers of a year begin with. Without a seller, invoices are tests."""
        return f"INV-{year}" if self.party.name else f"TEST-INV-{year}"
