"""The settings of the metrics service."""

from collections.abc import Iterator
from typing import Annotated

from services.metrics.traces import endpoint
from shared import node
from shared.config import Port, Variable


class MetricsSettings(node.NodeSettings, frozen=True, kw_only=True):
    port: Annotated[Port, Variable("METRICS_SERVICE_PORT", "where the service listens")] = 3004
    prometheus_port: Annotated[
        Port,
        Variable("PROMETHEUS_PORT", "a further port with the metrics of the whole mesh at /metrics; 0 turns it off"),
    ] = 9090
    otlp_endpoint: Annotated[
        str,
        Variable(
            "OTEL_EXPORTER_OTLP_ENDPOINT", "where traces go by OTLP over HTTP, such as http://jaeger:4318; empty: they are kept here alone"
        ),
    ] = ""
    otlp_headers: Annotated[
        str | None,
        Variable("OTEL_EXPORTER_OTLP_HEADERS", "headers for it as name=value with commas, such as a token", secret=True),
    ] = None

    def mistakes(self) -> Iterator[str]:
        yield from super().mistakes()
        if self.otlp_endpoint and not self.otlp_endpoint.startswith(("http://", "https://")):
            yield "OTEL_EXPORTER_OTLP_ENDPOINT: an address such as http://127.0.0.1:4318 is needed"
        try:
            endpoint.read_headers(self.otlp_headers or "")
        except ValueError as error:
            yield f"OTEL_EXPORTER_OTLP_HEADERS: {error}"
