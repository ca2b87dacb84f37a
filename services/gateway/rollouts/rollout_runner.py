"""Judges the outcomes of open rollouts, gives candidates larger shares, and rolls them back. One gateway at a time judges each rollout.

A look consumes the outcomes and saves what follows from them in one transaction, so that a gateway may die at any moment. Locks: the
rollout first, then the configuration.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Final
from uuid import UUID

import msgspec

from services.gateway.configuration.config_store import LockedConfig
from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.facts.model_routes import OpenRollout
from services.gateway.facts.waiting_request import WaitingRequest
from services.gateway.rollouts import rollout_report, rollout_rules
from services.gateway.rollouts.rollout_evidence import RequestOutcome
from services.gateway.rollouts.rollout_rules import Rollout
from services.gateway.rollouts.rollout_store import OpenRollouts, RolloutStore
from shared import errors
from shared.api.configuration import MAX_NOTE_CHARACTERS, RolloutState
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems, TakenItem
from shared.config_documents import ConfigKind, RouteDocument, TargetDocument
from shared.rpc.audit_reporting import AuditReporting
from shared.telemetry import Metrics, logs
from shared.timing.bounded_waits import wait_until_set
from shared.types import UserId

LOOK_SECONDS: Final = 5.0

_log = logs.get(part="rollouts")


class RolloutRunner:
    """Run ``run`` while the gateway runs."""

    def __init__(
        self,
        live: LiveConfiguration,
        store: RolloutStore,
        audit_reporting: AuditReporting,
        metrics: Metrics,
        read_waiting: Callable[[], Iterable[WaitingRequest]],
        *,
        items: BackgroundItems,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """``read_waiting`` returns the prompts at this gateway that have no text yet, and aren't counted as late."""
        self._live = live
        self._items = items
        self._store = store
        self._audit_reporting = audit_reporting
        self._metrics = metrics
        self._read_waiting = read_waiting
        self._look_seconds = look_seconds
        #: Rollouts that this gateway has stopped, and why, until they are rolled back in PostgreSQL.
        self._stopped: dict[UUID, tuple[str, str]] = {}
        self._wake = asyncio.Event()

    def stop(self, rollout: UUID, route: str, reason: str) -> None:
        """Stop the candidate at this gateway now, and at all gateways as soon as PostgreSQL is available."""
        _log.warning("this gateway stops a rollout", route=route, reason=reason)
        self._live.stop_rollout(rollout)
        self._stopped[rollout] = route, reason
        self._wake.set()

    async def run(self) -> None:
        while True:
            try:
                await self.roll_back_stopped()
                await self.look()
                await self._measure()
            except errors.Unavailable as error:
                _log.warning("rollouts can't be judged", reason=error.message)
            await wait_until_set(self._wake, self._look_seconds)
            self._wake.clear()

    async def look(self) -> None:
        """Judge the rollouts at which no gateway has looked for a while. Raises Unavailable."""
        if not self._live.rollouts:
            return
        await self._count_late()
        await self._items.drain(ItemKind.ROLLOUT, partial(self._look_at_one, set()))

    async def _look_at_one(self, seen: set[UUID], taken: TakenItem) -> bool:
        """Judge one rollout in its own transaction, which takes its outcomes. ``seen``: those of this look."""
        async with self._store.change() as tables:
            # Looks of other gateways may come a little early.
            due = await tables.take_due(0.8 * self._look_seconds)
            if due is None or due[0].id in seen:
                await tables.forget()
                return False
            before, now = due
            seen.add(before.id)
            taken.id = str(before.id)
            outcomes = await tables.take_outcomes([before.id])
            after = rollout_rules.look(before, outcomes.get(before.id, ()), now)
            if rollout_rules.is_point_due(after, now):
                await tables.add_point(before.id, rollout_report.describe_point(after, before.share, now))
                after = replace(after, progress=replace(after.progress, point_at=now))
            await tables.save(after)
            if _is_change(before, after):
                await apply(tables, self._live, after)
        await self._report([after] if _is_change(before, after) and not after.is_open else [])
        return True

    async def _count_late(self) -> None:
        late = list(_late_requests(self._live.rollouts, self._read_waiting()))
        if not late:
            return
        async with self._store.change() as tables:
            await tables.add_late([(rollout, outcome) for rollout, _, outcome in late])
        for _, waiting, _ in late:
            waiting.mark_counted()

    async def roll_back_stopped(self) -> None:
        """Roll back what this gateway has stopped. Raises Unavailable."""
        await self._items.each(ItemKind.ROLLOUT, list(self._stopped), self._roll_back, str)

    async def _roll_back(self, stopped: UUID) -> None:
        route, reason = self._stopped[stopped]
        ended = []
        async with self._store.change() as tables:
            # Another gateway, or an administrator, may have ended it.
            found = await tables.take(route)
            if found is not None and found[0].id == stopped:
                ended = [rollout_rules.end(found[0], RolloutState.ROLLED_BACK, reason, found[1])]
                await tables.save(ended[0])
                await apply(tables, self._live, ended[0])
        del self._stopped[stopped]
        await self._report(ended)

    async def _report(self, ended: list[Rollout]) -> None:
        for rollout in ended:
            _log.warning("a rollout has ended", route=rollout.route, state=rollout.state.value, reason=rollout.reason)
            self._audit_reporting.report_action(
                "rollout.end", None, target=rollout.route, state=rollout.state.value, reason=rollout.reason[:500]
            )
        if ended:
            await self._live.reload()

    async def _measure(self) -> None:
        states = await self._store.recent_states()
        self._metrics.rollout_state.clear()
        for route, state in states.items():
            self._metrics.rollout_state.labels(route=route, state=state.value).set(1)


