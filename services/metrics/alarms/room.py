"""The room of the alerts: the look at the rules, what is remembered of it, and everybody who is told what it finds."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from services.metrics.alarms.attendance import Attendance
from services.metrics.alarms.desk import News
from services.metrics.alarms.keeping import Keeper
from services.metrics.alarms.mailing import Mailing
from services.metrics.alarms.watch import Text, Watch
from services.metrics.alarms.webhook import Webhook
from services.metrics.history.room import keeps_of
from services.metrics.settings import MetricsSettings
from shared.api.gateway import Check
from shared.mail import postman
from shared.node.lifecycle import background

#: So long the first look waits for what was known before the start.
REMEMBERING_SECONDS: Final = 20.0


class Way(Protocol):
    """How alerts reach people who do not look at the pages."""

    def tell(self, news: News) -> None:
        """Keeps them until ``run`` has handed them on; bounded, and never waits."""
        ...

    async def run(self) -> None:
        """For ever: hand on what waits."""
        ...

    @property
    def waiting(self) -> int:
        """News that nobody has taken yet. Until there are none they count as not told, so that a restart loses none of them."""
        ...

    def check(self) -> Check:
        """Whether the last news were taken; the service can do without."""
        ...


class Alarms:
    """``watch`` has the handlers; ``run`` is the task."""

    def __init__(
        self, settings: MetricsSettings, node: str, text: Text, attendance: Attendance, clock: Callable[[], float] = time.time
    ) -> None:
        """``node`` is this one, ``text`` that of the whole mesh; ``attendance`` is kept over a restart, whoever looks for it."""
        self._url = settings.database_url
        self._ways = tuple(_ways(settings))
        self.watch = Watch(text, self._tell, clock, attendance)
        keeps = keeps_of(settings) if settings.history_raw_hours else None
        self._keeper = Keeper(self.watch, node, self._is_all_taken, clock, keeps)

    async def run(self) -> None:
        """For ever."""
        async with background() as tasks:
            for way in self._ways:
                tasks.create_task(way.run(), name=way.check().name)
            if self._url is not None:
                tasks.create_task(self._keeper.run(self._url), name="memory of alerts")
                await self._remember()
            await self.watch.run()

    async def checks(self) -> tuple[Check, ...]:
        """Without a DATABASE_URL everything is forgotten at a restart, and nobody complains."""
        memory = () if self._url is None else (self._keeper.check(),)
        return (*memory, self.watch.check(), *(way.check() for way in self._ways))

    async def _remember(self) -> None:
        try:
            async with asyncio.timeout(REMEMBERING_SECONDS):
                await self._keeper.resumed.wait()
        except TimeoutError:
            pass  # PostgreSQL is away, as the check says: alerts do not wait for it

    def _is_all_taken(self) -> bool:
        return not any(way.waiting for way in self._ways)

    def _tell(self, news: News) -> None:
        for way in self._ways:
            way.tell(news)


def _ways(settings: MetricsSettings) -> Iterator[Way]:
    """Raises BadSettings."""
    if settings.alert_webhook_url is not None:
        yield Webhook(settings.alert_webhook_url, settings.public_url)
    if settings.alert_mail_to:
        yield Mailing(postman.parse(settings.smtp_url, settings.mail_from), settings.alert_mail_to, settings.public_url)
