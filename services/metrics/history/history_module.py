"""Run the history: its RPC method, its connection to PostgreSQL, and its health checks."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from services.metrics.history import chart_lines, energy, query_plan, rollup
from services.metrics.history.history_store import FoundRows, HistoryStore
from services.metrics.history.history_writer import HistoryWriter
from services.metrics.settings import MetricsSettings
from shared import errors
from shared.api import metrics as api
from shared.api.gateway import Check
from shared.background.tasks import keep
from shared.node.lifecycle import background
from shared.rpc import RpcCall, serves
from shared.stores.replica_reads import DatabaseOptions, ReplicaPlan
from shared.stores.transactions import DatabaseReports
from shared.telemetry import logs

_log = logs.get(part="history")

AGAIN_SECONDS: Final = 5.0
_CHECK_SCHEMA_SECONDS: Final = 5.0
_DAY_SECONDS: Final = 24 * 3600


class HistoryModule:
    """The handlers, and ``run``, which fills the history. Without a DATABASE_URL there is no history."""

    def __init__(self, settings: MetricsSettings, text: Callable[[], Awaitable[str]], reports: DatabaseReports | None = None) -> None:
        self._url = settings.database_url if settings.history_raw_hours else None
        self._migrate = settings.migrate == "on"
        self._pool_size = settings.database_pool
        read_url = settings.database_read_url
        # Nobody reads what they have just written: the history is written by this service alone.
        replica = None if read_url is None else ReplicaPlan(read_url, settings.database_read_lag_seconds)
        self._options = DatabaseOptions(replica, reports)
        self._retention = retention_of(settings)
        self._writer = HistoryWriter(text, self._retention)
        self._store: HistoryStore | None = None
        self._trouble = ""

    async def check_schema(self, url: str | None) -> None:
        """Raises BadSettings if the schema is too old and MIGRATE=off. The service starts even if the database is down."""
        if url is not None and not self._migrate:
            with suppress(TimeoutError, errors.Unavailable):
                async with asyncio.timeout(_CHECK_SCHEMA_SECONDS), HistoryStore.open(url, migrate=False):
                    pass

    async def run(self) -> None:
        if self._url is None:
            return
        async with background() as tasks:
            tasks.create_task(keep("history samples", self._writer.sample_forever))
            await self._write_for_ever(self._url)

    async def checks(self) -> tuple[Check, ...]:
        if self._url is None:
            return ()
        if self._store is not None and not self._trouble:
            found = await self._store.check()
        else:
            found = Check("postgresql", ok=False, detail=self._trouble or "not connected yet")
        gap = "" if found.ok else f"{found.detail}; the history has a gap, and {self._writer.waiting} samples wait to be written"
        database = msgspec.structs.replace(found, detail=gap, needed=False)
        replica = () if self._store is None else self._store.check_replica()
        return database, *replica, self._writer.check()

    async def _write_for_ever(self, url: str) -> None:
        while True:
            try:
                async with HistoryStore.open(url, self._pool_size, migrate=self._migrate, options=self._options) as store:
                    self._store = store
                    await self._write_to(store)
            except (errors.Unavailable, errors.BadSettings) as error:
                self._set_trouble(f"{error.message} ({error.hint})")
            finally:
                self._store = None
            await asyncio.sleep(AGAIN_SECONDS)

    async def _write_to(self, store: HistoryStore) -> None:
        while True:
            try:
                await self._writer.keep(store)
            except errors.Unavailable as error:
                self._set_trouble(f"{error.message} ({error.hint})")
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            self._set_trouble("")
            await self._writer.wait()

    def _set_trouble(self, trouble: str) -> None:
        if trouble and not self._trouble:
            _log.warning("the history cannot be written", reason=trouble)
        elif self._trouble and not trouble:
            _log.info("the history is written again")
        self._trouble = trouble

    @serves(api.get_history)
    async def get_history(self, request: api.GetHistory, call: RpcCall) -> api.History:
        question = query_plan.read(request, datetime.now(UTC), self._retention)
        found = await self._find(question, request.by)
        drawn = chart_lines.draw(question, request.by, found.points, found.covered)
        return api.History(question.since, question.step_seconds, question.resolution, drawn)

    @serves(api.get_energy)
    async def get_energy(self, request: api.GetEnergy, call: RpcCall) -> api.Energy:
        wanted = api.GetHistory(energy.NAMES, request.since, request.until, _DAY_SECONDS)
        question = query_plan.read(wanted, datetime.now(UTC), self._retention)
        return api.Energy(energy.sum_up((await self._find(question, (api.HistoryGrouping.NODE,))).points))

    async def _find(self, question: query_plan.QueryPlan, by: tuple[api.HistoryGrouping, ...]) -> FoundRows:
        if self._url is None:
            hint = "set DATABASE_URL for the metrics service, and HISTORY_RAW_HOURS above 0"
            raise errors.NotFound("this mesh has no metrics history", hint=hint)
        if self._store is None:
            raise errors.Unavailable("the history cannot be read: PostgreSQL does not answer", hint="check `aicli stack status`")
        found = await self._store.lines(question, by, query_plan.MAX_POINTS + 1)
        if len(found.points) > query_plan.MAX_POINTS:
            hint = "request fewer names, or a longer stepSeconds"
            raise errors.BadRequest(f"the response would have more than {query_plan.MAX_POINTS} values", hint=hint)
        return found


def retention_of(settings: MetricsSettings) -> Mapping[int, timedelta]:
    """Return the retention of each resolution."""
    return {
        rollup.RAW: timedelta(hours=settings.history_raw_hours),
        rollup.MINUTE: timedelta(days=settings.history_minute_days),
        rollup.HOUR: timedelta(days=settings.history_hour_days),
    }
