"""A gateway whose leases of lines are as short as LINE_LEASE_SECONDS says, so that a test needn't wait for those of a lost gateway.

python -m tests.chaos.hasty_gateway

It is services.gateway; all times of leases are shorter by the same factor.
"""

import os

from services.gateway import __main__ as gateway
from services.gateway.jobs import job_store, runner

SECONDS = "LINE_LEASE_SECONDS"


def main() -> None:
    factor = float(os.environ[SECONDS]) / job_store.LEASE_SECONDS
    for module, name in ((job_store, "LEASE_SECONDS"), (runner, "EXTEND_SECONDS"), (runner, "LOST_SECONDS"), (runner, "_GRACE_SECONDS")):
        setattr(module, name, getattr(module, name) * factor)
    gateway.main()


if __name__ == "__main__":
    main()
