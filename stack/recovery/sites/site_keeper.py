"""Keeps the term and the lease of this site: reads the store, asks ``site_terms`` what to do, and does it."""

import asyncio
import contextlib
import secrets
from dataclasses import replace
from datetime import UTC, datetime
from typing import assert_never

import msgspec

from shared import errors
from shared.api.method import MethodCaller
from shared.api.recovery import SiteLeaseMode, SiteLeaseState, set_site_lease
from shared.stores.objects import ObjectMissing, StoreUnavailable
from shared.telemetry import logs
from shared.timing.boot_clock import boot_time
from stack import control, stack_home
from stack.recovery import catalog, layout
from stack.recovery.backup_place import BackupPlace
from stack.recovery.sites import replaced
from stack.recovery.sites import site_terms as terms
from stack.recovery.sites.site_terms import SiteRecord, SiteState, Step, StoreCheck
from stack.stack_home import StackHome

_CALL_SECONDS = 5.0

_log = logs.get(part="site")


def read_own(home: StackHome) -> SiteRecord | None:
    """Blocks. Raises BadSettings."""
    return stack_home.read_struct(home.own_site, SiteRecord, "take a new term: aicli stack promote")


async def read_term(place: BackupPlace) -> int:
    """Return this site's term now. Raises BadSettings if it has none or another site has a later one, and StoreUnavailable."""
    own = await asyncio.to_thread(read_own, place.home)
    if own is None:
        raise errors.BadSettings("the backup agent has not taken this site's term yet", hint="is it running? aicli stack logs backup")
    highest = terms.find_highest({found.name async for found in place.store.list(terms.FOLDER)}) or 0
    if highest > own.term:
        raise errors.BadSettings(f"another site has taken over (term {highest}, and this one has {own.term})", hint="make the backup there")
    return own.term


async def ensure_term(place: BackupPlace, url: str) -> SiteRecord:
    """Return the term of this home. The first site of a store takes the first one. Raises BadSettings if another site owns the mesh."""
    own = await asyncio.to_thread(read_own, place.home)
    if own is not None and own.term > 1:
        return own
    if own is None:
        # Saved before it is put, so that a crash in between does not lose the race against itself.
        own = SiteRecord(term=1, site=place.settings.site, at=datetime.now(UTC), url=url, nonce=secrets.token_hex(16))
        highest = terms.find_highest({found.name async for found in place.store.list(terms.FOLDER)})
        if highest is not None:
            other = await catalog.get_signed(place.store, place.mesh, terms.record_name(highest), SiteRecord)
            raise errors.BadSettings(
                f"the store belongs to the site {other.site} (term {highest}), and this home has no term",
                hint="restore it (aicli stack restore), make it a standby (aicli stack standby), or set BACKUP_TO to an empty place",
            )
        await asyncio.to_thread(stack_home.write_struct, place.home.own_site, own)
    name = terms.record_name(own.term)
    await place.store.put_if_absent(name, layout.sign(name, own, place.key))
    if terms.judge_put(own, await catalog.get_signed(place.store, place.mesh, name, SiteRecord)) is not terms.TermOutcome.WON:
        _log.warning("another site took the first term at the same time")
    return own


