"""Logs, metrics and traces of a node.

``telemetry.logs`` is cheap to import. ``Metrics`` loads prometheus_client on first use, because `aicli` imports this package and has
0.6 s from its start to the first token.
"""

from typing import TYPE_CHECKING

from shared.telemetry import logs

if TYPE_CHECKING:
    from shared.telemetry.metrics_registry import Metrics

__all__ = ["Metrics", "logs"]


def __getattr__(name: str) -> object:
    if name == "Metrics":
        from shared.telemetry.metrics_registry import Metrics  # noqa: PLC0415 - see the module's docstring

        return Metrics
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
