"""Define the settings of the metrics service."""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from services.metrics.export import otlp_endpoint
from shared import node
from shared.config import Port, Variable
from shared.mail import letters
from shared.node.settings import READ_URL, Migrate, ReadLagSeconds

#: Each address gets an email of its own.
MOST_MAILED = 5


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
    alert_webhook_url: Annotated[
        str | None,
        Variable(
            "ALERT_WEBHOOK_URL",
            "the URL that receives alerts in the format of Alertmanager's webhook (version 4)",
            secret=True,
            on_all_replicas=True,
        ),
    ] = None
    alert_mail_to: Annotated[
        tuple[str, ...], Variable("ALERT_MAIL_TO", "email addresses that get alerts: at most 5, separated by commas", on_all_replicas=True)
    ] = ()
    alertmanager_url: Annotated[
        str | None,
        Variable(
            "ALERTMANAGER_URL",
            "Alertmanager's address: its alerts are listed and silenced, and the metrics service itself sends none",
            on_all_replicas=True,
        ),
    ] = None
    smtp_url: Annotated[
        str | None,
        Variable(
            "SMTP_URL",
            "the mail server for alerts: smtp://user:password@host:587 (STARTTLS) or smtps://…:465",
            secret=True,
            on_all_replicas=True,
        ),
    ] = None
    mail_from: Annotated[str, Variable("MAIL_FROM", "the sender of emails")] = "aimesh <noreply@localhost>"
    public_url: Annotated[str, Variable("PUBLIC_URL", "the URL of the web pages; alerts link to it")] = ""
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
        yield from self._mistakes_of_mail()
        if self.alertmanager_url is not None and not self.alertmanager_url.startswith(("http://", "https://")):
            yield "ALERTMANAGER_URL: must be a URL such as http://127.0.0.1:9093"
        if self.alertmanager_url is not None and (self.alert_webhook_url is not None or self.alert_mail_to):
            yield "ALERTMANAGER_URL: Alertmanager sends the alerts, so unset ALERT_WEBHOOK_URL and ALERT_MAIL_TO"
        for namespace in self.metrics_namespaces:
            if not namespace.isidentifier() or not namespace.isascii() or "ai_platform".startswith(namespace):
                yield f"METRICS_NAMESPACES: {namespace[:40]!r} is not a valid prefix; use letters, digits and _, such as my_company"
        try:
            otlp_endpoint.read_headers(self.otlp_headers or "")
        except ValueError as error:
            yield f"OTEL_EXPORTER_OTLP_HEADERS: {error}"

    def _mistakes_of_mail(self) -> Iterator[str]:
        """Yield mistakes without quoting addresses, because they are logged."""
        for place, to in enumerate(self.alert_mail_to, start=1):
            if not letters.may_be_email(to):
                yield f"ALERT_MAIL_TO: number {place} is not an address such as ops@example.org; separate addresses with commas"
        if len(self.alert_mail_to) > MOST_MAILED:
            yield f"ALERT_MAIL_TO: {len(self.alert_mail_to)} addresses, at most {MOST_MAILED}; use a mailing list for more people"
        if self.alert_mail_to and self.smtp_url is None:
            yield "ALERT_MAIL_TO needs a mail server: set SMTP_URL=smtp://user:password@host:587, or unset ALERT_MAIL_TO"
