"""Logs and metrics, set up once per process and per node.

``telemetry.logs`` is cheap to import. ``Metrics`` and ``reference`` load prometheus_client when they are first used,
because `aicli` imports the mesh and has 0.6 s from its start to the first token.
"""

from typing import TYPE_CHECKING

from shared.telemetry import instruments, logs

if TYPE_CHECKING:
    from shared.telemetry.metrics_registry import Metrics

__all__ = ["Metrics", "instruments", "logs", "reference"]


def reference() -> str:
    """The content of docs/reference/metrics.md, made from the instrument list."""
    return instruments.reference()


def __getattr__(name: str) -> object:
    if name == "Metrics":
        from shared.telemetry.metrics_registry import Metrics  # noqa: PLC0415 - see the module's docstring

        return Metrics
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
