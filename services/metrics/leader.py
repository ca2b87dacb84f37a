"""Elect the leader of the metrics services, which alone sends alerts and changes pools.

The leader holds a lock in PostgreSQL and saves its state there; the other replicas show that. Before it acts, it writes in the session
that holds the lock, so a replica that lost the lock fails there and does nothing. While PostgreSQL is down, the last leader continues in
memory.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Final, Protocol

from services.metrics import leader_state
from services.metrics.leader_state import Database, Leadership, State
from shared import errors
from shared.api.gateway import Check
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems
from shared.background.tasks import keep
from shared.node.lifecycle import background
from shared.telemetry import logs
from shared.timing.bounded_waits import wait_until_set
from shared.types import NodeId

#: How often to try or confirm the lock, and to read what other replicas wrote.
EVERY_SECONDS: Final = 2.0
#: After PostgreSQL comes back, other replicas leave the lock to the last leader, whose state is newer, for this time.
_GRACE_SECONDS: Final = 5.0
_AGAIN_SECONDS: Final = 1.0
#: How long a new process waits for PostgreSQL before it leads without it.
REMEMBERING_SECONDS: Final = 20.0
_NOT_YET: Final = "not connected yet"

_log = logs.get(part="leader")


class LeaderDuty(Protocol):
    """What only the leader does."""

    async def round(self, session: Leadership | None, database: Database | None, *, leads: bool) -> None:
        """Take part in a round, quickly. ``session`` and ``database`` are None without PostgreSQL. May raise Unavailable if there is a
        session, which then ends."""
        ...


class Leader:
    """``replicas`` returns the live replicas that may lead, in order; ``node`` is this one."""

    def __init__(
        self,
        node: NodeId,
        replicas: Callable[[], Sequence[NodeId]],
        duties: Sequence[LeaderDuty],
        *,
        items: BackgroundItems,
        url: str | None = None,
        migrate: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._node = node
        self._replicas = replicas
        self._duties = duties
        self._items = items
        self._url = url
        self._migrate = migrate
        self._clock = clock
        self._own = f"{node}/{secrets.token_hex(8)}"
        self._leader = ""
        self._began_at = clock()
        self.leads = False
        #: None until PostgreSQL was opened once.
        self.database: Database | None = None
        #: Ends the pause before the next round.
        self.changed = asyncio.Event()
        self._session_at = time.monotonic()
        self._trouble = _NOT_YET

    def checks(self) -> tuple[Check, ...]:
        if self._url is None:
            return ()
        lost = "nobody can silence an alert, and a restart would lose what was sent"
        return (Check("alerts", ok=not self._trouble, detail=f"{self._trouble}; {lost}" if self._trouble else "", needed=False),)

    async def run(self) -> None:
        async with background() as tasks:
            if self._url is not None:
                tasks.create_task(keep("leader's database", partial(self._keep_open, self._url)))
            while True:
                await self._serve()

    async def _keep_open(self, url: str) -> None:
        """Keep PostgreSQL open, and retry while it is down."""
        while True:
            try:
                async with leader_state.open_database(url, migrate=self._migrate) as self.database:
                    await asyncio.Event().wait()
            except (errors.Unavailable, errors.BadSettings) as error:
                self._set_trouble(f"{error.message} ({error.hint})")
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _serve(self) -> None:
        """Run rounds until the session breaks."""
        has_answered = False
        try:
            async with self._session() as session:
                while True:
                    await self.round(session)
                    has_answered = True
                    self._set_trouble("")
                    await wait_until_set(self.changed, EVERY_SECONDS)
        except errors.Unavailable as error:
            self._set_trouble(f"{error.message} ({error.hint})")
        # If a working session broke, try to reconnect first: another replica may have the lock.
        if not has_answered:
            await self.round(None)
            await wait_until_set(self.changed, EVERY_SECONDS)

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[Leadership | None]:
        self._session_at = time.monotonic()
        if self._url is None:
            yield None
        elif self.database is None:
            raise errors.Unavailable("PostgreSQL does not answer", hint="check that it is running and that DATABASE_URL is right")
        else:
            async with self.database.leadership("alerts") as session:
                yield session

    async def round(self, session: Leadership | None) -> None:
        """Do one round; without PostgreSQL if ``session`` is None."""
        self.changed.clear()
        led, self.leads = self.leads, await self._lead(session)
        if led != self.leads:
            _log.info("became leader" if self.leads else "no longer leader", database=session is not None)
        database = None if session is None else self.database
        do = lambda duty: duty.round(session, database, leads=self.leads)  # noqa: E731
        await self._items.each(ItemKind.DUTY, self._duties, do, lambda duty: type(duty).__name__)

    async def _lead(self, session: Leadership | None) -> bool:
        """Return whether this replica leads now."""
        replicas = self._replicas()
        if self._url is None:
            return replicas[:1] == [self._node]
        if session is None:
            return self._may_lead_alone(replicas)
        assert self.database is not None  # it opened the session
        leader = (await leader_state.read(self.database, State.LEADER) or b"").decode()
        is_early = time.monotonic() - self._session_at < _GRACE_SECONDS and self._is_another(leader, replicas)
        leads = not is_early and await session.take()
        if leads and leader != self._own:
            await leader_state.write(session, State.LEADER, self._own.encode(), self._clock())
            leader = self._own
        self._leader = leader
        return leads

    def _may_lead_alone(self, replicas: Sequence[NodeId]) -> bool:
        """Without PostgreSQL, return whether this is the last leader, or the first replica if there is no leader."""
        if self._leader == self._own or self._is_another(self._leader, replicas):
            return self._leader == self._own
        has_waited = self._leader != "" or self._clock() - self._began_at >= REMEMBERING_SECONDS
        return has_waited and replicas[:1] == [self._node]

    def _is_another(self, leader: str, replicas: Sequence[NodeId]) -> bool:
        node = leader.partition("/")[0]
        return node in replicas and node != self._node

    def _set_trouble(self, trouble: str) -> None:
        """Log each change once."""
        was_well = self._trouble in ("", _NOT_YET)
        if trouble and was_well:
            _log.warning("the leader's state cannot be stored", reason=trouble)
        elif not was_well and not trouble:
            _log.info("the leader's state is stored again")
        self._trouble = trouble
