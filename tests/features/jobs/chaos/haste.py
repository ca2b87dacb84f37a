"""A gateway in a hurry with its leases of lines. See ``tests.chaos.hasty_gateway``."""

import os

from features.jobs.gateway import runner, store

#: How long its leases of lines are; all times of leases are shorter by the same factor.
LINE_LEASE = "HASTY_LINE_LEASE_SECONDS"


def hurry() -> None:
    if (lease := os.environ.get(LINE_LEASE)) is not None:
        factor = float(lease) / store.LEASE_SECONDS
        for module, name in ((store, "LEASE_SECONDS"), (runner, "EXTEND_SECONDS"), (runner, "LOST_SECONDS"), (runner, "_GRACE_SECONDS")):
            setattr(module, name, getattr(module, name) * factor)
