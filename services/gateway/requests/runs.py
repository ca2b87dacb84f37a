"""Runs requests of all APIs: admits each, has workers answer it, settles it, and writes its row.

    result = await runs.answer(principal, request, reader, seconds=60)

Every run gets exactly one row, however it ends, before its caller learns how. If another gateway takes a run over, that gateway writes the
row. Under an idempotency key, a request runs once, also after its caller has left, and a repeat reads the same answer. Partial embeddings
are useless, so an embedding request that fails halfway frees its key.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any, Protocol, TypeVar

import msgspec

from services.gateway.billing.reservations import WorkerClaim
from services.gateway.billing.usage_recorder import UsageRecorder
from services.gateway.facts import line_run
from services.gateway.facts.bad_field import BadField
from services.gateway.facts.line_run import LineRun
from services.gateway.facts.reader import AnswerHead, Reader
from services.gateway.facts.request_record import RequestLabels, RequestRow
from services.gateway.facts.waiting_request import WaitingRequest
from services.gateway.idempotency import cache_keys
from services.gateway.idempotency.cache_keys import NO_USE, CacheUse
from services.gateway.idempotency.idempotency_keys import FIELD, IdempotentRequest, KeyUse, OrphanedKeyUse
from services.gateway.idempotency.idempotent_requests import IdempotentRequests, KeyRecorder
from services.gateway.idempotency.response_cache import AnswerOrigin, ResponseCache
from services.gateway.requests.answers import Answer, ConvertedAnswer, CountedAnswer, TextAnswer, VectorAnswer, VerdictAnswer
from services.gateway.requests.asked import Asked, AskedConversion, AskedEmbedding, AskedModeration, AskedPrompt, AskedRanking, Call
from services.gateway.requests.caller import Caller
from services.gateway.requests.hold import Hold
from services.gateway.requests.image_admission import ImageLimits
from services.gateway.requests.observed import EndedRequests, RequestObservers
from services.gateway.requests.plan import Plan
from services.gateway.requests.repeated_request import NO_REPEAT, RepeatedRequest
from services.gateway.requests.request_admission import RequestAdmission
from services.gateway.requests.request_validation import ModerationRequest
from services.gateway.requests.run import Run, milliseconds
from services.gateway.requests.targets import ServingTarget, SharedClaims, TargetCall
from services.gateway.requests.workers import Workers
from services.gateway.scheduling import routing
from services.gateway.scheduling.worker_claims import Claim
from shared import context, errors
from shared.api import inference
from shared.api.auth import IdentifyOwner, Principal
from shared.api.embedding import EmbeddingRequest, EmbeddingResult, RankingRequest, Vectors
from shared.api.gateway import InferenceRequest, InferenceResult
from shared.api.inference import Chunk, ModerationVerdict, ProcessPrompt
from shared.protocol import request_memory
from shared.spans import REQUEST_ID
from shared.telemetry import logs, tracing
from shared.types import ModelName, RequestStatus, Role, UserId

#: How long before its deadline an answer that is not streamed ends, so that its caller gets what there is instead of an error; less if the
#: caller has less time than ten times as much.
DEADLINE_MARGIN_SECONDS, DEADLINE_MARGIN_SHARE = 1.0, 0.1
#: How long a request behind live ones may take in all, its waits included.
BATCH_SECONDS = 3600.0
#: How long a request waits for one check by a moderation model.
CHECK_SECONDS = 30.0

AnswerT = TypeVar("AnswerT", bound=Answer)
Result = TypeVar("Result")
#: Generates the answer at one target within so many seconds. Returns its end; None if the caller wants no more.
Start = Callable[[Caller, Plan[Call], TargetCall[Call], float], Awaitable[Any]]

_log = logs.get(part="runs")


class RowTaker(Protocol):
    """Takes the row of a run. Each ``reserve`` is followed by one ``add`` or ``release``."""

    def reserve(self) -> None: ...

    def release(self) -> None: ...

    def add(self, row: RequestRow) -> Any: ...

    async def wait_until_saved(self, added: Any) -> None: ...


@dataclass(slots=True, eq=False)
class _Scope:
    """Lets others end a running request, with an error."""

    _timeout: asyncio.Timeout = field(default_factory=partial(asyncio.timeout, None))
    _why: errors.AimeshError | None = None

    def end(self, why: errors.AimeshError) -> None:
        self._why = why
        with suppress(RuntimeError):  # only its row is missing
            self._timeout.reschedule(asyncio.get_running_loop().time())

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            assert self._why is not None
            raise self._why from None


class Runs:
    def __init__(
        self,
        admission: RequestAdmission,
        workers: Workers,
        recorder: UsageRecorder,
        observers: RequestObservers,
        idempotency: IdempotentRequests,
        *,
        most_seconds: float,
        images: ImageLimits = ImageLimits(),  # noqa: B008 - frozen
        responses: ResponseCache | None = None,
        cache_only_when_asked: bool = False,
    ) -> None:
        """``responses`` is None if the cache is disabled."""
        #: Time limit for a request, for callers without an earlier deadline.
        self.most_seconds = most_seconds
        #: Those that run now.
        self.running: dict[Run, _Scope] = {}
        self._admission = admission
        self._quotas, self._ledger = admission.quotas, admission.search.ledger
        self._workers = workers
        self._recorder = recorder
        self._idempotency = idempotency
        self._images = images
        self._responses = responses
        self._cache_only_when_asked = cache_only_when_asked
        self.clock = admission.search.clock
        self._ended = EndedRequests(admission.metrics, observers)

    def longest(self, *, flex: bool | None) -> float:
        """Return how long a request may take; see ``InferenceRequest.flex``."""
        return max(self.most_seconds, BATCH_SECONDS) if flex else self.most_seconds

    def waiting(self) -> Iterator[WaitingRequest]:
        """Yield the prompts that have no text yet."""
        now = self.clock()
        for run in tuple(self.running):
            if (found := run.waiting(now)) is not None:
                yield found

    def callers(self, user: UserId | None) -> set[IdentifyOwner]:
        """See ``RunTable``."""
        return {run.caller for run in self.running if user is None or run.principal.depends_on(user)}

    def end(self, caller: IdentifyOwner, why: errors.AimeshError) -> int:
        """See ``RunTable``."""
        found = [scope for run, scope in self.running.items() if run.caller == caller]
        for scope in found:
            scope.end(why)
        return len(found)

    # --- prompts ------------------------------------------------------------------------------------------------------

    async def admit_images(self, request: InferenceRequest, written: MutableMapping[str, bytes] | None = None) -> InferenceRequest:
        """Return the request as ``answer`` takes it. See ``ImageLimits.admit``."""
        if not written and not any(message.images for message in request.messages):
            return request
        encoded_bytes = sum(map(len, written.values())) if written else 0
        request = await self._images.admit(request, written)
        if encoded_bytes and (held := request_memory.current.get()) is not None:
            image_bytes = sum(len(image.data) for message in request.messages for image in message.images)
            held.resize(held.size - max(0, encoded_bytes - image_bytes))
        return request

    def answer(
        self,
        principal: Principal,
        request: InferenceRequest,
        reader: Reader[AnswerHead, Chunk],
        *,
        seconds: float,
        repeat: RepeatedRequest = NO_REPEAT,
        whole: bool = False,
        cache: cache_keys.CacheRequest = cache_keys.CacheRequest.NOTHING,
        streamed: bool = True,
    ) -> Awaitable[InferenceResult]:
        """Give the reader the answer after ``repeat.rest``, or the ``whole`` answer; in larger chunks if it is neither ``streamed`` nor
        under a key. If the reader raises TooLarge for an unstreamed answer, the generation ends, at no cost without a key. Raises what
        ``run`` and ``IdempotentRequests.answer`` raise."""
        if repeat.key is None:
            if repeat.rest is not None:
                raise BadField(
                    "Last-Event-ID", f"requires the {FIELD} of the original request; without one, an answer ends with its stream"
                )
            return self.run(principal, request, reader, seconds=seconds, cache=cache, streamed=streamed)
        keyed_request = replace(
            _keyed(repeat.key, principal, request, repeat), config_revision=self._admission.search.source.config.revision
        )
        return self._answer_once(keyed_request, principal, request, reader, seconds=seconds, whole=whole, cache=cache, streamed=streamed)

    async def _answer_once(
        self,
        keyed_request: IdempotentRequest,
        principal: Principal,
        request: InferenceRequest,
        reader: Reader[AnswerHead, Chunk],
        *,
        seconds: float,
        whole: bool,
        cache: cache_keys.CacheRequest,
        streamed: bool,
    ) -> InferenceResult:
        is_first = False

        async def produce(recorder: KeyRecorder[Chunk, InferenceResult], key_use: KeyUse) -> InferenceResult:
            nonlocal is_first
            is_first = True
            # The maximum, because every reader has its own deadline; but a whole answer has to be there at that of its first one.
            left = self._idempotency.most_seconds if streamed else min(seconds, self._idempotency.most_seconds)
            # Other readers may need its memory longer than the call that brought it.
            with request_memory.current.get() or nullcontext():
                return await self.run(
                    principal,
                    request,
                    recorder,
                    seconds=left,
                    key_use=key_use,
                    cache=cache,
                    streamed=streamed,
                    continues_elsewhere=lambda: not recorder.was_stopped,
                )

        try:
            return await self._idempotency.answer(keyed_request, produce, reader, seconds=seconds, whole=whole)
        except errors.TooLarge:
            if not streamed and is_first:
                # It is still billed: other callers may have read it as a stream.
                with suppress(errors.Unavailable):
                    await self.cancel(principal, keyed_request.key)
            raise

    async def cancel(self, principal: Principal, key: str) -> None:
        """Cancel the request under this key. Does nothing if no gateway runs it. Raises Unavailable."""
        await self._idempotency.cancel(principal.tenant_id, key)

    def run(
        self,
        principal: Principal,
        request: InferenceRequest,
        reader: Reader[AnswerHead, Chunk],
        *,
        seconds: float,
        key_use: KeyUse | None = None,
        cache: cache_keys.CacheRequest = cache_keys.CacheRequest.NOTHING,
        streamed: bool = True,
        continues_elsewhere: Callable[[], bool] = lambda: False,
    ) -> Awaitable[InferenceResult]:
        """Run a prompt, without repeats. ``key_use``: see ``AskedPrompt``. ``streamed``: the caller reads token by token; under a key,
        others may. ``continues_elsewhere`` is called on cancellation: whether another gateway continues it and writes its row. Raises what
        ``RequestAdmission`` and ``Workers`` raise, and the reader's error."""
        asked = AskedPrompt(request, key_use, partial(self._moderate_for, principal, request))
        run = self._new_run(asked.labels, principal, seconds, is_all_or_nothing=not streamed and key_use is None)
        run.admission.ignored_fields = request.ignored_fields
        start = partial(self._generate, key_use=key_use, cache=cache, streamed=streamed)
        # No frame of its own: each would be resumed with each piece.
        return self._carry_out(
            run, asked, reader, seconds, TextAnswer, start=start, result=_result, continues_elsewhere=continues_elsewhere
        )

    def _generate(
        self,
        caller: Caller,
        plan: Plan[ProcessPrompt],
        target_call: TargetCall[ProcessPrompt],
        seconds: float,
        *,
        key_use: KeyUse | None,
        cache: cache_keys.CacheRequest,
        streamed: bool,
    ) -> Awaitable[Any]:
        run, admitted, requirements = caller.run, target_call.call, target_call.requirements
        config, record = admitted.model_config, run.admission
        is_whole = not streamed or run.is_all_or_nothing
        if is_whole or admitted.open_ended:
            held = record.held.max_tokens
            hold = Hold(held=held, most=config.max_tokens or held, answers=plan.answers, is_open_ended=admitted.open_ended)
            extend = partial(self._admission.extend_hold, record, run.principal, plan, target_call.target)
            caller.bound(hold, extend, whole_until=self._whole_until(run, seconds) if is_whole else None)
        responses: ResponseCache | None = None
        use = NO_USE
        # A live request must not wait for the same one behind others.
        if (config.is_deterministic or target_call.target.cache_seconds is not None) and not requirements.batch:
            use = self._plan_cache(cache, config, target_call.target, key_use)
            responses = self._responses if use else None
        # Cached and idempotent answers have several readers and run ahead of them; an unstreamed answer is read at its end.
        paced = responses is None and not run.is_all_or_nothing and key_use is None
        seeded = config
        if config.seed is None:
            # Set by the gateway, so that another worker can draw the same tokens after a failover.
            seed_of: KeyUse | LineRun | None = key_use or run.line
            seeded = msgspec.structs.replace(config, seed=secrets.randbits(63) if seed_of is None else seed_of.seed)
        prompt = msgspec.structs.replace(admitted, model_config=seeded, streamed=not run.is_all_or_nothing, reader_paced=paced)
        on_claim = partial(self._record_claim, caller, target_call.target, is_paced=paced)
        if responses is None:
            return self._workers.generate(prompt, requirements, seconds, caller, on_claim=on_claim)
        shared = SharedClaims()

        def generate(reader: Reader[Any, Any], seconds: float) -> Awaitable[Any]:
            return self._workers.generate(prompt, requirements, seconds, reader, on_claim=partial(on_claim, shared=shared))

        def set_origin(origin: AnswerOrigin, shared: SharedClaims) -> None:
            run.opened(shared, cached=origin is AnswerOrigin.HIT, has_joined=origin is AnswerOrigin.JOINED)

        digest = routing.digest_of(requirements.model, self._admission.search.directory.usable(Role.WORKER))
        assert not isinstance(admitted.prompt, str)  # admission converts it to messages
        question = cache_keys.CacheQuestion(
            requirements.tenant, admitted.prompt, config, digest, requirements.placement.external, target_call.target.cache_seconds
        )
        return responses.answer(question, generate, caller, use=use, seconds=seconds, set_origin=set_origin, shared=shared)

    def _whole_until(self, run: Run, seconds: float) -> float:
        """Return when an answer that is not streamed ends, without the starts of its workers."""
        margin = min(DEADLINE_MARGIN_SECONDS, DEADLINE_MARGIN_SHARE * seconds)
        return self.clock() + seconds - margin - run.attempts.start_wait_seconds

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

    # --- texts --------------------------------------------------------------------------------------------------------

    async def embed(
        self,
        principal: Principal,
        request: EmbeddingRequest,
        reader: Reader[AnswerHead, Vectors],
        *,
        seconds: float,
        key: str | None = None,
    ) -> EmbeddingResult:
        """Compute embeddings; otherwise like ``answer``. Raises ProtocolViolation for invalid vectors of a worker."""

        async def run(reader: Reader[AnswerHead, Vectors], seconds: float) -> EmbeddingResult:
            asked = AskedEmbedding(request, forbids_external=request.forbid_external)
            return await self._read(asked, VectorAnswer, principal, reader, seconds, result=_vector_result)

        if key is None:
            return await run(reader, seconds)

        async def produce(recorder: KeyRecorder[Vectors, EmbeddingResult], _key_use: KeyUse) -> EmbeddingResult:
            return await run(recorder, self._idempotency.most_seconds)

        keyed = _keyed(key, principal, request, NO_REPEAT)
        return await self._idempotency.answer(keyed, produce, reader, seconds=seconds, whole=True)

    async def rank(
        self, principal: Principal, request: RankingRequest, reader: Reader[AnswerHead, Vectors], *, seconds: float
    ) -> EmbeddingResult:
        """Rank texts by their relevance to a query; otherwise like ``embed``. The vectors have one number, a score."""
        asked = AskedRanking(request, forbids_external=request.forbid_external)
        return await self._read(asked, VectorAnswer, principal, reader, seconds, result=_vector_result)

    async def moderate(
        self, principal: Principal, request: ModerationRequest, reader: Reader[AnswerHead, Any], *, seconds: float
    ) -> tuple[ModerationVerdict, ...]:
        """Say whether each text is harmful; otherwise like ``run``."""
        asked = AskedModeration(request)
        return await self._read(asked, VerdictAnswer, principal, reader, seconds, result=lambda _, answer: answer.verdicts)

    async def convert(
        self,
        principal: Principal,
        request: inference.Conversion,
        reader: Reader[AnswerHead, Any],
        *,
        seconds: float,
        forbids_external: bool,
    ) -> tuple[bytes, int]:
        """Convert tokens by a model, for free; otherwise like ``run``. An empty model is the default. Return token ids or a text, and the
        model's context; 0 if unknown."""
        asked = AskedConversion(request, forbids_external=forbids_external)
        return await self._read(asked, ConvertedAnswer, principal, reader, seconds, result=lambda _, it: (it.content, it.context_tokens))

    async def count_tokens(
        self,
        principal: Principal,
        request: inference.Conversion,
        reader: Reader[AnswerHead, Any],
        *,
        seconds: float,
        forbids_external: bool,
    ) -> int | None:
        """Return the number of tokens; None if the model's server can't tell. Otherwise like ``convert``."""
        asked = AskedConversion(request, forbids_external=forbids_external)
        return await self._read(asked, CountedAnswer, principal, reader, seconds, result=lambda _, answer: answer.count)

    def _read(
        self,
        asked: Asked[Any, Any],
        answer: type[AnswerT],
        principal: Principal,
        reader: Reader[AnswerHead, Any],
        seconds: float,
        *,
        result: Callable[[Run, AnswerT], Result],
    ) -> Awaitable[Result]:
        run = self._new_run(asked.labels, principal, seconds)

        def start(caller: Caller, _plan: object, call: TargetCall[Any], seconds: float) -> Awaitable[Any]:
            on_claim = partial(self._record_claim, caller, call.target, is_paced=False)
            return self._workers.generate(call.call, call.requirements, seconds, caller, on_claim=on_claim)

        return self._carry_out(run, asked, reader, seconds, answer, start=start, result=result)

    async def _moderate_for(
        self, principal: Principal, checked: InferenceRequest, route: ModelName, texts: Sequence[str]
    ) -> tuple[ModerationVerdict, ...]:
        """Moderate texts of another request as its policy wants it, with a row of their own."""
        request = ModerationRequest(tuple(texts), route, checked.forbid_external, by_policy=True)
        before = context.current.get()
        context.another()
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                return await self.moderate(principal, request, Reader(), seconds=CHECK_SECONDS)
        except TimeoutError as error:
            raise errors.DeadlineExceeded(f"{route} took more than {CHECK_SECONDS:g} s") from error
        finally:
            context.current.set(before)

    # --- every run ----------------------------------------------------------------------------------------------------

    def _new_run(self, labels: RequestLabels, principal: Principal, seconds: float, *, is_all_or_nothing: bool = False) -> Run:
        # Callers never choose the id: it is the row's key, and a reused one would lose a row.
        request_id = (context.current.get() or context.start()).request_id
        began_at = self._ledger.database_clock.now()
        return Run(
            *(labels, principal, request_id),
            now=self.clock(),
            seconds=seconds,
            began_at=began_at,
            is_all_or_nothing=is_all_or_nothing,
            line=line_run.of(request_id),
        )

    async def _carry_out(
        self,
        run: Run,
        asked: Asked[Any, Call],
        reader: Reader[AnswerHead, Any],
        seconds: float,
        new_answer: type[AnswerT],
        *,
        start: Start[Call],
        result: Callable[[Run, AnswerT], Result],
        continues_elsewhere: Callable[[], bool] = lambda: False,
    ) -> Result:
        """Write the row, however the run ends."""
        line = run.line
        recorder: RowTaker = line or self._recorder
        recorder.reserve()
        scope = self.running[run] = _Scope()
        caller, is_taken_over = Caller(run, reader, self.clock), False
        try:
            try:
                with tracing.span("inference", {REQUEST_ID: str(run.request_id)}):
                    async with scope:
                        terms = self._admission.read_terms(run, asked)
                        if asked.is_batch and seconds == self.most_seconds:
                            # Its caller has no deadline.
                            seconds = self.longest(flex=True)
                            run.allowed(seconds)
                        plan = await self._admission.admit(run, asked, terms, seconds, most_held=self.most_seconds)
                        answer = new_answer(plan, run.admission)
                        reader.begin(run.admitted(plan, answer))
                        await caller.finish(await self._first_to_answer(caller, plan, start, seconds))
                        run.succeeded()
            finally:
                await caller.close()
        except errors.AimeshError as error:
            run.failed(error)
            raise
        except asyncio.CancelledError:
            run.cancelled(self.clock())
            is_taken_over = run.status is RequestStatus.CANCELLED and continues_elsewhere()
            raise
        finally:
            # No await between here and `add`: the row is queued even if this task is canceled.
            row, written = run.end(self.clock()), None
            del self.running[run]
            if is_taken_over:
                # The gateway that continues the request, or settles its overdue reservation, writes the row.
                recorder.release()
            else:
                written = recorder.add(row)
            if line is not None:
                line.cached_tokens = run.usage.cached_tokens
            self._ledger.forget(run.request_id)
            if (claim := run.measured) is not None:
                self._ledger.record_pace(claim.requirements.model, claim.prompt_seconds, claim.seconds, run.usage.completion_tokens)
            if written is not None:
                self._ended.ended(row, run)
            # Its traceback has this frame: a cycle, which would keep the prompt until a collection. Those are rare.
            has_failed, run.failure = run.failure is not None, None
            await self._quotas.settle(run.admission.limit_usage, tokens=0 if run.cached else run.usage.total_tokens)
            if written is not None and (run.status is RequestStatus.SUCCESS or has_failed):
                with tracing.span("ledger.settle"):
                    await recorder.wait_until_saved(written)
        return result(run, answer)

    async def _first_to_answer(self, caller: Caller, plan: Plan[Call], start: Start[Call], seconds: float) -> Any:
        """Return the end of the answer of the first target that delivers something."""
        run, ends_at, left = caller.run, self.clock() + seconds, seconds
        assert run.answer is not None
        for call in plan.calls:
            run.attempts.try_target(call.target)
            try:
                return await start(caller, plan, call, left)
            except errors.AimeshError as error:
                if run.answer.ended_by(error):
                    return None
                is_free = isinstance(error, errors.OWN_CONNECTION_LOST)
                if not run.may_fall_back(call, error) or not (is_free or self._workers.budget.spend(self.clock())):
                    raise
                _log.warning("target failed before its first token", model=call.target.model, code=errors.code_of(error))
                self._ended.routes.count_fallback(*call.target.spending_key, error)
                run.attempts.leave_target(error)
                left = ends_at - self.clock()
        raise AssertionError("the last target has no alternative")

    def _record_claim(
        self,
        caller: Caller,
        target: ServingTarget,
        claim: Claim,
        delivered_tokens: int,
        *,
        is_paced: bool,
        shared: SharedClaims | None = None,
    ) -> None:
        run = caller.run
        run.attempts.add_claim(target, claim)
        caller.mind_start()
        if shared is not None:
            shared.claims.append((target, claim))
        if (price := run.admission.held.prices.get(target.model)) is not None:
            delivered = delivered_tokens if is_paced else 0
            self._ledger.record_claim(
                WorkerClaim(
                    *(run.request_id, claim.worker.node, delivered, target.model, price.id, target.route, claim.provider),
                    is_batch=run.admission.is_batch,
                )
            )


