"""The settings of the metrics service."""

from typing import Annotated

from shared import node
from shared.config import Port, Variable


class MetricsSettings(node.NodeSettings, frozen=True, kw_only=True):
    port: Annotated[Port, Variable("METRICS_SERVICE_PORT", "where the service listens")] = 3004
    prometheus_port: Annotated[
        Port,
        Variable("PROMETHEUS_PORT", "a further port with the metrics of the whole mesh at /metrics; 0 turns it off"),
    ] = 9090
