"""The RPC contract: every method of every service, declared once with its types and callers.

Clients, servers, the NATS micro endpoints and the RPC reference all use these declarations. ``api.auth`` loads its module on first use,
because a command of `aicli` needs one or two of them and has to start fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.api import (  # isort: skip
        accounts, alerts, audit, auth, billing, business, configuration, deferral, deployments, embedding, gateway,
        ledger, membership, metrics, model_search, model_trust, models, node, organizations, recovery, servers,
        usage_report,
    )  # fmt: skip

__all__ = [
    "accounts", "alerts", "audit", "auth", "billing", "business", "configuration", "deferral", "deployments", "embedding",
    "gateway", "ledger", "membership", "metrics", "model_search", "model_trust", "models", "node", "organizations", "recovery",
    "servers", "usage_report",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in __all__:
        return import_module(f"shared.api.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
