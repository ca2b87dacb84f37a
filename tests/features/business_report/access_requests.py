"""The requests of the access matrix for statements."""

from collections.abc import Callable
from typing import Any

from features.business_report import contract

REQUESTS: dict[str, Callable[[], Any]] = {"gateway.getOwnerStatements": lambda: contract.GetOwnerStatements("2026-03")}
BODIES: dict[str, Callable[[], Any]] = {}
