"""The requests of the access matrix for the check of models."""

from collections.abc import Callable
from typing import Any

from features.model_check import contract

REQUESTS: dict[str, Callable[[], Any]] = {
    "gateway.findModelBuilds": lambda: contract.FindModelBuilds("none"),
    "gateway.recordModelCheck": lambda: contract.RecordModelCheck("none", ("none",), 0),
}
BODIES: dict[str, Callable[[], Any]] = {}
