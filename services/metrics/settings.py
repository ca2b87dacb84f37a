"""The settings of the metrics service."""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from services.metrics.otlp import endpoint
from shared import node
from shared.config import Port, Variable


class MetricsSettings(node.NodeSettings, frozen=True, kw_only=True):
    port: Annotated[Port, Variable("METRICS_SERVICE_PORT", "where the service listens")] = 3004
    prometheus_port: Annotated[
        Port,
        Variable("PROMETHEUS_PORT", "a further port with the metrics of the whole mesh at /metrics; 0 turns it off"),
    ] = 9090
    database_url: Annotated[
        str | None,
        Variable("DATABASE_URL", "PostgreSQL, for the history; without it there is none", secret=True, override="METRICS_DATABASE_URL"),
    ] = None
    history_raw_hours: Annotated[
        int, Meta(ge=0, le=24 * 30), Variable("HISTORY_RAW_HOURS", "hours that the history has every 15 s; 0 turns the history off")
    ] = 24
    history_minute_days: Annotated[int, Meta(ge=1, le=3650), Variable("HISTORY_MINUTE_DAYS", "days that it has every minute")] = 7
    history_hour_days: Annotated[int, Meta(ge=1, le=36500), Variable("HISTORY_HOUR_DAYS", "days that it has every hour")] = 730
    metrics_namespaces: Annotated[
        tuple[str, ...],
        Variable("METRICS_NAMESPACES", "first words of the names that recordMetric takes besides the platform's own, with commas"),
    ] = ("custom",)
    alert_webhook_url: Annotated[
        str | None,
        Variable(
            "ALERT_WEBHOOK_URL", "where alerts are told, as Alertmanager's webhook (version 4) tells them; without it nowhere", secret=True
        ),
    ] = None
    public_url: Annotated[str, Variable("PUBLIC_URL", "where people reach the web pages; alerts link to it")] = ""
    otlp_endpoint: Annotated[
        str,
        Variable(
            "OTEL_EXPORTER_OTLP_ENDPOINT", "where traces and logs go by OTLP over HTTP, such as http://collector:4318; empty: nowhere"
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
        for namespace in self.metrics_namespaces:
            if not namespace.isidentifier() or not namespace.isascii() or "ai_platform".startswith(namespace):
                yield f"METRICS_NAMESPACES: {namespace[:40]!r} is no word of letters, digits and _ of its own, such as my_company"
        try:
            endpoint.read_headers(self.otlp_headers or "")
        except ValueError as error:
            yield f"OTEL_EXPORTER_OTLP_HEADERS: {error}"
