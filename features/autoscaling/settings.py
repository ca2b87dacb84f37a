"""The settings of autoscaling."""

from pathlib import Path
from typing import Annotated

from shared.config import Settings, Variable


class ScalingSettings(Settings, frozen=True, kw_only=True):
    #: The gateway has the same setting: requests wait for the workers of a pool.
    pools_file: Annotated[
        Path | None,
        Variable(
            "POOLS_FILE", "pools.yaml: the pools of workers that can grow and shrink; see docs/howto/autoscaling.md", on_all_replicas=True
        ),
    ] = None
    scale_webhook_secret: Annotated[
        str | None, Variable("SCALE_WEBHOOK_SECRET", "the key of the signature that a pool's webhook checks", secret=True)
    ] = None


#: Service -> what it reads.
SETTINGS = {"metrics": ScalingSettings}
