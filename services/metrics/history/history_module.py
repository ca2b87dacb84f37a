"""The room of the history: its RPC method, its life beside PostgreSQL that may come and go, and how it is."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from services.metrics.history import chart_lines, query_plan, rollup
from services.metrics.history.history_store import HistoryStore
from services.metrics.history.history_writer import HistoryWriter
from services.metrics.settings import MetricsSettings
from shared import errors
from shared.api import metrics as api
from shared.api.gateway import Check
from shared.node.lifecycle import background
from shared.rpc import RpcCall, serves
from shared.telemetry import logs

_log = logs.get(part="history")

#: After which PostgreSQL is tried again.
AGAIN_SECONDS: Final = 5.0


class HistoryModule:
    """Handlers; ``run`` fills what they read. Without a DATABASE_URL there is no history, and nobody complains."""

    def __init__(self, settings: MetricsSettings, text: Callable[[], Awaitable[str]]) -> None:
        self._url = settings.database_url if settings.history_raw_hours else None
        self._keeps = keeps_of(settings)
        self._keeper = HistoryWriter(text, self._keeps)
        self._store: HistoryStore | None = None
        #: Why nothing can be written; empty while it can.
        self._trouble = ""

    async def run(self) -> None:
        """For ever."""
        if self._url is None:
            return
        async with background() as tasks:
            tasks.create_task(self._keeper.look_for_ever(), name="history looks")
            await self._write_for_ever(self._url)

    async def checks(self) -> tuple[Check, ...]:
        """The service can do without PostgreSQL."""
        if self._url is None:
            return ()
        if self._store is not None and not self._trouble:
            found = await self._store.check()
        else:
            found = Check("postgresql", ok=False, detail=self._trouble or "not connected yet")
        gap = "" if found.ok else f"{found.detail}; the history has a gap, {self._keeper.waiting} looks wait to be written"
        database = msgspec.structs.replace(found, detail=gap, needed=False)
        return database, self._keeper.check()

    async def _write_for_ever(self, url: str) -> None:
        while True:
            try:
                async with HistoryStore.open(url) as store:
                    self._store = store
                    await self._write_to(store)
            except (errors.Unavailable, errors.BadSettings) as error:
                self._say(f"{error.message} ({error.hint})")
            finally:
                self._store = None
            await asyncio.sleep(AGAIN_SECONDS)

    async def _write_to(self, store: HistoryStore) -> None:
        while True:
            try:
                await self._keeper.keep(store)
            except errors.Unavailable as error:
                self._say(f"{error.message} ({error.hint})")
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            self._say("")
            await self._keeper.wait()

    def _say(self, trouble: str) -> None:
        """Once for each change."""
        if trouble and not self._trouble:
            _log.warning("the history is not written", reason=trouble)
        elif self._trouble and not trouble:
            _log.info("the history is written again")
        self._trouble = trouble

    @serves(api.get_history)
    async def get_history(self, request: api.GetHistory, call: RpcCall) -> api.History:
        question = query_plan.read(request, datetime.now(UTC), self._keeps)
        if self._url is None:
            hint = "give the metrics service a DATABASE_URL, and HISTORY_RAW_HOURS above 0"
            raise errors.NotFound("this mesh keeps no history of its metrics", hint=hint)
        if self._store is None:
            raise errors.Unavailable("the history cannot be read: PostgreSQL does not answer", hint="see `aicli stack status`")
        found = await self._store.lines(question, request.by, query_plan.MOST_POINTS + 1)
        if len(found.points) > query_plan.MOST_POINTS:
            hint = "ask for fewer names, or a longer stepSeconds"
            raise errors.BadRequest(f"that would be over {query_plan.MOST_POINTS} numbers", hint=hint)
        drawn = chart_lines.draw(question, request.by, found.points, found.covered)
        return api.History(question.since, question.step_seconds, question.resolution, drawn)


def keeps_of(settings: MetricsSettings) -> Mapping[int, timedelta]:
    """How long rows of each resolution live."""
    return {
        rollup.RAW: timedelta(hours=settings.history_raw_hours),
        rollup.MINUTE: timedelta(days=settings.history_minute_days),
        rollup.HOUR: timedelta(days=settings.history_hour_days),
    }
