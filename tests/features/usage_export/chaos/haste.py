"""A gateway in a hurry with the usage export. See ``tests.chaos.hasty_gateway``."""

import os

from features.usage_export.gateway import export
from shared.timing.backoff import Backoff


def hurry() -> None:
    if (bills := os.environ.get("HASTY_BILLS_SECONDS")) is not None:
        export.ELECTION_SECONDS = float(bills)
        export.BACKOFF = Backoff(first_seconds=0.1, longest_seconds=float(bills))
