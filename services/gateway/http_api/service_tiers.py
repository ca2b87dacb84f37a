"""The vendors' words for how soon a request runs."""

FLEX, DEFAULT = "flex", "default"


def wants_flex(service_tier: str | None) -> bool | None:
    """Return None where the caller's key, plan and policies decide. The vendors' faster tiers are live requests here."""
    return None if service_tier in (None, "auto") else service_tier == FLEX
