"""Define the settings of the metrics service."""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from services.metrics.export import otlp_endpoint
from shared import node
from shared.config import Port, Variable
from shared.node.settings import READ_URL, Migrate, ReadLagSeconds


class MetricsSettings(node.NodeSettings, frozen=True, kw_only=True):
    SERVICE = "metrics"
    port: Annotated[Port, Variable("METRICS_SERVICE_PORT", "the port of the metrics service")] = 3004
    prometheus_port: Annotated[
        Port, Variable("PROMETHEUS_PORT", "a separate port that serves the metrics of the whole mesh at /metrics; 0 disables it")
    ] = 9090
    database_url: Annotated[
        str | None,
        Variable(
            "DATABASE_URL",
            "PostgreSQL, for the history and the state of alerts; without it there is no history, and alert state is lost at a restart",
            secret=True,
            override="METRICS_DATABASE_URL",
            on_all_replicas=True,
        ),
    ] = None
    database_read_url: Annotated[str | None, Variable("DATABASE_READ_URL", READ_URL, secret=True, override="METRICS_DATABASE_READ_URL")] = (
        None
    )
    database_read_lag_seconds: ReadLagSeconds = 10.0
    migrate: Migrate = "on"
    database_pool: Annotated[
        int, Meta(ge=1, le=100), Variable("DATABASE_POOL", "maximum connections to PostgreSQL per replica; 2 more for alerts")
    ] = 10
    history_raw_hours: Annotated[
        int, Meta(ge=0, le=24 * 30), Variable("HISTORY_RAW_HOURS", "how many hours to keep the history every 15 s; 0 disables the history")
    ] = 24
    history_minute_days: Annotated[
        int, Meta(ge=1, le=3650), Variable("HISTORY_MINUTE_DAYS", "how many days to keep the history every minute")
    ] = 7
    history_hour_days: Annotated[
        int, Meta(ge=1, le=36500), Variable("HISTORY_HOUR_DAYS", "how many days to keep the history every hour")
    ] = 730
    metrics_namespaces: Annotated[
        tuple[str, ...], Variable("METRICS_NAMESPACES", "prefixes of metric names that recordMetric accepts, separated by commas")
    ] = ("custom",)
    otlp_endpoint: Annotated[
        str,
        Variable("OTEL_EXPORTER_OTLP_ENDPOINT", "the URL that receives traces and logs by OTLP over HTTP, such as http://collector:4318"),
    ] = ""
    otlp_headers: Annotated[
        str | None,
        Variable("OTEL_EXPORTER_OTLP_HEADERS", "headers for the OTLP endpoint, such as a token: name=value,name=value", secret=True),
    ] = None

    def mistakes(self) -> Iterator[str]:
        yield from super().mistakes()
        if self.otlp_endpoint and not self.otlp_endpoint.startswith(("http://", "https://")):
            yield "OTEL_EXPORTER_OTLP_ENDPOINT: must be a URL such as http://127.0.0.1:4318"
        for namespace in self.metrics_namespaces:
            if not namespace.isidentifier() or not namespace.isascii() or "ai_platform".startswith(namespace):
                yield f"METRICS_NAMESPACES: {namespace[:40]!r} is not a valid prefix; use letters, digits and _, such as my_company"
        try:
            otlp_endpoint.read_headers(self.otlp_headers or "")
        except ValueError as error:
            yield f"OTEL_EXPORTER_OTLP_HEADERS: {error}"
