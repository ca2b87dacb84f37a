"""Names of plans, as people see them. Pure."""

from shared.types import PlanName


def name_of(tier: PlanName) -> PlanName:
    """Return the plan's name without its version, as in `pro@3`."""
    return tier.partition("@")[0]
