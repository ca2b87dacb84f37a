"""A gateway in a hurry, so that a test needn't wait for what the product leaves time.

python -m tests.chaos.hasty_gateway

It is services.gateway, with what its settings HASTY_… say.
"""

import os
from functools import partial
from typing import Any

from services.gateway import __main__ as gateway
from services.gateway import background_jobs
from services.gateway.background_jobs import UpkeepJob
from services.gateway.payments import payment_provider
from tests import feature_parts

#: How often it works on bills. It waits no longer for the provider, the receiver of usage, and the gateway that exports.
BILLS = "HASTY_BILLS_SECONDS"


def main() -> None:
    for part in feature_parts.modules("chaos.haste"):
        part.hurry()
    if (bills := os.environ.get(BILLS)) is not None:
        background_jobs.repeat = partial(_repeat, float(bills), background_jobs.repeat)
        for module, name in ((payment_provider, "READ_SECONDS"), (payment_provider, "WRITE_SECONDS")):
            setattr(module, name, float(bills))
    gateway.main()


async def _repeat(bills_seconds: float, repeat: Any, job: UpkeepJob, seconds: float, *more: Any) -> None:
    await repeat(job, bills_seconds if job is UpkeepJob.BILLING else seconds, *more)


if __name__ == "__main__":
    main()