class SiteKeeper:
    """``check`` it every CHECK_SECONDS."""

    def __init__(self, place: BackupPlace, own: SiteRecord) -> None:
        self._place = place
        self._clock: terms.GatewayClock | None = None
        self.state = SiteState(own=own, mode=SiteLeaseMode(place.settings.site_lease))
        #: Term -> who owned it, as far as was read.
        self.known: dict[int, SiteRecord] = {own.term: own}
        #: Why the store could not be read or written; empty if it could.
        self.problem = ""
        self._is_stopping = False

    async def check(self, gateway: MethodCaller | None) -> None:
        """``gateway`` is None while the mesh can't be reached."""
        self.problem = ""
        found = None
        try:
            async with asyncio.timeout(terms.CHECK_SECONDS):
                found = await self._look()
        except TimeoutError:
            self.problem = f"the store did not answer in {terms.CHECK_SECONDS:.0f} s"
        except errors.AimeshError as error:
            self.problem = error.message
        was_replaced = self.state.replaced_by
        self.state, steps = terms.decide(self.state, found, boot_time())
        if self.state.replaced_by is not None and was_replaced is None:
            _log.error("another site has taken over", site=self.state.replaced_by.site, term=self.state.replaced_by.term)
        for step in steps:
            try:
                async with asyncio.timeout(terms.CHECK_SECONDS):
                    await self._do(step, gateway)
                    if isinstance(step, terms.SetGatewayLease) and self.state.is_fenced:
                        await self.acknowledge()  # at once, because the other site waits for it
            except (errors.AimeshError, TimeoutError) as error:
                why = error.message if isinstance(error, errors.AimeshError) else "no answer in time"
                if isinstance(error, StoreUnavailable):
                    self.problem = why
                _log.warning("a step of the site's lease failed; it will be retried", step=type(step).__name__, reason=why)
                return

    async def acknowledge(self) -> None:
        """Also at the end: if this agent has ordered the stop, the gateway has stopped before it."""
        if (self._is_stopping or self.state.is_fenced) and not self.state.is_acknowledged:
            await self._do(terms.WriteAcknowledgement(), None)

    async def _look(self) -> StoreCheck:
        began_at, own, store, mesh = boot_time(), self.state.own, self._place.store, self._place.mesh
        lease = await catalog.find_signed(store, mesh, terms.lease_name(own.term), terms.SiteLeaseRecord)
        announced, is_marked = None if lease is None else lease.mode, False
        with contextlib.suppress(ObjectMissing):
            await store.head(terms.advisory_name(own.term))
            is_marked, announced = True, SiteLeaseMode.ADVISORY
        highest, record = terms.find_highest({found.name async for found in store.list(terms.FOLDER)}), None
        if highest is not None:
            # Our own is read too: another site may have taken the same term.
            record = self.known[highest] = await catalog.get_signed(store, mesh, terms.record_name(highest), SiteRecord)
        return StoreCheck(began_at=began_at, announced=announced, is_marked=is_marked, highest=record)

    async def _do(self, step: Step, gateway: MethodCaller | None) -> None:
        own = self.state.own
        match step:
            case terms.WriteLease(mode):
                name = terms.lease_name(own.term)
                await self._put(name, terms.SiteLeaseRecord(term=own.term, site=own.site, at=datetime.now(UTC), mode=mode))
            case terms.MarkAdvisory():
                await self._place.store.put_if_absent(terms.advisory_name(own.term), b"")
            case terms.SetGatewayLease():
                await self._set_gateway_lease(step, gateway)
            case terms.WriteAcknowledgement():
                assert self.state.replaced_by is not None
                record = terms.SiteAcknowledgement(site=own.site, at=datetime.now(UTC), replaced_by=self.state.replaced_by)
                await self._put(terms.acknowledgement_name(own.term), record)
                self.state = replace(self.state, is_acknowledged=True)
            case terms.StopServices():
                assert self.state.replaced_by is not None
                await asyncio.to_thread(replaced.record, self._place.home, self.state.replaced_by)
                # The gateway stops before this agent, which then acknowledges.
                self._is_stopping = await control.send(self._place.home.control_socket, control.Stop()) is not None
            case _:
                assert_never(step)

    async def _set_gateway_lease(self, step: terms.SetGatewayLease, gateway: MethodCaller | None) -> None:
        if gateway is None:
            raise errors.NotReachable("the mesh can't be reached")
        for _ in range(2):
            request = terms.lease_request(self.state, step, self._clock)
            reply = await gateway.call(set_site_lease, request, deadline_seconds=_CALL_SECONDS)
            self._clock = terms.GatewayClock(reply.now, boot_time())
            if reply.state is step.state:
                self.state = replace(self.state, is_fenced=reply.state is SiteLeaseState.ENDED)
                return
        raise errors.Unavailable("the gateway did not confirm the lease")

    async def _put(self, name: str, record: msgspec.Struct) -> None:
        await self._place.store.put(name, layout.sign(name, record, self._place.key))
