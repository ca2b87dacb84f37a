"""Runs a request of any API: admits it, runs it on a worker, settles it, and writes its row.

    async with pipeline.run(principal, request, seconds=60) as running:
        async for number, chunk in running: …
    # the row is written before the caller learns how the request ended
    running.result

Every request that enters ``run`` or ``embed`` gets exactly one row, however it ends. If another gateway takes a request over, that
gateway writes the row.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import msgspec

from services.gateway import generation
from services.gateway.billing import route_metrics
from services.gateway.billing.reservations import WorkerClaim
from services.gateway.billing.route_metrics import RouteCounters
from services.gateway.billing.usage_recorder import PendingRow, UsageRecorder
from services.gateway.facts import request_record
from services.gateway.facts.request_record import RequestRow, ReservationState
from services.gateway.idempotency import cache_keys
from services.gateway.idempotency.cache_keys import NO_USE, CacheUse
from services.gateway.idempotency.idempotency_keys import KeyUse, OrphanedKeyUse
from services.gateway.idempotency.response_cache import ResponseCache
from services.gateway.limits import limit_rules
from services.gateway.relay import AnswerItem, Relay, TextRequest
from services.gateway.requests import active_prompt, active_texts, bounded_answers
from services.gateway.requests.active_prompt import ActivePrompt
from services.gateway.requests.active_request import NOT_COUNTED, ActiveAnswer, ActiveRequest, AdmittedRequest, OpenAnswers, milliseconds
from services.gateway.requests.active_texts import ActiveConversion, ActiveModeration, ActiveTexts, ActiveVectors, AskedTexts
from services.gateway.requests.bounded_answers import AnswerBounds
from services.gateway.requests.request_admission import RequestAdmission
from services.gateway.requests.request_validation import ModerationRequest
from services.gateway.requests.targets import ServingTarget, SharedClaims, TargetCall
from services.gateway.scheduling import routing
from services.gateway.scheduling.worker_claims import Claim
from shared import context, errors
from shared.api import events, inference
from shared.api.auth import Principal
from shared.api.embedding import EmbeddingRequest, RankingRequest, Vectors
from shared.api.gateway import InferenceRequest
from shared.api.inference import ConvertedPart, ModerationNotice, ModerationVerdict
from shared.spans import REQUEST_ID
from shared.telemetry import logs, tracing
from shared.telemetry.answer_metrics import GatewayAnswers, MeasuredAnswer
from shared.types import MicroCredits, ModelName, RequestStatus, Role

_MAX_ROW_NUMBER = 2**31 - 1
#: How early a deadline may fire by our clock.
_CLOCK_SLACK_SECONDS = 0.05
#: How long before its deadline an answer that is not streamed ends, so that its caller gets what there is instead of an error; less if the
#: caller has less time than ten times as much.
DEADLINE_MARGIN_SECONDS, DEADLINE_MARGIN_SHARE = 1.0, 0.1
#: How long a request waits for one check by a moderation model.
CHECK_SECONDS = 30.0

Answer = TypeVar("Answer", bound=ActiveAnswer)
Call = TypeVar("Call")
Texts = TypeVar("Texts", bound=ActiveTexts)
PromptAdmitted = AdmittedRequest[inference.ProcessPrompt]
PromptCall = TargetCall[inference.ProcessPrompt]
TextCall = TargetCall[TextRequest]
AnswerItems = AsyncGenerator[AnswerItem]
#: Makes an answer of an admitted request, given what opens the worker's stream.
NewAnswer = Callable[[ActiveRequest, AdmittedRequest[Call], OpenAnswers], Answer]
#: Opens the stream of an answer at one target, which takes at most so many seconds.
Start = Callable[[AdmittedRequest[Call], TargetCall[Call], float, Answer], AsyncGenerator[Any]]
#: Called when a request that says something about a rollout ends, with what stays at its target.
OnCompared = Callable[[RequestRow, bytes], object]
#: Called when a request ends that guardrails have looked at, with the seconds that they took.
OnGuarded = Callable[[RequestRow, Principal, float], object]

_log = logs.get(part="pipeline")


def _ignore(*_: object) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestObservers:
    """What follows the requests of a pipeline."""

    publish: Callable[[events.Event], object]
    on_compared: OnCompared = _ignore
    on_guarded: OnGuarded = _ignore
    #: The pipeline keeps the requests that run now here, with their callers.
    running: dict[ActiveRequest, Principal] = field(default_factory=dict)


class Pipeline:
    """Runs requests, each in the block of a context manager."""

    def __init__(
        self,
        admission: RequestAdmission,
        relay: Relay,
        recorder: UsageRecorder,
        observers: RequestObservers,
        *,
        most_seconds: float,
        responses: ResponseCache | None = None,
        cache_only_when_asked: bool = False,
    ) -> None:
        """``responses`` is None if the cache is disabled."""
        #: Time limit for a request, for callers without an earlier deadline.
        self.most_seconds = most_seconds
        self._admission = admission
        self._quotas, self._ledger = admission.quotas, admission.search.ledger
        self._relay = relay
        self._recorder = recorder
        self._observers = observers
        self._responses = responses
        self._cache_only_when_asked = cache_only_when_asked
        self.clock = admission.search.clock
        self._answers_ended = GatewayAnswers(admission.metrics)
        self._routes = RouteCounters(admission.metrics)

    @property
    def config_revision(self) -> int:
        """Return the revision of the configuration that new requests use."""
        return self._admission.search.source.config.revision

    def run(
        self,
        principal: Principal,
        request: InferenceRequest,
        *,
        seconds: float,
        key_use: KeyUse | None = None,
        cache: cache_keys.CacheRequest = cache_keys.CacheRequest.NOTHING,
        streamed: bool = True,
        continues_elsewhere: Callable[[], bool] = lambda: False,
    ) -> AbstractAsyncContextManager[ActivePrompt]:
        """Run a prompt. ``key_use``: its seed, model and guardrails make the answer reproducible. ``streamed``: the caller reads token by
        token; under a key, others may. ``continues_elsewhere``: see ``ActiveRequest``. Raises what ``RequestAdmission`` raises, or the
        worker's error. Leaving the block with an exception, cancellation included, ends the generation on the worker."""
        is_all_or_nothing = not streamed and key_use is None
        running = ActiveRequest(
            active_prompt.LABELS,
            self.clock,
            began_at=self._ledger.database_clock.now(),
            is_all_or_nothing=is_all_or_nothing,
            continues_elsewhere=continues_elsewhere,
        )
        running.admission.ignored_fields = request.ignored_fields

        def start(admitted: PromptAdmitted, call: PromptCall, seconds: float, answer: ActivePrompt) -> AnswerItems:
            items = self._answers(running, answer, call, seconds=seconds, key_use=key_use, cache=cache)
            is_whole, is_open_ended = not streamed or answer.is_all_or_nothing, call.call.open_ended
            if not (is_whole or is_open_ended):
                return items
            held = running.admission.held.max_tokens
            most = call.call.model_config.max_tokens or held
            bounds = AnswerBounds(held=held, most=most, answers=admitted.answers, is_open_ended=is_open_ended)
            extend = partial(self._admission.extend_hold, running.admission, principal, admitted, call.target)
            left = self._whole_seconds_left(running, seconds) if is_whole else None
            return bounded_answers.bounded(items, bounds, extend, seconds_left=left, is_free=lambda: running.delivered.cached)

        admit = partial(self._admission.admit_prompt, running, principal, request, seconds, key_use=key_use, moderate=self._moderate_for)
        return self._recorded(running, principal, seconds, admit, new_answer=ActivePrompt, start=start)

    def embed(self, principal: Principal, request: EmbeddingRequest, *, seconds: float) -> AbstractAsyncContextManager[ActiveVectors]:
        """Compute embeddings; otherwise like ``run``."""
        return self._read(active_texts.AskedEmbedding(request, forbids_external=request.forbid_external), ActiveVectors, principal, seconds)

    def rank(self, principal: Principal, request: RankingRequest, *, seconds: float) -> AbstractAsyncContextManager[ActiveVectors]:
        """Rank texts by their relevance to a query; otherwise like ``embed``."""
        return self._read(active_texts.AskedRanking(request, forbids_external=request.forbid_external), ActiveVectors, principal, seconds)

    def moderate(
        self, principal: Principal, request: ModerationRequest, *, seconds: float
    ) -> AbstractAsyncContextManager[ActiveModeration]:
        """Say whether texts are harmful; otherwise like ``run``. Call ``read`` in the block."""
        return self._read(
            active_texts.AskedModeration(request, forbids_external=request.forbid_external), ActiveModeration, principal, seconds
        )

    def convert(
        self, principal: Principal, request: inference.Conversion, *, seconds: float, forbids_external: bool
    ) -> AbstractAsyncContextManager[ActiveConversion]:
        """Convert tokens by a model, for free; otherwise like ``run``. An empty model is the default. Call ``read`` in the block."""
        return self._read(active_texts.AskedConversion(request, forbids_external=forbids_external), ActiveConversion, principal, seconds)

    def _read(
        self, asked: AskedTexts[Any, Any], new_answer: NewAnswer[Any, Texts], principal: Principal, seconds: float
    ) -> AbstractAsyncContextManager[Texts]:
        running = ActiveRequest(asked.labels, self.clock, began_at=self._ledger.database_clock.now())

        def start(_admitted: object, call: TextCall, seconds: float, _answer: object) -> AsyncGenerator[object]:
            on_claim = partial(self._record_claim, running, call.target, is_paced=False)
            return self._relay.read(call.call, call.requirements, seconds=seconds, on_claim=on_claim)

        admit = partial(self._admission.admit_texts, running, asked, principal, seconds)
        return self._recorded(running, principal, seconds, admit, new_answer=new_answer, start=start)

    async def _moderate_for(
        self, principal: Principal, checked: InferenceRequest, route: ModelName, texts: Sequence[str]
    ) -> tuple[ModerationVerdict, ...]:
        """Moderate texts of another request as its policy wants it, with a row of their own."""
        request = ModerationRequest(tuple(texts), route, checked.forbid_external, by_policy=True)
        before = context.current.get()
        context.another()
        try:
            async with asyncio.timeout(CHECK_SECONDS), self.moderate(principal, request, seconds=CHECK_SECONDS) as running:
                return await running.read()
        except TimeoutError as error:
            raise errors.DeadlineExceeded(f"{route} took more than {CHECK_SECONDS:g} s") from error
        finally:
            context.current.set(before)

    @asynccontextmanager
    async def _recorded(
        self,
        running: ActiveRequest,
        principal: Principal,
        seconds: float,
        admit: Callable[[], Awaitable[AdmittedRequest[Call]]],
        *,
        new_answer: NewAnswer[Call, Answer],
        start: Start[Call, Answer],
    ) -> AsyncIterator[Answer]:
        """Close the worker's stream and write the row, however the block ends."""
        self._recorder.reserve()
        self._observers.running[running] = principal
        answer: Answer | None = None
        failure: errors.AimeshError | None = None
        status, is_taken_over = RequestStatus.ERROR, False
        try:
            with tracing.span("inference", {REQUEST_ID: str(running.request_id)}):
                admitted = await admit()
                first, *others = admitted.calls
                # Now, because the headers of the answer name the route.
                running.attempts.try_target(first.target)
                one, several = partial(start, admitted, first, seconds), partial(self._first_to_answer, admitted, start, seconds)
                running.answer = answer = new_answer(running, admitted, several if others else one)
                yield answer
            status = RequestStatus.SUCCESS if running.delivered.complete else RequestStatus.CANCELLED
        except errors.AimeshError as error:
            failure = error
            if (usage := running.admission.limit_usage) is not NOT_COUNTED:
                limit_rules.attach_limits(error, usage.tightest)
            status = request_record.status_of(error)
            request_record.mark_row(error)
            raise
        except asyncio.CancelledError:
            # A deadline reaches a handler as a cancellation, too.
            is_late = running.seconds_so_far() - running.attempts.start_wait_seconds >= seconds - _CLOCK_SLACK_SECONDS
            status = RequestStatus.TIMEOUT if is_late else RequestStatus.CANCELLED
            is_taken_over = status is RequestStatus.CANCELLED and running.continues_elsewhere()
            raise
        finally:
            try:
                if answer is not None:
                    await answer.answers.aclose()
            finally:
                # No await between here and `add`: the row is queued even if this task is canceled.
                running.end(status)
                del self._observers.running[running]
                written = None
                if not is_taken_over:
                    written = self._record(running, principal, status, failure)
                else:
                    # The gateway that continues the request, or settles its overdue reservation, writes the row.
                    self._recorder.release()
                    self._ledger.forget(running.request_id)
                # Its traceback has this frame: a cycle, which would keep the prompt until a collection. Those are rare.
                has_failed, failure = failure is not None, None
            tokens = 0 if running.delivered.cached else running.totals.usage.total_tokens
            await self._quotas.settle(running.admission.limit_usage, tokens=tokens)
            if written is not None and (status is RequestStatus.SUCCESS or has_failed):
                with tracing.span("ledger.settle"):
                    await self._recorder.wait_until_saved(written)

    async def _first_to_answer(
        self, admitted: AdmittedRequest[Call], start: Start[Call, Answer], seconds: float, answer: Answer
    ) -> AsyncGenerator[Any]:
        """Answer from the first target that delivers something."""
        ends_at, attempts = self.clock() + seconds, answer.attempts
        for call in admitted.calls:
            attempts.try_target(call.target)
            has_begun = False
            try:
                async with aclosing(start(admitted, call, ends_at - self.clock(), answer)) as items:
                    async for item in items:
                        has_begun = has_begun or _is_delivery(item)
                        yield item
            except errors.AimeshError as error:
                if has_begun or not call.requirements.has_alternative or not generation.may_try_another_target(error):
                    raise
                if not self._relay.budget.spend(self.clock()):
                    raise
                _log.warning("target failed before its first token", model=call.target.model, code=errors.code_of(error))
                self._routes.count_fallback(*call.target.spending_key, error)
                attempts.leave_target(error)
            else:
                return

    def _record_claim(
        self,
        running: ActiveRequest,
        target: ServingTarget,
        claim: Claim,
        delivered_tokens: int,
        *,
        is_paced: bool,
        shared: SharedClaims | None = None,
    ) -> None:
        running.attempts.add_claim(target, claim)
        if shared is not None:
            shared.claims.append((target, claim))
        if (price := running.admission.held.prices.get(target.model)) is not None:
            delivered = delivered_tokens if is_paced else 0
            self._ledger.record_claim(
                WorkerClaim(running.request_id, claim.worker.node, delivered, target.model, price.id, target.route, claim.provider)
            )

    def _answers(
        self,
        running: ActiveRequest,
        answer: ActivePrompt,
        target_call: PromptCall,
        *,
        seconds: float,
        key_use: KeyUse | None,
        cache: cache_keys.CacheRequest,
    ) -> AnswerItems:
        admitted, requirements = target_call.call, target_call.requirements
        config, streamed = admitted.model_config, not answer.is_all_or_nothing
        responses: ResponseCache | None = None
        use = NO_USE
        if config.is_deterministic or target_call.target.cache_seconds is not None:
            use = self._plan_cache(cache, config, target_call.target, key_use)
            responses = self._responses if use else None
        # Cached and idempotent answers have several readers and run ahead of them; an unstreamed answer is read at its end.
        paced = responses is None and streamed and key_use is None
        seeded = config
        if config.seed is None:
            # Set by the gateway, so that another worker can draw the same tokens after a failover.
            seeded = msgspec.structs.replace(config, seed=secrets.randbits(63) if key_use is None else key_use.seed)
        prompt = msgspec.structs.replace(admitted, model_config=seeded, streamed=streamed, reader_paced=paced)
        on_claim = partial(self._record_claim, running, target_call.target, is_paced=paced)
        if responses is None:
            return self._relay.generate(prompt, requirements, seconds, on_claim=on_claim)
        shared = SharedClaims()
        generate = partial(self._relay.generate, prompt, requirements, on_claim=partial(on_claim, shared=shared))
        digest = routing.digest_of(requirements.model, self._admission.search.directory.usable(Role.WORKER))
        assert not isinstance(admitted.prompt, str)  # admission converts it to messages
        question = cache_keys.CacheQuestion(
            requirements.tenant, admitted.prompt, config, digest, requirements.placement.external, target_call.target.cache_seconds
        )
        return responses.answer(question, generate, use=use, seconds=seconds, set_origin=answer.set_origin, shared=shared)

    def _whole_seconds_left(self, running: ActiveRequest, seconds: float) -> Callable[[], float]:
        """Return what tells how long an answer that is not streamed may still take."""
        margin, attempts = min(DEADLINE_MARGIN_SECONDS, DEADLINE_MARGIN_SHARE * seconds), running.attempts
        # A start of a worker doesn't count.
        ends_at = self.clock() + seconds - margin - attempts.start_wait_seconds
        return lambda: ends_at + attempts.start_wait_seconds - self.clock()

    def _plan_cache(
        self, cache: cache_keys.CacheRequest, config: inference.ModelConfig, target: ServingTarget, key_use: KeyUse | None
    ) -> CacheUse:
        """Raises AnswerGone if the caller has a part of an answer that can't be had again."""
        same_requests = target.cache_seconds is not None
        use = cache_keys.plan(cache, config, only_when_asked=self._cache_only_when_asked, same_requests=same_requests)
        if not use.read or config.is_deterministic or not isinstance(key_use, OrphanedKeyUse):
            return use
        if key_use.model is None and key_use.is_resumed:
            # It came from the cache, which may have another answer by now.
            raise errors.AnswerGone(
                "the gateway that ran this request is gone, and the cached answer may have changed",
                hint="send the request again without Last-Event-ID",
            )
        # A dead gateway had begun with the seed of the key; a cached answer was drawn with another one.
        return use if key_use.model is None else CacheUse(read=False, write=use.write)

    def _record(
        self, running: ActiveRequest, principal: Principal, status: RequestStatus, failure: errors.AimeshError | None
    ) -> PendingRow:
        answer, delivered, record, attempts = running.answer, running.delivered, running.admission, running.attempts
        target, claim = attempts.target, attempts.claims[-1][1] if attempts.claims else None
        route, first_text = attempts.route, delivered.first_text_seconds
        totals, usage = running.totals, running.totals.usage
        # The caller of an unstreamed answer gets nothing if it fails or is too large for the caller's API, so it costs nothing.
        is_lost = status in {RequestStatus.ERROR, RequestStatus.TIMEOUT} or isinstance(failure, errors.TooLarge)
        is_free = is_lost and answer is not None and answer.is_all_or_nothing
        variant_failed: bool | None = None
        # A conversion says nothing about the answers of a target.
        if route is not None and not isinstance(answer, ActiveConversion):
            variant_failed = attempts.find_fault(status, failure, complete=delivered.complete, cached=delivered.cached)
        row = RequestRow(
            id=running.request_id,
            user_id=principal.user_id,
            team_id=principal.team_id,
            api_key_id=principal.key_id,
            prompt_hash=record.prompt_hash,
            model_used=None if target is None else target.model,
            response_time_ms=min(totals.response_time_ms, _MAX_ROW_NUMBER),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            status=status,
            error_code=None if status is RequestStatus.SUCCESS else request_record.error_code_of(status, failure),
            error_field=None if failure is None else request_record.logged_field_of(failure),
            ignored_fields=record.ignored_fields or None,
            created_at=running.began_at,
            cost_micro=MicroCredits(0) if is_free else totals.cost_micro,
            cached=delivered.cached,
            reservation=ReservationState.RELEASED if is_free else request_record.reservation_of(status, usage),
            worker_owner=None if claim is None else claim.worker.announcement.owner or None,
            worker_labels=() if claim is None else tuple(sorted(claim.worker.announcement.labels.items())),
            begins_conversation=record.begins_conversation,
            saved_micro=totals.saved_micro,
            route=route,
            provider=None if claim is None else claim.provider,
            attempts=len(attempts.claims),
            spending=totals.spending,
            avoided_micro=totals.avoided_micro,
            first_token_ms=None if first_text is None else min(milliseconds(first_text), _MAX_ROW_NUMBER),
            variant_failed=variant_failed,
            is_counted_late=running.is_counted_late,
            guard=running.guard_counts if record.is_guarded else (),
        )
        written = self._recorder.add(row)
        self._ledger.forget(row.id)
        # Operators search the log by request id; the caller's identity is only in the row.
        _log.info(
            "request ended", status=row.status, error_code=row.error_code, model=row.model_used, milliseconds=row.response_time_ms,
            prompt_tokens=row.prompt_tokens, completion_tokens=row.completion_tokens,
        )  # fmt: skip
        self._count(row, running, principal)
        return written

    def _count(self, row: RequestRow, running: ActiveRequest, principal: Principal) -> None:
        delivered, answer = running.delivered, running.answer
        first_text = delivered.first_text_seconds
        measured = MeasuredAnswer(
            operation=running.operation,
            method=running.method,
            model=row.model_used,
            seconds=row.response_time_ms / 1000,
            first_text_seconds=first_text,
            input_tokens=row.prompt_tokens,
            output_tokens=row.completion_tokens,
            reasoning_tokens=running.totals.usage.reasoning_tokens,
            at_once=delivered.answers,
            chunks=delivered.at.pieces,
            error=row.error_code or "",
        )
        self._answers_ended.ended(measured, asked=bool(running.admission.held.prices) and not row.cached)
        metrics = self._admission.metrics
        if row.cost_micro and row.model_used is not None:
            metrics.cost.labels(self._answers_ended.label_of(row.model_used)).inc(row.cost_micro)
        if row.error_code is not None and first_text is not None and not delivered.complete:
            metrics.streams_aborted.labels(reason=route_metrics.label_of(row.error_code)).inc()
        if row.route is not None or row.spending:
            self._routes.count_end(row, first_text)
        if row.route is not None and row.route.is_compared and answer is not None:
            self._observers.on_compared(row, answer.choice.unit)
        guard_seconds = running.admission.guard_seconds + delivered.guard_seconds
        if row.guard or guard_seconds:
            self._observers.on_guarded(row, principal, guard_seconds)
        ended = events.RequestCompleted(
            at=datetime.now(UTC),
            request_id=row.id,
            user_id=row.user_id,
            model=row.model_used,
            status=row.status,
            tokens=row.tokens_used,
            duration_ms=row.response_time_ms,
        )
        self._observers.publish(ended)


def _is_delivery(item: object) -> bool:
    """Return whether the caller gets a part of the answer."""
    waits = isinstance(item, (ModerationNotice, ConvertedPart)) or (isinstance(item, (inference.Chunk, Vectors)) and item.waiting)
    return not (waits or isinstance(item, inference.PromptAccepted))
