"""The plans that accounts can have. Pure."""

from dataclasses import dataclass

from services.gateway.facts.tiers import TierPlan
from shared import currency, limits
from shared.api.billing import Plan
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

    def fee_minor(self, sold_in: str) -> int:
        return 0 if self.terms.fee_micro is None else currency.minor(self.terms.fee_micro, sold_in)

    def shown(self, sold_in: str) -> Plan:
        terms = self.terms
        return Plan(
            self.name,
            self.version,
            None if terms.fee_micro is None else self.fee_minor(sold_in),
            sold_in,
            terms.included_tokens,
            None if terms.overage_micro is None else currency.minor(terms.overage_micro, sold_in),
            tuple(limits.in_words(terms)),
            self.for_sale,
        )
