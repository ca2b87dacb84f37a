"""The settings of the metrics service."""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from services.metrics.export.otlp import otlp_endpoint
from shared import node
from shared.config import Port, Variable
from shared.mail import email_address

#: An hour of mails to all of them finds room where mails wait for a mail server that is away.
MOST_MAILED = 5


class MetricsSettings(node.NodeSettings, frozen=True, kw_only=True):
    port: Annotated[Port, Variable("METRICS_SERVICE_PORT", "where the service listens")] = 3004
    prometheus_port: Annotated[
        Port,
        Variable("PROMETHEUS_PORT", "a further port with the metrics of the whole mesh at /metrics; 0 turns it off"),
    ] = 9090
    database_url: Annotated[
        str | None,
        Variable(
            "DATABASE_URL",
            "PostgreSQL, for the history and what is known of alerts; without it there is no history, and alerts forget at a restart",
            secret=True,
            override="METRICS_DATABASE_URL",
        ),
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
    alert_mail_to: Annotated[
        tuple[str, ...], Variable("ALERT_MAIL_TO", "who gets alerts by mail: addresses with commas, at most 5; without it nobody")
    ] = ()
    smtp_url: Annotated[
        str | None,
        Variable("SMTP_URL", "where mail about alerts goes: smtp://user:password@host:587 (STARTTLS) or smtps://…:465", secret=True),
    ] = None
    mail_from: Annotated[str, Variable("MAIL_FROM", "the sender of mails")] = "aimesh <noreply@localhost>"
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
        yield from self._mistakes_of_mail()
        for namespace in self.metrics_namespaces:
            if not namespace.isidentifier() or not namespace.isascii() or "ai_platform".startswith(namespace):
                yield f"METRICS_NAMESPACES: {namespace[:40]!r} is no word of letters, digits and _ of its own, such as my_company"
        try:
            otlp_endpoint.read_headers(self.otlp_headers or "")
        except ValueError as error:
            yield f"OTEL_EXPORTER_OTLP_HEADERS: {error}"

    def _mistakes_of_mail(self) -> Iterator[str]:
        """No address is quoted: what is said here stands in the log."""
        for place, to in enumerate(self.alert_mail_to, start=1):
            if not email_address.may_be_email(to):
                yield f"ALERT_MAIL_TO: number {place} is no address such as ops@example.org; say them with commas between"
        if len(self.alert_mail_to) > MOST_MAILED:
            yield f"ALERT_MAIL_TO: {len(self.alert_mail_to)} addresses, at most {MOST_MAILED}; more people are a list of your mail server's"
        if self.alert_mail_to and self.smtp_url is None:
            yield "ALERT_MAIL_TO needs a mail server: say SMTP_URL=smtp://user:password@host:587, or take ALERT_MAIL_TO away"
