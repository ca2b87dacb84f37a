"""Wire up alerting: evaluation, persistence and delivery."""

import time
from collections.abc import Callable, Iterator, Sequence

from services.metrics.alerting.alert_mailer import AlertMailer
from services.metrics.alerting.delivery import Delivery, NotificationChannel
from services.metrics.alerting.persistence import AlertPersistence, LeaderDuty
from services.metrics.alerting.rule_watch import RuleWatch, Text
from services.metrics.alerting.webhook import Webhook
from services.metrics.alerting.worker_attendance import WorkerAttendance
from services.metrics.settings import MetricsSettings
from shared.api.gateway import Check
from shared.mail import mailer
from shared.node.lifecycle import background
from shared.types import NodeId


class AlertingModule:
    """``watch`` has the handlers; ``run`` is the background task."""

    def __init__(
        self,
        settings: MetricsSettings,
        node: NodeId,
        text: Text,
        attendance: WorkerAttendance,
        *,
        replicas: Callable[[], Sequence[NodeId]] | None = None,
        clock: Callable[[], float] = time.time,
        duty: LeaderDuty | None = None,
    ) -> None:
        """``replicas`` returns the nodes that may lead (default: this one). ``text`` returns the metrics of the whole mesh. The leader
        also does the ``duty``.

        Raises BadSettings.
        """
        self._settings = settings
        self._url = settings.database_url
        self._delivery = Delivery(_channels(settings))
        self.watch = RuleWatch(text, clock, attendance)
        self._persistence = AlertPersistence(
            self.watch, node, replicas or (lambda: [node]), clock, has_database=self._url is not None, duty=duty
        )

    async def run(self) -> None:
        async with background() as tasks:
            if self._url is not None:
                tasks.create_task(self._persistence.keep_open(self._url, migrate=self._settings.migrate == "on"), name="alert state")
            while True:
                # If another replica takes over, it sends what is still waiting.
                async with background() as channels:
                    for name, channel in self._delivery.channels.items():
                        channels.create_task(channel.run(), name=name)
                    await self._persistence.serve(self._delivery)
                self._delivery = Delivery(_channels(self._settings))

    async def checks(self) -> tuple[Check, ...]:
        memory = () if self._url is None else (self._persistence.check(),)
        return (*memory, self.watch.check(), *(channel.check() for channel in self._delivery.channels.values()))


def _channels(settings: MetricsSettings) -> Iterator[NotificationChannel]:
    if settings.alert_webhook_url is not None:
        yield Webhook(settings.alert_webhook_url, settings.public_url)
    if settings.alert_mail_to:
        yield AlertMailer(mailer.parse(settings.smtp_url, settings.mail_from), settings.alert_mail_to, settings.public_url)
