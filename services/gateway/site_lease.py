"""Refuses requests after another site has taken over, and while it may have. Reads and writes the table of the site's lease.

The reserve statement reads the same row, so a gateway that has missed a change runs no request. This module stops what reserves nothing,
and the requests that already run.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress

from shared import errors
from shared.api import recovery
from shared.api.recovery import SetSiteLease, SiteLease, SiteLeaseState
from shared.node import lifecycle
from shared.rpc import RpcCall, serves
from shared.stores.database import Database
from shared.telemetry import logs
from shared.timing.boot_clock import boot_time
from shared.timing.bounded_waits import wait_until_set

#: The channel of the query ``set_site_lease``.
_CHANGES = "gateway_site_lease"
_POLL_SECONDS, _READ_SECONDS = 1.0, 1.0
#: A gateway that hasn't read its lease for so long was paused: it reads it before it answers anyone.
_STALE_SECONDS = 5.0
#: How long a replaced gateway tells callers where to go, before it ends.
_REFUSING_SECONDS = 60.0

_log = logs.get(part="site")


class SiteGate:
    """Create it with ``start``."""

    def __init__(self, opened: Database, clock: Callable[[], float] = boot_time) -> None:
        self._database = opened
        self._clock = clock
        #: None: there are no rules about sites.
        self._lease: SiteLease | None = None
        #: By our clock; None for no limit.
        self._ends_at: float | None = None
        #: When the last attempt to read it began, once that has ended.
        self._tried_at = clock()
        self._reading = asyncio.Lock()
        self._running: set[asyncio.Timeout] = set()

    @classmethod
    async def start(cls, opened: Database, own_term: int, tasks: asyncio.TaskGroup) -> "SiteGate":
        """Raises SiteReplaced if another site has taken over, and Unavailable. A term below ``own_term``, if that is not 0, is that of the
        site from which this database was restored."""
        lease = await _read(opened)
        if own_term > (0 if lease is None else lease.term):
            await opened.run("begin_term", own_term)
        gate = cls(opened)
        await gate.reload()
        if isinstance(error := gate.find_refusal(), errors.SiteReplaced):
            raise error
        tasks.create_task(gate.watch())
        return gate

    def find_refusal(self) -> errors.AimeshError | None:
        if self._lease is None:
            return None
        is_over = self._ends_at is not None and self._clock() >= self._ends_at
        return _refusal(self._lease, is_over=is_over)

    async def ensure_open(self) -> None:
        """Raises SiteReplaced and SiteSuspended."""
        if self._lease is None:
            return
        if self._clock() - self._tried_at > _STALE_SECONDS:
            with suppress(errors.Unavailable):
                await self.reload()
        if error := self.find_refusal():
            raise error

    @asynccontextmanager
    async def while_open(self) -> AsyncIterator[None]:
        """End the block with SiteReplaced or SiteSuspended as soon as the site may not answer any more."""
        await self.ensure_open()
        limit = asyncio.timeout(None)
        self._running.add(limit)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise self.find_refusal() or _suspended() from None
        finally:
            self._running.discard(limit)

    async def reload(self) -> None:
        """Raises Unavailable."""
        asked_at = self._clock()
        async with self._reading:
            if self._tried_at > asked_at:
                return  # another call has read it since
            began = self._clock()
            try:
                lease = await _read(self._database, deadline_seconds=_READ_SECONDS)
            finally:
                self._tried_at = began
        ends_at = None if lease is None or lease.ends_at is None else began + (lease.ends_at - lease.now).total_seconds()
        if ends_at is not None and self._ends_at is not None and lease and self._lease and lease.changed_at == self._lease.changed_at:
            # PostgreSQL's clock may have been set back.
            ends_at = min(ends_at, self._ends_at)
        if lease is not None and (self._lease is None or lease.state is not self._lease.state):
            _log.warning("the site's lease has changed", term=lease.term, state=lease.state, replaced_by=lease.replaced_by)
        self._lease, self._ends_at = lease, ends_at
        self._end_requests()

    def _end_requests(self) -> None:
        if self.find_refusal() is not None:
            for limit in self._running:
                if limit.when() is None:
                    limit.reschedule(asyncio.get_running_loop().time())

    async def watch(self) -> None:
        """Follow changes. Raises SiteReplaced a minute after another site has taken over, which ends the program."""
        wake = asyncio.Event()
        replaced_at: float | None = None
        async with lifecycle.background() as tasks:
            tasks.create_task(self._listen(wake))
            while True:
                await wait_until_set(wake, _POLL_SECONDS)
                wake.clear()
                with suppress(errors.Unavailable):
                    await self.reload()
                # Its time may be over, although nothing has changed.
                self._end_requests()
                if isinstance(error := self.find_refusal(), errors.SiteReplaced):
                    replaced_at = self._clock() if replaced_at is None else replaced_at
                    if self._clock() - replaced_at >= _REFUSING_SECONDS:
                        raise error

    async def _listen(self, wake: asyncio.Event) -> None:
        async with aclosing(self._database.listen(_CHANGES)) as payloads:
            async for _ in payloads:
                wake.set()

    @serves(recovery.set_site_lease)
    async def set(self, request: SetSiteLease, _call: RpcCall) -> SiteLease:
        """Return after the last reservation under the earlier state. Raises BadRequest for an older term, or after the end of this one."""
        now = await self._database.value("read_clock")
        if request.seconds is not None and (request.since is None or request.since > now):
            return SiteLease(term=request.term, site=request.site, state=SiteLeaseState.SUSPENDED, changed_at=now, now=now)
        async with self._database.transaction(deadline_seconds=5) as transaction:
            if request.state is not SiteLeaseState.ACTIVE:
                await transaction.run("lock_site_lease")
            written = await transaction.row(
                "set_site_lease",
                *(request.term, request.site, request.state.value, request.seconds, request.since),
                *(request.replaced_by, request.replaced_url),
            )
        await self.reload()
        assert self._lease is not None  # the row is never deleted
        if written is None and (self._lease.term, self._lease.state) != (request.term, request.state):
            raise errors.BadRequest(
                f"{request.site} can't set term {request.term} to {request.state}: term {self._lease.term} of {self._lease.site} is"
                f" {self._lease.state}",
                hint="a site that takes over takes a new term: aicli stack promote",
            )
        return self._lease


async def read_refusal(opened: Database) -> errors.AimeshError:
    """Return why the reserve statement reserved nothing. Raises Unavailable."""
    lease = await _read(opened)
    error = None if lease is None else _refusal(lease)
    return error or errors.Unavailable("the site's lease has just been renewed", hint="try again", retry_after_seconds=0.1)


async def _read(opened: Database, *, deadline_seconds: float = 5) -> SiteLease | None:
    row = await opened.row("read_site_lease", deadline_seconds=deadline_seconds)
    if row is None:
        return None
    return SiteLease(**{name: row[name] for name in SiteLease.__struct_fields__} | {"state": SiteLeaseState(row["state"])})


def _refusal(lease: SiteLease, *, is_over: bool = False) -> errors.AimeshError | None:
    if lease.state is SiteLeaseState.ENDED:
        place = f" ({lease.replaced_url})" if lease.replaced_url else ""
        return errors.SiteReplaced(
            f"this site was replaced by {lease.replaced_by or 'another site'}{place} at {lease.changed_at:%Y-%m-%d %H:%M:%S} UTC",
            hint="send requests to the new site; if DNS is to lead there, it may take a while",
            retry_after_seconds=10,
        )
    return _suspended() if is_over or lease.state is SiteLeaseState.SUSPENDED else None


def _suspended() -> errors.SiteSuspended:
    return errors.SiteSuspended(
        "this site can't reach its backup store, so another site may have taken over",
        hint="retry soon, or send requests to the other site",
        retry_after_seconds=5,
    )
