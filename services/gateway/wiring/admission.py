"""Who may ask, for what price, and within which limits."""

import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from services.gateway.billing import orphan_settlement
from services.gateway.billing.journal import OrphanedJournals, held_journal
from services.gateway.billing.ledger import Ledger
from services.gateway.billing.usage_recorder import UsageRecorder
from services.gateway.callers import Callers
from services.gateway.limits import quotas
from services.gateway.limits.quotas import Quotas
from services.gateway.recovery import kinds as recovery_kinds
from services.gateway.requests.refused_requests import RefusedRequests
from services.gateway.requests.request_admission import RequestAdmission
from services.gateway.requests.target_choice import TargetSearch
from services.gateway.settings import GatewaySettings
from services.gateway.wiring.scheduling import Scheduling
from services.gateway.wiring.stores import Stores
from shared import errors
from shared.api.auth import Principal
from shared.background.tasks import keep
from shared.node import Node, lifecycle
from shared.recovery import recovery_log
from shared.rpc.audit_reporting import AuditReporting
from shared.rpc.authorization import Authorizer, CallerIdentity
from shared.types import Role

#: Time to discover workers after start, before the list of models is complete.
_DISCOVERY_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    audit_reporting: AuditReporting
    callers: Callers
    quotas: Quotas
    ledger: Ledger
    recorder: UsageRecorder
    search: TargetSearch
    requests: RequestAdmission
    refused: RefusedRequests

    def tasks(self) -> Iterator[Coroutine[Any, Any, Any]]:
        yield keep("changes of accounts", self.callers.watch)
        yield keep("limits", self.quotas.watch)
        yield lifecycle.every(quotas.SLOT_HEARTBEAT_SECONDS, self.quotas.extend_slots)
        yield keep("audit reporting", self.audit_reporting.run)


@asynccontextmanager
async def opened(settings: GatewaySettings, node: Node, stores: Stores, scheduling: Scheduling) -> AsyncIterator[Admission]:
    metrics, live = node.metrics, scheduling.live
    audit_reporting = AuditReporting(node.rpc, on_act=recovery_log.noting(recovery_kinds.RESTRICTING))
    stores.recovery.report(audit_reporting)
    node.dispatcher.finish = stores.recovery.log.finish
    callers = Callers(
        node.rpc,
        count_refusal=lambda reason: metrics.auth_failures.labels(reason=reason).inc(),
        can_ask=lambda: bool(node.directory.reachable(Role.AUTH)),
        back_at=lambda: node.node_transports.nats_back_at,
        wait_seconds=settings.queue_seconds,
        most_waiting=settings.queue_most,
    )
    limits = Quotas(
        stores.cache,
        lambda: live.config.limits,
        metrics,
        lambda: 1 + len(node.directory.usable(Role.GATEWAY)),
        without_valkey=settings.limiter_without_valkey,
    )

    def report_refusal(method: str, _caller: CallerIdentity, principal: Principal | None, error: errors.AimeshError) -> None:
        audit_reporting.report_refusal(method, principal, "", error)

    node.dispatcher.gate = Authorizer(callers.identify, report_refusal)
    async with _books(settings, node, stores, scheduling) as (ledger, recorder):
        search = TargetSearch(
            ledger=ledger,
            dispatch=scheduling.dispatch,
            directory=node.directory,
            source=live,
            prompt_hash_secret=settings.prompt_hash_secret,
            worker_wait_seconds=_DISCOVERY_SECONDS,
            discovery_ends_at=time.monotonic() + _DISCOVERY_SECONDS,
        )
        yield Admission(
            audit_reporting=audit_reporting,
            callers=callers,
            quotas=limits,
            ledger=ledger,
            recorder=recorder,
            search=search,
            requests=RequestAdmission(search=search, quotas=limits, tasks=node.tasks, read_guardrails=live.guardrails_at, metrics=metrics),
            refused=RefusedRequests(recorder, limits, metrics, ledger.database_clock.now),
        )


@asynccontextmanager
async def _books(
    settings: GatewaySettings, node: Node, stores: Stores, scheduling: Scheduling
) -> AsyncIterator[tuple[Ledger, UsageRecorder]]:
    requests, metrics, items = stores.requests, node.metrics, stores.items
    sells, page = settings.money == "on", settings.billing_page
    ledger = Ledger(stores.ledger, scheduling.live, node.id, metrics, items=items, has_plans=sells, billing_page=page)
    find_receipts = partial(orphan_settlement.collect_receipts, node.rpc, node.directory, items, strike=scheduling.quarantine.strike)
    async with (
        held_journal(settings.journal, node.id, requests.find_unknown) as journal,
        UsageRecorder(requests, journal, metrics.usage_queue_rows, metrics.settle_failures).running() as recorder,
        # Ends before the recorder, so that no rows arrive in a journal that is closed.
        OrphanedJournals(settings.journal, node.id, requests.find_unknown, recorder.take_over, items).running(metrics),
        ledger.running(recorder, requests.write_requests, find_receipts),
    ):
        metrics.settle_journal_rows.set_function(lambda: recorder.journal_rows)
        yield ledger, recorder
