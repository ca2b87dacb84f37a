"""The one way of an inference request, whichever door it came in by: admit, limit, reserve, find a worker, run, settle.

    async with pipeline.run(principal, request, seconds=60) as running:
        async for chunk in running: …
    # its row is written; only now is the caller told how it ended
    running.result

Every request that enters ``run`` has exactly one row, however it ends; one that this gateway leaves to another has that one's.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from services.gateway import node_interface, prompt_fingerprint
from services.gateway.active_request import ActivePrompt, ActiveRequest
from services.gateway.admission import prompt_admission
from services.gateway.billing.ledger import CostBounds, HeldCredits, Ledger
from services.gateway.billing.request_record import RequestRow, ReservationState
from services.gateway.billing.usage_recorder import PendingRow, UsageRecorder
from services.gateway.completion_counters import CompletionCounters
from services.gateway.failover.relay import Relay, Said
from services.gateway.idempotency import cache_keys
from services.gateway.idempotency.response_cache import ResponseCache
from services.gateway.limits import limit_rules
from services.gateway.limits.quotas import LimitReached, Quotas
from services.gateway.scheduling import prefix_affinity, routing
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.worker_claims import Claim
from shared import errors
from shared.api import events, inference
from shared.api.auth import Principal
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage, Usage
from shared.spans import REQUEST_ID
from shared.telemetry import Metrics, logs, tracing
from shared.telemetry.answer_metrics import GatewayAnswers, MeasuredAnswer
from shared.types import MicroCredits, ModelName, RequestStatus, Role

#: Of an answer whose caller names no number, where the model has room for as many: a whole page, and a bounded price.
DEFAULT_MAX_TOKENS = 4096
#: How often a request that waits for a worker looks again.
_LOOK_SECONDS = 0.1
_MAX_ROW_NUMBER = 2**31 - 1
#: A deadline may fire this much early by our clock.
_CLOCK_SLACK_SECONDS = 0.05

_log = logs.get(part="pipeline")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineDependencies:
    """What the pipeline works with."""

    quotas: Quotas
    ledger: Ledger
    dispatch: Dispatch
    relay: Relay
    recorder: UsageRecorder
    directory: node_interface.NodeDirectory
    names: routing.ModelNames
    metrics: Metrics
    publish: Callable[[events.Event], None]
    prompt_hash_secret: str
    #: None where it is turned off.
    responses: ResponseCache | None = None
    cache_only_when_asked: bool = False


@dataclass(frozen=True, slots=True)
class _Order:
    """A request that was let in."""

    messages: tuple[ChatMessage, ...]
    #: With a seed only where its caller gave one.
    config: inference.ModelConfig
    wish: routing.WorkerRequirements
    salt: str
    seconds: float
    streamed: bool


class Pipeline:
    """Safe for any number of requests at once. For the first ``patience_seconds`` a model that nobody serves may have workers that
    are not found yet; as long does a request wait for those that were there a moment ago."""

    def __init__(self, parts: PipelineDependencies, clock: Callable[[], float] = time.monotonic, *, patience_seconds: float = 0.0) -> None:
        self._parts = parts
        self.clock = clock
        self._patience_seconds = patience_seconds
        self._answers_ended = GatewayAnswers(parts.metrics)
        self._endings = CompletionCounters(parts.metrics)
        self._knows_all_at = clock() + patience_seconds

    @asynccontextmanager
    async def run(
        self,
        principal: Principal,
        request: InferenceRequest,
        *,
        seconds: float,
        drawn_seed: int | None = None,
        cache: cache_keys.CacheRequest = cache_keys.CacheRequest.NOTHING,
        streamed: bool = True,
        goes_on_elsewhere: Callable[[], bool] = lambda: False,
    ) -> AsyncIterator[ActivePrompt]:
        """``drawn_seed``: of a request that names none, so that it can be made again. ``streamed``: its caller reads along, token by
        token. ``goes_on_elsewhere``: as ``ActiveRequest`` has it. Raises what a caller may see: BadRequest, TooLarge, UnknownModel, what
        ``let_in`` raises, or the worker's own error. An exception out of the block, a cancel included, ends the generation on the
        worker."""
        running = ActivePrompt(self.clock)
        running.seen_at_end, running.goes_on_elsewhere = not streamed, goes_on_elsewhere
        async with self.recorded(running, principal, seconds=seconds):
            order = await self._prepare(running, principal, request, seconds, streamed=streamed)
            running.answers = self._answers(running, order, drawn_seed, cache)
            yield running

    @asynccontextmanager
    async def recorded(self, running: ActiveRequest, principal: Principal, *, seconds: float) -> AsyncIterator[None]:
        """Closes what the request runs and gives it its row, however the block ends."""
        self._parts.recorder.reserve()
        failure: errors.AimeshError | None = None
        status, is_left = RequestStatus.ERROR, False
        work = tracing.span("inference", {REQUEST_ID: str(running.request_id)})
        try:
            with work:
                yield
            status = RequestStatus.SUCCESS if running.complete else RequestStatus.CANCELLED
        except errors.AimeshError as error:
            failure = error
            status = _status(error)
            raise
        except asyncio.CancelledError:
            # A deadline reaches a handler as a cancel, too.
            status = RequestStatus.TIMEOUT if running.seconds_so_far >= seconds - _CLOCK_SLACK_SECONDS else RequestStatus.CANCELLED
            is_left = status is RequestStatus.CANCELLED and running.goes_on_elsewhere()
            raise
        finally:
            try:
                if running.answers is not None:
                    await running.answers.aclose()
            finally:
                # Without an await between here and `add`: whatever happens to this task, the row is in the queue.
                running.end()
                written = None if is_left else self._record(running, principal, status, failure)
                if is_left:
                    # The gateway that continues it, or that ends its overdue reservation, writes its row.
                    self._parts.recorder.release()
                    self._parts.ledger.ended(running.request_id)
            if running.spent is not None:
                await self._parts.quotas.settle(running.spent, tokens=0 if running.cached else running.usage.total_tokens)
            if written is not None and (status is RequestStatus.SUCCESS or failure is not None):
                with tracing.span("ledger.settle"):
                    await self._parts.recorder.written(written)

    async def find_model(self, running: ActiveRequest, wanted: ModelName | None, *, for_answers: bool = True) -> ModelName:
        """Waits for a while where who serves it may only be missing for a moment. Raises UnknownModel or NotReachable, and BadRequest
        where ``for_answers`` and it gives none."""
        parts = self._parts
        gives_up_at = self.clock() + self._patience_seconds
        while True:
            now = self.clock()
            workers = parts.directory.entries(Role.WORKER)
            try:
                running.model = routing.resolve(wanted, workers, parts.names, just_started=now < self._knows_all_at)
                break
            except errors.NotReachable:
                if now >= gives_up_at or not (now < self._knows_all_at or routing.are_missed(workers, datetime.now(UTC))):
                    raise
            await asyncio.sleep(_LOOK_SECONDS)
        if for_answers:
            routing.ensure_answers(running.model, parts.directory.usable(Role.WORKER))
        return running.model

    async def let_in(
        self, running: ActiveRequest, principal: Principal, wish: routing.WorkerRequirements, bounds: CostBounds
    ) -> HeldCredits:
        """Find out that there is a place for it, count it against the limits of its caller and its model, and hold what it may cost.
        Raises Overloaded, Limited or TokensTooLarge, BudgetExhausted or LedgerUnavailable: never one for another."""
        parts = self._parts
        # Who is missing for a moment may be back before a worker is needed.
        with contextlib.suppress(errors.NotReachable):
            parts.dispatch.ensure_place(wish)
        tokens = wish.prompt_tokens + wish.max_tokens
        try:
            with tracing.span("ratelimit.acquire"):
                running.spent = await parts.quotas.spend(principal, wish.model, running.request_id, tokens=tokens, seconds=bounds.seconds)
        except LimitReached as error:
            labels = {"scope": error.allowance.scope, "tier": principal.tier, "model": wish.model}
            parts.metrics.rate_limit_violations.labels(**labels).inc()
            raise
        try:
            with tracing.span("ledger.reserve"):
                running.held = await parts.ledger.reserve(principal, running.request_id, bounds)
        except errors.AimeshError as error:
            limit_rules.tell_with(error, running.allowance)
            raise
        return running.held

    async def _prepare(
        self, running: ActivePrompt, principal: Principal, request: InferenceRequest, seconds: float, *, streamed: bool
    ) -> "_Order":
        secret = self._parts.prompt_hash_secret
        admitted = prompt_admission.admit(request)
        running.admitted(admitted, prompt_fingerprint.fingerprint(admitted.messages, secret))
        model = await self.find_model(running, admitted.model)
        prompt_admission.check_open(principal, model)
        sampling = admitted.sampling
        answers = sampling.n or 1
        default = self._default_max_tokens(principal, model, admitted.likely_prompt_tokens, answers)
        bounds = CostBounds(
            model=model,
            prompt_tokens=admitted.most_prompt_tokens,
            max_tokens=sampling.max_tokens or default,
            answers=answers,
            seconds=seconds,
        )
        salt = prompt_fingerprint.salt(principal.tenant_id, secret)
        wish = routing.WorkerRequirements(
            model=model,
            tenant=principal.tenant_id,
            limited_as=principal.limited_as,
            prompt_tokens=admitted.likely_prompt_tokens,
            max_tokens=bounds.max_tokens * answers,
            beginnings=prefix_affinity.beginnings(admitted.messages, salt, sampling.tools),
        )
        held = await self.let_in(running, principal, wish, bounds)
        sampling = msgspec.structs.replace(sampling, max_tokens=held.max_tokens)
        config = inference.ModelConfig(**msgspec.structs.asdict(sampling), model=model)
        return _Order(admitted.messages, config, wish, salt, seconds, streamed)

    def _answers(
        self, running: ActivePrompt, order: "_Order", drawn_seed: int | None, cache: cache_keys.CacheRequest
    ) -> AsyncGenerator[Said]:
        """From the cache or from a worker."""
        parts = self._parts
        config = order.config
        if config.seed is None:
            # Ours rather than the worker's, so that another worker could draw the same tokens.
            config = msgspec.structs.replace(config, seed=secrets.randbits(63) if drawn_seed is None else drawn_seed)
        use = cache_keys.plan(cache, order.config, only_when_asked=parts.cache_only_when_asked)
        is_direct = parts.responses is None or not use
        # What is made for several readers, or read later, runs ahead of all of them; what is not streamed is seen at its end.
        paced = is_direct and order.streamed and drawn_seed is None
        prompt = inference.ProcessPrompt(
            order.messages, config, running.request_id, order.salt, streamed=order.streamed, reader_paced=paced
        )

        def runs_on(claim: Claim, delivered_tokens: int) -> None:
            running.runs_on(claim)
            parts.ledger.claimed(running.request_id, claim.worker.node, delivered_tokens if paced else 0)

        if parts.responses is None or not use:
            return parts.relay.generate(prompt, order.wish, seconds=order.seconds, runs_on=runs_on)
        digest = routing.digest_of(order.wish.model, parts.directory.usable(Role.WORKER))
        question = cache_keys.CacheQuestion(order.wish.tenant, order.messages, order.config, digest)

        def generate(seconds: float) -> AsyncGenerator[Said]:
            return parts.relay.generate(prompt, order.wish, seconds=seconds, runs_on=runs_on)

        return parts.responses.answer(question, generate, use=use, seconds=order.seconds, came=running.came)

    def _default_max_tokens(self, principal: Principal, model: ModelName, prompt_tokens: int, answers: int) -> int:
        """For a request that names no number: what the model has room for, and what the limits ever let through."""
        # 0 where nobody is there to tell.
        most = min(DEFAULT_MAX_TOKENS, routing.least_context(model, self._parts.directory.usable(Role.WORKER)) or DEFAULT_MAX_TOKENS)
        limit = self._parts.quotas.most_tokens(principal, model)
        return most if limit is None else max(1, min(most, (limit - prompt_tokens) // answers))

    def _record(
        self, running: ActiveRequest, principal: Principal, status: RequestStatus, failure: errors.AimeshError | None
    ) -> PendingRow:
        usage = running.usage
        # Of an answer that is given as a whole a caller has nothing when it fails.
        is_free = running.undeliverable or (running.seen_at_end and status in {RequestStatus.ERROR, RequestStatus.TIMEOUT})
        row = RequestRow(
            id=running.request_id,
            user_id=principal.user_id,
            team_id=principal.team_id,
            api_key_id=principal.key_id,
            prompt_hash=running.prompt_hash,
            model_used=running.model,
            response_time_ms=min(running.response_time_ms, _MAX_ROW_NUMBER),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            status=status,
            error_code=_error_code(status, failure),
            created_at=running.began_at,
            cost_micro=MicroCredits(0) if is_free else running.cost_micro,
            cached=running.cached,
            reservation=ReservationState.RELEASED if is_free else _reservation(status, usage),
            worker_owner=None if running.worker is None else running.worker.announcement.owner or None,
            worker_labels=() if running.worker is None else tuple(sorted(running.worker.announcement.labels.items())),
            begins_conversation=running.begins_conversation,
            saved_micro=running.saved_micro,
        )
        written = self._parts.recorder.add(row)
        self._parts.ledger.ended(row.id)
        # The row has whose request it was; the log has what an operator looks for by its id.
        _log.info(
            "request ended", status=row.status, error_code=row.error_code, model=row.model_used, milliseconds=row.response_time_ms,
            prompt_tokens=row.prompt_tokens, completion_tokens=row.completion_tokens,
        )  # fmt: skip
        self._count(row, running)
        return written

    def _count(self, row: RequestRow, running: ActiveRequest) -> None:
        answer = MeasuredAnswer(
            operation="chat" if isinstance(running, ActivePrompt) else "embeddings",
            method=running.method,
            model=row.model_used,
            seconds=row.response_time_ms / 1000,
            first_text_seconds=running.first_text_seconds,
            input_tokens=row.prompt_tokens,
            output_tokens=row.completion_tokens,
            at_once=_at_once(running),
            chunks=running.chunks,
            error=row.error_code or "",
        )
        self._answers_ended.ended(answer, asked=running.held is not None and not row.cached)
        self._endings.ended(row, was_read=running.first_text_seconds is not None, complete=running.complete)
        self._parts.publish(
            events.RequestCompleted(
                at=datetime.now(UTC),
                request_id=row.id,
                user_id=row.user_id,
                model=row.model_used,
                status=row.status,
                tokens=row.tokens_used,
                duration_ms=row.response_time_ms,
            )
        )


def _status(error: errors.AimeshError) -> RequestStatus:
    match error:
        case errors.Limited():
            return RequestStatus.LIMITED
        case errors.DeadlineExceeded():
            return RequestStatus.TIMEOUT
        case errors.Cancelled():
            return RequestStatus.CANCELLED
        case errors.Poison():
            # It took workers down: the operator has to see it, no matter who sent it.
            return RequestStatus.ERROR
        case errors.CallerError():
            return RequestStatus.REJECTED
        case _:
            return RequestStatus.ERROR


def _at_once(running: ActiveRequest) -> int:
    """How many answers it has, as far as the worker has said so."""
    return max(1, len(running.result.finish_reasons)) if isinstance(running, ActivePrompt) and running.complete else 1


def _reservation(status: RequestStatus, usage: Usage) -> ReservationState:
    delivered = status is RequestStatus.SUCCESS or usage.completion_tokens > 0
    return ReservationState.SETTLED if delivered else ReservationState.RELEASED


def _error_code(status: RequestStatus, failure: errors.AimeshError | None) -> str | None:
    if status is RequestStatus.SUCCESS:
        return None
    if failure is not None:
        # A newer peer's code may be anything; the column holds 64 characters and no NUL.
        return "".join(letter for letter in errors.code_of(failure)[:64] if letter.isprintable())
    return {RequestStatus.TIMEOUT: errors.DeadlineExceeded.code, RequestStatus.ERROR: errors.AimeshError.code}.get(
        status, errors.Cancelled.code
    )