def _result(run: Run, answer: TextAnswer) -> InferenceResult:
    end, route, first_text, plan = answer.generation, run.attempts.route, run.first_text_seconds, run.plan
    assert plan is not None
    assert end is not None  # the run succeeded
    return InferenceResult(
        request_id=run.request_id,
        model=plan.choice.model,
        finish_reason=end.finish_reason,
        usage=run.usage,
        response_time_ms=run.response_time_ms,
        first_token_ms=run.response_time_ms if first_text is None else milliseconds(first_text),
        finish_reasons=end.finish_reasons,
        cost_micro=run.cost_micro,
        clamped_to=run.clamped_to,
        cached=run.cached,
        target=route.target if route is not None and plan.choice.shows_target else None,
        stop_sequence=end.stop_sequence,
        flex=run.admission.is_batch,
    )


def _vector_result(run: Run, answer: VectorAnswer) -> EmbeddingResult:
    assert run.plan is not None
    return EmbeddingResult(
        *(run.request_id, run.plan.choice.model, answer.dimensions, run.usage.prompt_tokens, run.response_time_ms),
        flex=run.admission.is_batch,
    )


def _keyed(key: str, principal: Principal, request: InferenceRequest | EmbeddingRequest, repeat: RepeatedRequest) -> IdempotentRequest:
    now = context.current.get() or context.start()
    return IdempotentRequest(
        owner=principal.tenant_id,
        key=key,
        request=request,
        request_id=now.request_id,
        seed=secrets.randbits(63),
        after=0 if repeat.rest is None else repeat.rest.after,
        together=repeat.together,
    )