def _is_change(before: Rollout, after: Rollout) -> bool:
    """Return whether the change is worth an event: a rollout with little traffic often starts and stops holding."""
    return before.is_open != after.is_open or before.share != after.share


async def apply(tables: OpenRollouts, live: LiveConfiguration, after: Rollout, author: UserId | None = None) -> None:
    """Record a change of a locked rollout, and write a version of its route if it was rolled back or promoted."""
    await tables.add_event(after, author)
    if after.state not in {RolloutState.ROLLED_BACK, RolloutState.PROMOTED}:
        return
    locked = await LockedConfig.lock(tables.transaction)
    key = ConfigKind.ROUTE, after.route
    stored = (await live.read_locked(locked)).get(key)
    # It can't be removed while the rollout is open.
    if stored is not None and isinstance(stored.body, RouteDocument):
        origin, verb = ("applied", "promoted") if after.state is RolloutState.PROMOTED else ("rollback", "rolled back")
        note = f"rollout {verb}: {after.reason}"[:MAX_NOTE_CHARACTERS]
        await locked.write({key: end_route(stored.body, after)}, origin=origin, author=author, note=note)


def end_route(document: RouteDocument, rollout: Rollout) -> RouteDocument:
    """Return the route after a rollout: one of its two targets has the shares of both."""
    plan, is_promoted = rollout.plan, rollout.state is RolloutState.PROMOTED
    shares = {target.name: target.share or 0.0 for target in document.targets}
    both = round(shares.get(plan.candidate, 0.0) + shares.get(plan.baseline, 0.0), 2)
    winner, loser = (plan.candidate, plan.baseline) if is_promoted else (plan.baseline, plan.candidate)

    def end_target(target: TargetDocument) -> TargetDocument:
        if target.name == winner:
            return msgspec.structs.replace(target, share=both)
        if target.name == loser:
            order = 1 if is_promoted and target.order is None else target.order
            return msgspec.structs.replace(target, share=0.0, order=order)
        return target

    return msgspec.structs.replace(document, targets=tuple(map(end_target, document.targets)))


def _late_requests(
    rollouts: Mapping[str, OpenRollout], requests: Iterable[WaitingRequest]
) -> Iterator[tuple[UUID, WaitingRequest, RequestOutcome]]:
    """Yield those that have waited longer for their first text than the baseline's usually do. They count as late at once: a candidate
    that hangs would otherwise be seen only when its requests reach their deadlines."""
    for waiting in requests:
        used = waiting.route
        rollout = rollouts.get(used.route)
        if not used.is_compared or used.target != used.variant or rollout is None or rollout.first_token_limit_ms is None:
            continue
        if waiting.waited_ms > rollout.first_token_limit_ms and used.variant in {rollout.plan.candidate, rollout.plan.baseline}:
            outcome = RequestOutcome(
                is_candidate=used.variant == rollout.plan.candidate,
                tenant=waiting.principal.tenant_id,
                user=waiting.principal.user_id,
                began_at=waiting.began_at,
                has_ended=False,
                waited_ms=waiting.waited_ms,
            )
            yield rollout.id, waiting, outcome
