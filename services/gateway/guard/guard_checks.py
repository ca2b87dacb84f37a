"""Checks the patterns and countries of guardrails. Pure."""

from collections.abc import Iterator

from services.gateway.guard import detectors, own_patterns
from shared.config_documents import GuardDocument


def check(guard: GuardDocument) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield the path of each mistake within the policy, and what is wrong."""
    for position, pattern in enumerate(guard.patterns):
        try:
            own_patterns.compile_pattern(pattern.pattern)
        except own_patterns.InvalidPattern as error:
            yield ("guard", "patterns", position, "pattern"), f"can't be used: {error}"
    for position, country in enumerate(guard.countries):
        if not detectors.knows_country(country):
            yield ("guard", "countries", position), "is not a country whose phone numbers or national numbers are known"
