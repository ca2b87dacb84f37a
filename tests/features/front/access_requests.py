"""The request of the access matrix for the names of a machine's models."""

from collections.abc import Callable
from typing import Any

from features.front import contract

REQUESTS: dict[str, Callable[[], Any]] = {"gateway.nameModels": lambda: contract.NameModels("box", ())}
BODIES: dict[str, Callable[[], Any]] = {}
