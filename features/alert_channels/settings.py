"""The settings of channels of alerts."""

from collections.abc import Iterator
from typing import Annotated

from shared.config import Settings, Variable

#: Each address gets an email of its own.
MAX_MAILED = 5


class AlertChannelSettings(Settings, frozen=True, kw_only=True):
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

    def mistakes(self) -> Iterator[str]:
        yield from self._mistakes_of_mail()
        if self.alertmanager_url is not None and not self.alertmanager_url.startswith(("http://", "https://")):
            yield "ALERTMANAGER_URL: must be a URL such as http://127.0.0.1:9093"
        if self.alertmanager_url is not None and (self.alert_webhook_url is not None or self.alert_mail_to):
            yield "ALERTMANAGER_URL: Alertmanager sends the alerts, so unset ALERT_WEBHOOK_URL and ALERT_MAIL_TO"

    def _mistakes_of_mail(self) -> Iterator[str]:
        """Yield mistakes without quoting addresses, because they are logged."""
        from shared.mail import letters  # noqa: PLC0415 - the stack needs only the names

        for place, to in enumerate(self.alert_mail_to, start=1):
            if not letters.may_be_email(to):
                yield f"ALERT_MAIL_TO: number {place} is not an address such as ops@example.org; separate addresses with commas"
        if len(self.alert_mail_to) > MAX_MAILED:
            yield f"ALERT_MAIL_TO: {len(self.alert_mail_to)} addresses, at most {MAX_MAILED}; use a mailing list for more people"
        if self.alert_mail_to and self.smtp_url is None:
            yield "ALERT_MAIL_TO needs a mail server: set SMTP_URL=smtp://user:password@host:587, or unset ALERT_MAIL_TO"


#: Service -> what it reads.
SETTINGS = {"metrics": AlertChannelSettings}
