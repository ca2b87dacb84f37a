"""Reserves the maximum cost of each request before it runs, keeps the leases of reservations alive, and settles those of dead gateways.

A request's own reservation is settled with its row (``usage_recorder``).
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec

from services.gateway import background_jobs
from services.gateway.background_jobs import UpkeepJob
from services.gateway.billing import compute_pace, orphan_settlement, refusals
from services.gateway.billing.compute_pace import ComputePaces, Pace
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.prices import MIN_TOKENS, Price, PriceList
from services.gateway.billing.reservations import (
    NO_PLAN,
    CostBounds,
    GrantedReservation,
    HeldCredits,
    HoldExtension,
    InsufficientCredits,
    OpenReservation,
    ReservationRequest,
    Spending,
    WorkerClaim,
)
from services.gateway.billing.usage_recorder import UsageRecorder
from services.gateway.facts.config_snapshot import ConfigSource
from services.gateway.facts.request_record import RequestRow
from services.gateway.facts.tiers import TierPlan
from services.gateway.facts.upstream_prices import TargetHold, UpstreamPrices
from shared import errors
from shared.api.auth import Budget, Principal
from shared.api.inference import Receipt
from shared.api.ledger import LedgerReport, ModelPrice
from shared.background import tasks as background_tasks
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems
from shared.node import lifecycle
from shared.stores.database_clock import DatabaseClock
from shared.telemetry import Metrics, logs
from shared.types import ModelName, NodeId, RequestId

#: How long a reservation lasts without a heartbeat, and the heartbeat interval.
LEASE_SECONDS, HEARTBEAT_SECONDS = 90.0, 30.0
#: Time between a lease's end and settlement by another gateway, because a heartbeat may still be in flight.
GRACE_SECONDS = 30.0
#: How long a receipt that says "still running" is believed.
MAX_SECONDS = 2 * 3600.0
#: How long a request waits if PostgreSQL is down.
RESERVE_SECONDS = 2.0
_SWEEP_SECONDS, _SWEEP_MAX = 15.0, 100
_PRICES_SECONDS = 5.0
_VERIFY_SECONDS = 60.0

Question = TypeVar("Question")
Answer = TypeVar("Answer")

_log = logs.get(part="ledger")


class LedgerUnavailable(errors.Unavailable):
    """PostgreSQL does not respond, and no request runs without a reservation."""

    code = "ledger_unavailable"


#: Returns the receipts of the last workers. Never raises.
FindReceipts = Callable[[Sequence[OpenReservation]], Awaitable[Mapping[RequestId, Receipt]]]
WriteRows = Callable[[Sequence[RequestRow]], Awaitable[None]]


class Ledger:
    """The ledger of this gateway, for any number of concurrent requests. Use ``running``."""

    def __init__(
        self,
        store: LedgerStore,
        source: ConfigSource,
        gateway: NodeId,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        *,
        items: BackgroundItems,
        has_plans: bool = False,
        billing_page: str = "",
    ) -> None:
        """``billing_page``: where people buy, for refusals; empty if it is unknown."""
        self._store = store
        self._source = source
        self._gateway = gateway
        self._metrics = metrics
        self._items = items
        self._clock = clock
        self._prices = PriceList({})
        self._paces = ComputePaces()
        #: Those of jobs. Administrators set prices, so there are few.
        self._kept: dict[int, Price] = {}
        #: Dates requests: their days must not depend on which gateway ran them.
        self.database_clock = DatabaseClock(store.read_clock)
        #: Start of each open reservation by our clock, oldest first.
        self._open: dict[RequestId, float] = {}
        metrics.ledger_open_reservations.set_function(lambda: len(self._open))
        metrics.ledger_oldest_reservation.set_function(self._oldest_seconds)
        self._batches = QueryBatching(self._reserve_all)
        self._extensions = QueryBatching(store.extend_holds)
        #: Accounts have plans: MONEY is on.
        self.has_plans = has_plans
        self.billing_page = billing_page
        self._suspend_detector = SuspendDetector()
        self._claims = WorkerClaims(store.record_claims)
        #: Since when all heartbeats have succeeded; None after a failure.
        self._healthy_since: float | None = None
        #: Set when nothing is left of gateways that were lost before this one started.
        self._has_swept = asyncio.Event()

    @asynccontextmanager
    async def running(self, rows: UsageRecorder, write: WriteRows, find_receipts: FindReceipts) -> AsyncIterator["Ledger"]:
        """Run the background work. Raises Unavailable if the prices can't be read."""
        await self.refresh_prices()
        await self.database_clock.refresh()
        async with self._batches.running(), self._extensions.running(), lifecycle.background() as tasks:
            tasks.create_task(lifecycle.every(_PRICES_SECONDS, self.refresh_prices))
            tasks.create_task(lifecycle.every(HEARTBEAT_SECONDS, self.database_clock.refresh))
            tasks.create_task(lifecycle.every(HEARTBEAT_SECONDS, lambda: self.heartbeat(rows.waiting), task="ledger leases"))
            tasks.create_task(lifecycle.every(_SWEEP_SECONDS, lambda: self.sweep(write, find_receipts), task="orphan settlement"))
            tasks.create_task(background_jobs.repeat(UpkeepJob.VERIFY, _VERIFY_SECONDS, self.judge, self._metrics))
            tasks.create_task(background_tasks.keep("suspensions", self._suspend_detector.watch))
            tasks.create_task(background_tasks.keep("claims of workers", self._claims.write))
            yield self

    def spending_of(self, principal: Principal) -> Spending:
        rules, shares_limits = self._source.config.limits, principal.founder_id is not None
        plan = rules.plan_of(principal.tier, shares_limits=shares_limits, has_free_tokens=principal.has_free_tokens)
        of_key = principal.key_limits
        key_budget = None if of_key.budget_micro is None else Budget(of_key.budget_micro, of_key.budget_every)
        return msgspec.structs.replace(self.terms_of(plan), key_budget=key_budget, owner_budget=principal.budget)

    def terms_of(self, plan: TierPlan) -> Spending:
        if not self.has_plans:
            return NO_PLAN
        return Spending(plan.included_tokens, plan.overage_micro, has_plan=True, withholds_tokens=plan.withholds_tokens)

    def price_of(self, model: ModelName) -> ModelPrice:
        return self._prices.find(model).price

    def price_id_of(self, model: ModelName) -> int:
        return self._prices.find(model).id

    async def _find_kept(self, number: int) -> Price:
        if number not in self._kept:
            found = await self._store.find_price(number)
            assert found is not None  # prices are never deleted
            self._kept[number] = found
        return self._kept[number]

    async def reserve(self, principal: Principal, request_id: RequestId, bounds: CostBounds) -> HeldCredits:
        """Reserve the maximum cost at the dearest model. Models that the credits don't cover in full are left out, the dearest first; only
        the cheapest gets fewer tokens. Raises BudgetExhausted, and LedgerUnavailable if PostgreSQL is down for more than 2 s. Follow every
        call that doesn't raise with ``forget``."""
        found = {model: self._prices.find(bounds.priced_as or model) for model in bounds.prompt_tokens}
        if bounds.kept_price is not None:
            found = dict.fromkeys(found, await self._find_kept(bounds.kept_price))
        prices = {model: price.of_batches() for model, price in found.items()} if bounds.is_batch else found
        spending, most = self.spending_of(principal), bounds.max_tokens * bounds.answers
        paces = {model: self._find_pace(model, price, bounds) for model, price in prices.items()}
        seconds = {model: bounds.seconds if pace is None else pace.seconds(most) for model, pace in paces.items()}
        while True:
            any_uncovered = not all(price.price.allowance_weight for price in prices.values())
            # A plan that covers some of the models doesn't help with the others.
            costs = {
                model: (not price.price.allowance_weight, price.cost(bounds.prompt_tokens[model], most, seconds[model]))
                for model, price in prices.items()
            }
            dearest = max(costs, key=costs.__getitem__)
            cheaper = {model: price for model, price in prices.items() if costs[model] < costs[dearest]}
            request = ReservationRequest(
                request_id=request_id,
                owner=principal.tenant_id,
                key_id=principal.key_id,
                model=dearest,
                price=prices[dearest],
                allowance_weight=0 if any_uncovered else max(price.price.allowance_weight for price in prices.values()),
                prompt_tokens=bounds.prompt_tokens[dearest],
                max_tokens=bounds.max_tokens,
                least_tokens=bounds.max_tokens if cheaper else MIN_TOKENS,
                answers=bounds.answers,
                seconds=seconds[dearest],
                spending=spending,
                holds=tuple(hold for hold in bounds.holds if hold.model in prices),
                job=bounds.job,
            )
            answer = await self._reserve(request)
            if isinstance(answer, GrantedReservation):
                self._open[request_id] = self._clock()
                clamped = answer.max_tokens < bounds.max_tokens
                return HeldCredits(
                    *(request_id, prices, answer.max_tokens),
                    clamped=clamped,
                    plan_tokens=answer.plan_tokens,
                    over_ceiling=answer.over_ceiling,
                    seconds=seconds,
                    token_seconds={model: compute_pace.MARGIN * pace.token_seconds for model, pace in paces.items() if pace is not None},
                )
            if not cheaper:
                raise await self._exhausted(answer, request)
            prices = cheaper

    def _find_pace(self, model: ModelName, price: Price, bounds: CostBounds) -> Pace | None:
        """Return None if it doesn't matter or isn't known, or if the request ends at its deadline first."""
        # Without tokens, as of embeddings, nothing is measured.
        if not price.price.compute_second_micro or not bounds.max_tokens:
            return None
        pace = self._paces.find(model, self._clock())
        return pace if pace is not None and pace.seconds(bounds.max_tokens * bounds.answers) < bounds.seconds else None

    def record_pace(self, model: ModelName, prompt_seconds: float, seconds: float, tokens: int) -> None:
        """Record how long a request computed before its first token of output, and in all."""
        self._paces.record(model, prompt_seconds=prompt_seconds, seconds=seconds, tokens=tokens, now=self._clock())

    def smallest_request(self, principal: Principal, model: ModelName) -> ReservationRequest:
        """Return what asks for the least useful answer of a model."""
        found = self._prices.find(model)
        return ReservationRequest(
            request_id=RequestId(UUID(int=0)),
            owner=principal.tenant_id,
            key_id=None,
            model=model,
            price=found,
            allowance_weight=found.price.allowance_weight,
            prompt_tokens=1,
            max_tokens=MIN_TOKENS,
            least_tokens=MIN_TOKENS,
            answers=1,
            seconds=0.0,
            spending=self.spending_of(principal),
        )

    async def extend(
        self, principal: Principal, held: HeldCredits, model: ModelName, *, max_tokens: int, answers: int, target: TargetHold | None
    ) -> HeldCredits:
        """Hold the cost of ``max_tokens`` for each answer of this model, or of what the credits cover. Safe to repeat, and after the end of
        the request, which it doesn't change. Raises LedgerUnavailable if PostgreSQL is down for more than 2 s."""
        price, token_seconds = held.prices[model], held.token_seconds.get(model, 0.0)
        extension = HoldExtension(
            request_id=held.request_id,
            owner=principal.tenant_id,
            max_tokens=max_tokens,
            least_more=min(MIN_TOKENS, max_tokens - held.max_tokens),
            answers=answers,
            price=price.with_seconds(token_seconds),
            spending=self.spending_of(principal),
            target=target,
        )
        answer, _ = await self._ask(self._extensions, extension)
        if answer.max_tokens is None or answer.is_over_ceiling:
            return held
        clamped = answer.max_tokens < max_tokens
        # Tokens that the plan covers hold no money, not even for seconds.
        covered = (answer.plan_tokens - held.plan_tokens) // max(price.price.allowance_weight, 1)
        more = max(0, (answer.max_tokens - held.max_tokens) * answers - covered) * token_seconds
        seconds = {**held.seconds, model: held.seconds[model] + more}
        return msgspec.structs.replace(held, max_tokens=answer.max_tokens, clamped=clamped, plan_tokens=answer.plan_tokens, seconds=seconds)

    def record_claim(self, claim: WorkerClaim) -> None:
        """Record which worker is about to run the request."""
        if claim.request_id in self._open:
            self._claims.add(claim)

    def forget(self, request_id: RequestId) -> None:
        """Stop extending the lease here: the recorder has the row and extends it."""
        self._open.pop(request_id, None)
        self._claims.forget(request_id)

    def _oldest_seconds(self) -> float:
        return self._clock() - next(iter(self._open.values())) if self._open else 0.0

    async def refresh_prices(self) -> None:
        self._prices = PriceList.of(await self._store.list_prices())

    async def heartbeat(self, waiting: Iterable[RequestId]) -> None:
        """Extend the leases of running requests and of unwritten rows."""
        try:
            await self._store.extend_leases([*self._open, *waiting], LEASE_SECONDS)
        except errors.Unavailable:
            self._healthy_since = None
            raise
        self._healthy_since = self._healthy_since if self._healthy_since is not None else self._clock()

    async def sweep(self, write: WriteRows, find_receipts: FindReceipts) -> None:
        """Settle the requests of dead gateways, using the workers' receipts. Wait after an outage of PostgreSQL, so that live gateways
        can extend their leases first."""
        if self._healthy_since is None or self._clock() - self._healthy_since < HEARTBEAT_SECONDS:
            return
        await self._store.drop_lost_attempts(grace_seconds=GRACE_SECONDS, most=_SWEEP_MAX)
        overdue = await self._store.list_overdue(grace_seconds=GRACE_SECONDS, most=_SWEEP_MAX)
        if overdue:
            await self._settle(overdue, write, find_receipts)
        if len(overdue) < _SWEEP_MAX:
            self._has_swept.set()

    async def _settle(self, overdue: Sequence[OpenReservation], write: WriteRows, find_receipts: FindReceipts) -> None:
        receipts, settled = await find_receipts(overdue), list[RequestRow]()

        async def settle(reservation: OpenReservation) -> None:
            row = await self._row(reservation, receipts.get(reservation.request_id))
            if row is not None:
                await write([row])
                settled.append(row)

        await self._items.each(ItemKind.ORPHAN, overdue, settle, lambda reservation: str(reservation.request_id))
        if settled:
            with_receipt = sum(row.cost_micro > 0 for row in settled)
            _log.warning("settled requests of lost gateways", requests=len(settled), with_receipt=with_receipt)

    async def judge(self) -> None:
        """Verify the open day, but not before the first sweep: until then, reservations of lost gateways are no mistake."""
        await self._has_swept.wait()
        await self.verify()

    async def verify(self, *, full: bool = False) -> LedgerReport:
        """Verify the sums of the open day, or of everything. Raises Unavailable."""
        report = await self._store.verify(grace_seconds=LEASE_SECONDS + GRACE_SECONDS, full=full)
        drift = report.drift_micro + abs(report.sum_micro) + report.reserved_drift_micro + report.drift_tokens
        self._metrics.ledger_drift.set(drift + report.broken_checkpoints)
        if report.findings:
            _log.error("ledger verification failed", findings=report.findings)
        return report

    async def _row(self, reservation: OpenReservation, receipt: Receipt | None) -> RequestRow | None:
        price = await self._find_kept(reservation.price_id)
        price = price.of_batches() if reservation.is_batch else price
        upstream = UpstreamPrices(self._source.config.upstream_prices)
        now = self.database_clock.now()
        return orphan_settlement.build_row(reservation, price, receipt, most_seconds=MAX_SECONDS, now=now, upstream=upstream)

    async def _reserve(self, request: ReservationRequest) -> GrantedReservation | InsufficientCredits:
        answer, has_retried = await self._ask(self._batches, request)
        # After a lost connection, the repeated reservation may be our own.
        if isinstance(answer, GrantedReservation) and answer.is_repeated and not has_retried:
            raise errors.Internal("a request id was used twice", hint="retry the request")
        return answer

    async def _exhausted(self, answer: InsufficientCredits, request: ReservationRequest) -> errors.BudgetExhausted:
        """Explain the refusal, as far as PostgreSQL can be read."""
        try:
            account = await self._store.read_account(request.owner, request.spending)
            held = account.reserved_micro
            if answer.limited_by == "key" and request.key_id is not None:
                _, held = await self._store.read_key_spending(request.owner, request.key_id)
        except errors.Unavailable:
            return refusals.explain(answer, request)
        return refusals.explain(answer, request, account.allowance, held, self.billing_page)

    async def _ask(self, batches: "QueryBatching[Question, Answer]", question: Question) -> tuple[Answer, bool]:
        """Return the answer, and whether PostgreSQL was asked more than once."""
        gives_up_at, suspensions = self._clock() + RESERVE_SECONDS, self._suspend_detector.suspensions
        has_retried = was_suspended = False
        while True:
            try:
                return await batches.ask(question), has_retried
            except errors.Unavailable as error:
                if not was_suspended and self._suspend_detector.suspensions > suspensions:
                    # This process was suspended, so give PostgreSQL its time once more.
                    was_suspended, gives_up_at = True, self._clock() + RESERVE_SECONDS
                if self._clock() >= gives_up_at:
                    raise LedgerUnavailable("the ledger can't be reached", hint="retry soon", retry_after_seconds=2) from error
            has_retried = True
            await asyncio.sleep(0.1)

    async def _reserve_all(self, requests: Sequence[ReservationRequest]) -> list[GrantedReservation | InsufficientCredits]:
        began = time.perf_counter()
        try:
            return await self._store.reserve(requests, gateway=self._gateway, lease_seconds=LEASE_SECONDS)
        finally:
            self._metrics.ledger_reserve_seconds.observe(time.perf_counter() - began)


