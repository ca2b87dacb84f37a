"""Query the mesh for `aicli top`. Each source has its own deadline, and can fail while the others answer."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from cli.connection import CliConnection
from cli.top import readings
from cli.top.readings import MeshReadings, Numbers, SourceAnswer
from shared import errors
from shared.api import alerts, gateway, metrics
from shared.api.method import Method, Reply, Request
from shared.api.metrics import History, HistoryGrouping

T = TypeVar("T")

#: A later answer is no longer current.
_DEADLINE_SECONDS = 3.0
#: The metrics service polls every 15 s; at this interval, new data is shown soon.
_NUMBERS_SECONDS = 5.0
_STEP_SECONDS = 15
#: The time range before and after now: how far two machines' clocks may differ.
_AROUND = timedelta(minutes=3)


class Sources:
    """``clock`` returns monotonic seconds. Only one task may call ``look``."""

    def __init__(self, connection: CliConnection, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._clock = clock
        self._last = MeshReadings()

    async def look(self) -> MeshReadings:
        """Query all sources. Raises only NotAuthenticated and NotAllowed; the readings show which sources are silent."""
        last = self._last
        try:
            async with asyncio.TaskGroup() as tasks:
                health = tasks.create_task(
                    self._fetch(last.health, lambda: self._call(metrics.get_system_health, metrics.GetSystemHealth()))
                )
                firing = tasks.create_task(self._fetch(last.alerts, lambda: self._call(alerts.list_alerts, alerts.ListAlerts())))
                nodes = tasks.create_task(self._fetch(last.nodes, lambda: self._call(gateway.list_nodes, gateway.ListNodes())))
                numbers = tasks.create_task(self._fetch(last.numbers, self._numbers, seconds=_NUMBERS_SECONDS))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        self._last = MeshReadings(
            health=health.result(), alerts=self._aged(firing.result()), nodes=nodes.result(), numbers=numbers.result()
        )
        return self._last

    async def _fetch(self, last: SourceAnswer[T], fetch: Callable[[], Awaitable[T]], *, seconds: float = 0.0) -> SourceAnswer[T]:
        """Keep an answer that is younger than ``seconds``."""
        if last.answer is not None and not last.problem and self._clock() - last.at < seconds:
            return last
        try:
            answer = await fetch()
        except (errors.NotAuthenticated, errors.NotAllowed):
            raise
        except errors.AimeshError as error:
            return last.missed(error)
        return SourceAnswer(answer, self._clock())

    def _aged(self, answer: SourceAnswer[alerts.Alerts]) -> SourceAnswer[alerts.Alerts]:
        """Add the age of data that the metrics service itself read long ago."""
        if answer.problem is not None or answer.answer is None or answer.answer.as_of is None:
            return answer
        age_seconds = (datetime.now(UTC) - answer.answer.as_of).total_seconds()
        problem = errors.Unavailable("the metrics service cannot read PostgreSQL", hint="see `aicli stack status`")
        return SourceAnswer(answer.answer, self._clock() - age_seconds, problem)

    async def _numbers(self) -> Numbers:
        now = datetime.now(UTC)
        try:
            async with asyncio.TaskGroup() as tasks:
                calls = [tasks.create_task(self._history(now, names, by)) for names, by in readings.QUESTIONS]
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        answers = [call.result() for call in calls]
        refused = [answer for answer in answers if isinstance(answer, errors.BadRequest)]
        if len(refused) == len(answers):
            raise refused[0]
        return readings.numbers([answer for answer in answers if isinstance(answer, History)])

    async def _history(self, now: datetime, names: Sequence[str], by: Sequence[HistoryGrouping]) -> History | errors.BadRequest:
        """Return BadRequest instead of raising it: if a mesh has too many nodes for one query, the others are still shown."""
        try:
            return await self._call(
                metrics.get_history, metrics.GetHistory(tuple(names), now - _AROUND, now + _AROUND, _STEP_SECONDS, tuple(by))
            )
        except errors.BadRequest as error:
            return error

    async def _call(self, method: Method[Request, Reply], request: Request) -> Reply:
        return await self._connection.call(method, request, deadline_seconds=_DEADLINE_SECONDS)
