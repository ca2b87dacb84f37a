"""What turns an admitted request into an answer, and remembers answers that can be given again."""

from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from services.gateway.guard.guard_reporting import GuardReporting
from services.gateway.idempotency.idempotency_store import IdempotencyStore
from services.gateway.idempotency.idempotent_requests import IdempotentRequests
from services.gateway.idempotency.recorder import Recorders
from services.gateway.idempotency.response_cache import CacheBounds, ResponseCache
from services.gateway.idempotency.stored_items import StoredItems
from services.gateway.requests.image_admission import ImageLimits
from services.gateway.requests.observed import RequestObservers
from services.gateway.requests.revoked_callers import RevokedCallers
from services.gateway.requests.runs import Runs
from services.gateway.requests.workers import Workers
from services.gateway.rollouts.rollout_brake import RolloutBrake
from services.gateway.rollouts.rollout_runner import RolloutRunner
from services.gateway.settings import GatewaySettings
from services.gateway.wiring.admission import Admission
from services.gateway.wiring.scheduling import Scheduling
from services.gateway.wiring.stores import Stores
from shared.background.tasks import keep
from shared.node import Node
from shared.stores.cache import Cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    runs: Runs
    images: ImageLimits
    stored: StoredItems
    guard_reporting: GuardReporting
    rollouts: RolloutRunner
    revoked: RevokedCallers

    def tasks(self) -> Iterator[Coroutine[Any, Any, Any]]:
        yield keep("rollouts", self.rollouts.run)
        yield keep("revoked callers", self.revoked.run)
        yield keep("guard reporting", self.guard_reporting.run)


@asynccontextmanager
async def opened(
    settings: GatewaySettings, node: Node, stores: Stores, scheduling: Scheduling, admission: Admission
) -> AsyncIterator[Answers]:
    metrics, live, audit_reporting = node.metrics, scheduling.live, admission.audit_reporting
    rollouts = RolloutRunner(
        live,
        stores.rollouts,
        audit_reporting,
        metrics,
        lambda: runs.waiting(),  # noqa: PLW0108 - it is made below
        items=stores.items,
    )
    guard_reporting = GuardReporting(metrics, audit_reporting)
    images = ImageLimits(settings.image_max_count, settings.image_max_bytes)
    workers = Workers(
        node.rpc,
        scheduling.dispatch,
        count=lambda kind, outcome: metrics.retries.labels(kind=kind, outcome=outcome).inc(),
        flag=scheduling.quarantine.report,
        back_at=lambda: node.node_transports.nats_back_at,
    )
    observers = RequestObservers(
        publish=node.events_of_mesh.publish,
        on_compared=RolloutBrake(lambda: live.rollouts, rollouts.stop).record_end,
        on_guarded=guard_reporting.record_end,
    )
    async with (
        # Inside the recorder of usage, so that canceled answers still get their rows and free their keys.
        Recorders().running() as recorders,
        _idempotency(settings, node, stores, recorders).running() as idempotency,
    ):
        runs = Runs(
            admission.requests,
            workers,
            admission.recorder,
            observers,
            idempotency,
            images=images,
            most_seconds=settings.request_timeout_seconds,
            responses=_responses(settings, node, stores.cache, recorders),
            cache_only_when_asked=settings.response_cache == "asked",
        )
        revoked = RevokedCallers(runs, admission.callers.identify_owner)
        admission.callers.on_change = revoked.note
        stored = StoredItems(stores.cache, live, secret=settings.prompt_hash_secret, most_bytes=settings.stored_items_megabytes * 2**20)
        yield Answers(runs=runs, images=images, stored=stored, guard_reporting=guard_reporting, rollouts=rollouts, revoked=revoked)


def _idempotency(settings: GatewaySettings, node: Node, stores: Stores, recorders: Recorders) -> IdempotentRequests:
    return IdempotentRequests(
        IdempotencyStore(stores.database),
        recorders,
        node.id,
        items=stores.items,
        secret=settings.prompt_hash_secret,
        most_seconds=settings.request_timeout_seconds,
        start_seconds=settings.start_seconds,
    )


def _responses(settings: GatewaySettings, node: Node, cache: Cache, recorders: Recorders) -> ResponseCache | None:
    """Return None if the response cache is off."""
    if settings.response_cache == "off":
        return None
    bounds = CacheBounds(
        keep_seconds=settings.response_cache_seconds,
        most_bytes=settings.response_cache_megabytes * 2**20,
        most_seconds=settings.request_timeout_seconds,
        start_seconds=settings.start_seconds,
    )
    return ResponseCache(cache, recorders, node.metrics, bounds, secret=settings.prompt_hash_secret)