#: Maximum batch size, so that the first query doesn't wait too long for the last.
MAX_TOGETHER = 200
#: Concurrent batches: one is computed while another commits.
WRITERS = 2
#: Limit on waiting for the answer after a cancellation; stores have shorter deadlines.
CANCEL_SECONDS = 5.0


class QueryBatching(Generic[Question, Answer]):
    """Batches small queries to a store: those that arrive while one batch runs form the next. Use ``running``. ``ask_all`` answers all
    questions in order, or raises for all of them."""

    def __init__(self, ask_all: Callable[[Sequence[Question]], Awaitable[Sequence[Answer]]]) -> None:
        self._ask_all = ask_all
        self._waiting: deque[tuple[Question, asyncio.Future[Answer]]] = deque()
        self._arrived = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["QueryBatching[Question, Answer]"]:
        async with lifecycle.background() as tasks:
            for _ in range(WRITERS):
                tasks.create_task(background_tasks.keep("query batches", self._run_batches))
            yield self

    async def ask(self, question: Question) -> Answer:
        """Return the answer, or raise what ``ask_all`` raised. A cancellation takes effect after the answer, so that a cleanup follows
        whatever the query did."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        self._arrived.set()
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            await asyncio.wait([answer], timeout=CANCEL_SECONDS)
            raise

    async def _run_batches(self) -> None:
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            batch = [self._waiting.popleft() for _ in range(min(MAX_TOGETHER, len(self._waiting)))]
            try:
                answers = await self._ask_all([question for question, _ in batch])
            except errors.AimeshError as error:
                _refuse(batch, error)
                continue
            except asyncio.CancelledError:
                _refuse(batch, errors.Draining("this gateway is stopping"))
                raise
            except BaseException:
                # Nobody must wait for ever for this batch; the next ones are answered after a pause.
                _refuse(batch, errors.Internal("a bug in the service", hint="its log has the details"))
                raise
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)


def _refuse(batch: Sequence[tuple[object, asyncio.Future[Any]]], error: errors.AimeshError) -> None:
    for _, future in batch:
        future.set_exception(error)
        # Mark it as retrieved: the caller may be gone.
        future.exception()


#: Claims per statement.
BATCH = 500
#: Pause between statements, so that a busy gateway records many claims per commit. A request that ends sooner needs none.
PAUSE_SECONDS = 0.02
_RETRY_SECONDS = 0.25

#: Records at most one claim per request, and returns the recorded ones. Raises Unavailable.
RecordClaims = Callable[[Sequence[WorkerClaim]], Awaitable[set[RequestId]]]


class WorkerClaims:
    """Records in each reservation which worker runs its request, so that only that worker can bill it if this gateway dies.

    The worker doesn't wait for the record; a gateway that dies before it bills nothing.
    """

    def __init__(self, record: RecordClaims) -> None:
        self._record = record
        #: In order of each request's claims.
        self._pending: dict[RequestId, list[WorkerClaim]] = {}
        self._arrived = asyncio.Event()
        self._is_healthy = True

    def add(self, claim: WorkerClaim) -> None:
        """Queue the claim. Never waits."""
        self._pending.setdefault(claim.request_id, []).append(claim)
        self._arrived.set()

    def forget(self, request_id: RequestId) -> None:
        """Drop the request's claims: its row settles the reservation. Safe to call twice."""
        self._pending.pop(request_id, None)

    async def write(self) -> None:
        while True:
            if not self._pending:
                self._arrived.clear()
                await self._arrived.wait()
            await asyncio.sleep(PAUSE_SECONDS)
            claims = [pending[0] for pending, _ in zip(self._pending.values(), range(BATCH), strict=False)]
            if claims and not await self._recorded(claims):
                await asyncio.sleep(_RETRY_SECONDS)

    async def _recorded(self, claims: Sequence[WorkerClaim]) -> bool:
        """Return whether anything was recorded. Claims with a locked row are retried while their request is open."""
        try:
            recorded = await self._record(claims)
        except errors.Unavailable as error:
            if self._is_healthy:
                _log.warning("worker claims are waiting", reason=error.message, claims=len(self._pending))
            self._is_healthy = False
            return False
        self._is_healthy = True
        for claim in claims:
            pending = self._pending.get(claim.request_id)
            if claim.request_id not in recorded or pending is None:
                continue
            pending.remove(claim)
            if not pending:
                del self._pending[claim.request_id]
        return bool(recorded)


#: Interval of the suspend detector.
TICK_SECONDS = 0.25
#: A loop that is this late was suspended; a busy one is late by a tenth of it.
SUSPENDED_SECONDS = 1.0


class SuspendDetector:
    """Detects that this process was suspended, with its machine or by a busy scheduler. Run ``watch`` while it is used.

    Deadlines that passed meanwhile fire on wake-up, and don't indicate that the other side failed to answer.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: Number of suspensions.
        self.suspensions = 0

    def record_tick(self, last: float) -> float:
        """Handle a tick that was due TICK_SECONDS after the ``last`` one."""
        now = self._clock()
        if now - last >= TICK_SECONDS + SUSPENDED_SECONDS:
            self.suspensions += 1
        return now

    async def watch(self) -> None:
        """Run until canceled."""
        last = self._clock()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            last = self.record_tick(last)
