"""The room of the alerts: the look at the rules, what is remembered of it, and everybody who is told what it finds."""

import time
from collections.abc import Callable, Iterator, Sequence

from services.metrics.alerting.alert_mailer import AlertMailer
from services.metrics.alerting.delivery import Delivery, Way
from services.metrics.alerting.persistence import AlertPersistence
from services.metrics.alerting.rule_watch import RuleWatch, Text
from services.metrics.alerting.webhook import Webhook
from services.metrics.alerting.worker_attendance import WorkerAttendance
from services.metrics.settings import MetricsSettings
from shared.api.gateway import Check
from shared.mail import mailer
from shared.node.lifecycle import background
from shared.types import NodeId


class AlertingModule:
    """``watch`` has the handlers; ``run`` is the task."""

    def __init__(
        self,
        settings: MetricsSettings,
        node: NodeId,
        text: Text,
        attendance: WorkerAttendance,
        *,
        replicas: Callable[[], Sequence[NodeId]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``node`` is this one, and ``replicas`` are those that may lead, without it this one alone; ``text`` is that of the whole mesh.
        ``attendance`` is kept over a restart. Raises BadSettings."""
        self._settings = settings
        self._url = settings.database_url
        self._delivery = Delivery(_ways(settings))
        self.watch = RuleWatch(text, clock, attendance)
        self._keeper = AlertPersistence(self.watch, node, replicas or (lambda: [node]), clock, has_database=self._url is not None)

    async def run(self) -> None:
        """For ever."""
        async with background() as tasks:
            if self._url is not None:
                tasks.create_task(self._keeper.keep_open(self._url), name="memory of alerts")
            while True:
                # What still waits when another replica takes over is that one's to tell.
                async with background() as ways:
                    for name, way in self._delivery.ways.items():
                        ways.create_task(way.run(), name=name)
                    await self._keeper.serve(self._delivery)
                self._delivery = Delivery(_ways(self._settings))

    async def checks(self) -> tuple[Check, ...]:
        """Without a DATABASE_URL everything is forgotten at a restart, and nobody complains."""
        memory = () if self._url is None else (self._keeper.check(),)
        return (*memory, self.watch.check(), *(way.check() for way in self._delivery.ways.values()))


def _ways(settings: MetricsSettings) -> Iterator[Way]:
    """Raises BadSettings."""
    if settings.alert_webhook_url is not None:
        yield Webhook(settings.alert_webhook_url, settings.public_url)
    if settings.alert_mail_to:
        yield AlertMailer(mailer.parse(settings.smtp_url, settings.mail_from), settings.alert_mail_to, settings.public_url)
