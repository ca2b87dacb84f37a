"""Holds the state of one running request: what was delivered so far, and what its row will contain."""

import math
import struct
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import ClassVar

from services.gateway.billing.ledger import HeldCredits
from services.gateway.billing.request_record import RouteUse
from services.gateway.guard import answer_guard
from services.gateway.guard.answer_guard import AnswerGuard
from services.gateway.guard.guard_counts import GuardCount, GuardPlace
from services.gateway.guard.guarded_text import GuardMatches
from services.gateway.guard.moderation import Moderate, Moderation
from services.gateway.idempotency.response_cache import AnswerOrigin
from services.gateway.limits.limit_rules import LimitUsage, TightestLimit
from services.gateway.limits.upstream_prices import TargetSpending, UpstreamPrices
from services.gateway.prompt_admission import AdmittedPrompt, AdmittedTexts
from services.gateway.relay import AnswerItem, Embedding, ModerationItem
from services.gateway.scheduling.worker_claims import Claim
from shared import context, errors
from shared.api import embedding, gateway, inference
from shared.api.embedding import Embedded, EmbeddingResult, Vectors
from shared.api.gateway import InferenceResult
from shared.api.generation import Generation, Usage
from shared.api.inference import Chunk, Moderated, ModerationVerdict
from shared.config_documents import ModerationFormat
from shared.protocol.directory import DirectoryEntry
from shared.types import FinishReason, MicroCredits, ModelName, RequestId, RequestStatus


@dataclass(frozen=True, slots=True)
class ServingTarget:
    """A model that may serve a request."""

    model: ModelName
    #: None without a route.
    route: RouteUse | None = None
    #: Upstream money for a UTC day; None for no limit.
    ceiling_micro: MicroCredits | None = None
    #: Of a chat model that moderates.
    format: ModerationFormat | None = None
    #: See ``Route.cache_seconds``.
    cache_seconds: int | None = None

    @property
    def place(self) -> tuple[str, str]:
        """Return route and target, for the money that it costs upstream."""
        return ("", self.model) if self.route is None else (self.route.route, self.route.target)


class ActiveRequest(ABC):
    """Tracks one request from its arrival in the pipeline to its row."""

    #: The method name in metrics, the same for all APIs.
    method: ClassVar[str]

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.request_id = _request_id()
        self.began_at = datetime.now(UTC)
        self._began = clock()
        self._ended: float | None = None
        self.prompt_hash: str | None = None
        #: As the caller knows it. Set before the first item is read.
        self.model: ModelName | None = None
        #: The served model; with several targets, that of the last one tried.
        self.served_model: ModelName | None = None
        #: None without a route.
        self.route: RouteUse | None = None
        self._target: ServingTarget | None = None
        #: What stays at the target that was drawn for it; empty without a route.
        self.unit = b""
        self._has_fallen_back = False
        #: A rollout already knows that it is late.
        self.is_counted_late = False
        #: Whether the caller may know which target serves it.
        self.shows_target = True
        #: What guardrails found in the prompt; None if they don't look at it.
        self.prompt_matches: GuardMatches | None = None
        #: That guardrails took so far.
        self.guard_seconds = 0.0
        #: Set when its targets are found.
        self.upstream = UpstreamPrices()
        #: Usage counted against the limits; None until the request is admitted.
        self.limit_usage: LimitUsage | None = None
        #: The reserved cost; None until it is reserved.
        self.held: HeldCredits | None = None
        #: The worker's stream; closing it ends the work there.
        self.answers: AsyncGenerator[object] | None = None
        #: Number of items returned to the reader.
        self._number = 0
        self._final_usage: Usage | None = None
        self._claims: list[tuple[ServingTarget, Claim]] = []
        #: When the first item of any kind arrived.
        self._first_item: float | None = None
        self._computed: float | None = None
        #: Called on cancellation: whether another gateway continues the request and writes its row.
        self.continues_elsewhere: Callable[[], bool] = lambda: False
        #: The caller gets the whole answer at the end, or an error.
        self.is_unstreamed = False
        #: The current worker; None before one is claimed, and for cached answers.
        self.worker: DirectoryEntry | None = None

    def try_target(self, target: ServingTarget) -> None:
        """Record which target serves the request from now on."""
        self._target, self.served_model, self.route = target, target.model, target.route

    @property
    def shown_route(self) -> RouteUse | None:
        """Return how the route serves it, as the caller may see it."""
        return self.route if self.route is None or self.shows_target else replace(self.route, variant=None)

    def leave_target(self, error: errors.AimeshError) -> None:
        """Record that another target must serve the request."""
        is_drawn = self.route is not None and self.route.target == self.route.variant
        # A long queue is no failure.
        self._has_fallen_back = self._has_fallen_back or (is_drawn and not isinstance(error, errors.Overloaded))

    def variant_failed(self, status: RequestStatus, failure: errors.AimeshError | None) -> bool | None:
        """Return whether the target that was drawn for it has failed; None if that isn't known, or not the target's doing."""
        if self._has_fallen_back:
            return True
        if self.route is None or self.route.target != self.route.variant or self.cached:
            return None
        if status is RequestStatus.SUCCESS:
            return False
        is_no_worker = isinstance(failure, errors.NotReachable)
        is_its_doing = status in {RequestStatus.ERROR, RequestStatus.TIMEOUT} and not isinstance(failure, errors.Overloaded)
        # A complete answer that can't be checked is no fault of its target.
        return True if is_its_doing and not self.complete and (self._claims or is_no_worker) else None

    @property
    def guard_counts(self) -> tuple[GuardCount, ...]:
        """Return what guardrails have found so far."""
        places = ((GuardPlace.PROMPT, self.prompt_matches), (GuardPlace.ANSWER, self._answer_matches()))
        return tuple(
            GuardCount(kind, action, place, number)
            for place, matches in places
            if matches is not None
            for (kind, action), number in sorted(matches.items())
        )

    def _answer_matches(self) -> GuardMatches | None:
        return None

    def add_claim(self, claim: Claim) -> None:
        assert self._target is not None  # tried before
        self.worker = claim.worker
        self._claims.append((self._target, claim))

    @property
    def attempts(self) -> int:
        """Return the number of workers that ran it."""
        return len(self._claims)

    @property
    def provider(self) -> str | None:
        """Return who got the prompt last; None if it stayed on the operator's machines."""
        return self._claims[-1][1].provider if self._claims else None

    @property
    def spending(self) -> tuple[TargetSpending, ...]:
        """Return what it has cost upstream: the last attempt by its usage, earlier ones by their prompt if it was read."""
        found = []
        for number, (target, claim) in enumerate(self._claims, 1):
            if claim.provider is None:
                continue
            if number == len(self._claims) and self._has_delivered:
                # Other servers count the prompt at the end only.
                prompt = self.usage.prompt_tokens or self.likely_prompt_tokens
                usage = Usage(prompt, self.usage.completion_tokens, self.usage.cached_tokens)
            elif claim.was_accepted:
                usage = Usage(self.likely_prompt_tokens, 0)
            else:
                continue
            if micro := self.upstream.cost(target.model, usage):
                found.append(TargetSpending(*target.place, micro))
        return tuple(found)

    @property
    def avoided_micro(self) -> MicroCredits:
        """Return what an answer of our own machines would have cost where its route compares it."""
        is_internal = bool(self._claims) and self.provider is None and self._has_delivered
        return self.upstream.avoided(self.usage) if is_internal else MicroCredits(0)

    @property
    def _has_delivered(self) -> bool:
        return self.complete or self.usage.completion_tokens > 0

    @property
    @abstractmethod
    def likely_prompt_tokens(self) -> int:
        """Return the estimated size of the prompt."""

    @property
    def compute_seconds(self) -> float:
        """Return how long workers computed what was delivered. Waiting in the queue is free."""
        if self._computed is not None:
            return self._computed
        # A request that joined another's answer has no worker: count from its first item.
        joined = 0.0 if self._claims or self._first_item is None else self._clock() - self._first_item
        return joined + sum(claim.seconds for _, claim in self._claims)

    @property
    def allowance(self) -> TightestLimit | None:
        return None if self.limit_usage is None else self.limit_usage.tightest

    @property
    def usage(self) -> Usage:
        """Return the tokens delivered so far."""
        return self._final_usage or self._usage()

    @abstractmethod
    def _usage(self) -> Usage: ...

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether the worker has sent the end of the answer."""

    @property
    def first_text_seconds(self) -> float | None:
        """None if no text was delivered."""
        return None

    @property
    def chunks(self) -> int:
        """Number of chunks with text."""
        return 0

    @property
    def answer_count(self) -> int:
        """Number of answers that the worker has reported."""
        return 1

    @property
    def clamped_to(self) -> int | None:
        """The lowered max_tokens, if the credits didn't cover the requested value."""
        return None

    @property
    def is_repeat(self) -> bool:
        """Always false: this request has its own run."""
        return False

    @property
    def cached(self) -> bool:
        return False

    @property
    def begins_conversation(self) -> bool:
        """Whether the messages contain no earlier answer."""
        return False

    @property
    def saved_micro(self) -> MicroCredits:
        """Return what a cached answer would have cost."""
        if not (self.cached and self.complete):
            return MicroCredits(0)
        return self._cost_of(0)

    @property
    def cost_micro(self) -> MicroCredits:
        """Return the cost of what was delivered so far; 0 for a cached answer."""
        if self.cached or not self._has_delivered:
            return MicroCredits(0)
        return self._cost_of(self.compute_seconds)

    def _cost_of(self, compute_seconds: float) -> MicroCredits:
        if self.held is None or self.served_model is None:
            return MicroCredits(0)
        return self.held.prices[self.served_model].cost(self.usage.prompt_tokens, self.usage.completion_tokens, compute_seconds)

    @property
    def response_time_ms(self) -> int:
        """Return the same number for the answer and the row: it is fixed when the request ends."""
        return milliseconds((self._ended if self._ended is not None else self._clock()) - self._began)

    def end(self) -> None:
        self._computed, self._final_usage = self.compute_seconds, self._usage()
        self._ended = self._clock()

    @property
    def seconds_so_far(self) -> float:
        return self._clock() - self._began


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _request_id() -> RequestId:
    """Return the id of this call. Callers never choose it: it is the row's key, and a reused one would lose a row."""
    now = context.current.get()
    return now.request_id if now is not None else context.start().request_id


#: Allowed tokens without text (tool calls, end marks) if a backend reports no token ids.
_UNSEEN_TOKENS = 64


class ActivePrompt(ActiveRequest):
    """Tracks one prompt. Iterate it for the chunks; read ``result`` after the block of ``Pipeline.run``."""

    method = gateway.process_inference_request.name.partition(".")[2]
    answers: AsyncGenerator[AnswerItem] | None

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._first_text: float | None = None
        self._prompt_tokens = 0
        self._tokens = 0
        self._generation: Generation | None = None
        self._admitted: AdmittedPrompt | None = None
        self._wanted_answers = 1
        #: Bytes of the delivered text and tool calls.
        self._bytes = 0
        self._chunks = 0
        self._origin = AnswerOrigin.MISS
        #: None if nothing is looked for in the answer.
        self.guard: AnswerGuard | None = None
        #: What the guard has let through, but the reader doesn't have yet.
        self._ready: deque[Chunk] = deque()
        #: Checks texts for a policy. Set by the pipeline.
        self.moderate: Moderate | None = None
        #: None if no policy checks it, or after the check.
        self.moderation: Moderation | None = None
        self._moderated: GuardMatches | None = None

    def _answer_matches(self) -> GuardMatches | None:
        if self.guard is None or self._moderated is None:
            return self._moderated if self.guard is None else self.guard.matches
        return self.guard.matches + self._moderated

    def set_origin(self, origin: AnswerOrigin) -> None:
        self._origin = origin

    def record_admission(self, prompt: AdmittedPrompt, answers: int, prompt_hash: str) -> None:
        self._admitted, self._wanted_answers, self.prompt_hash = prompt, answers, prompt_hash

    @property
    def likely_prompt_tokens(self) -> int:
        return 0 if self._admitted is None else self._admitted.likely_prompt_tokens

    def __aiter__(self) -> "ActivePrompt":
        return self

    async def __anext__(self) -> tuple[int, Chunk]:
        """Return the next chunk with its number, from 1; number 0 is a waiting notice."""
        assert self.answers is not None  # `run` sets it before the reader gets this object
        while not self._ready:
            if self._is_refused:
                if self.moderation is None:
                    # Closing the worker's stream ends the generation there.
                    raise StopAsyncIteration
                await self._moderate_answer()
                continue
            answer = await anext(self.answers)
            if self._first_item is None and not (isinstance(answer, Chunk) and answer.waiting):
                self._first_item = self._clock()
            if isinstance(answer, inference.PromptAccepted):
                self._prompt_tokens = answer.prompt_tokens
                continue
            if isinstance(answer, Generation):
                self._take_end(answer)
                await self._moderate_answer()
                continue
            if answer.waiting:
                return 0, answer
            self._count(answer)
            shown = answer if self.guard is None else self._guarded(answer, self.guard)
            if shown is not None and (shown.text or shown.tool_calls or shown.logprobs):
                if self.moderation is not None and self.moderation.take(shown):
                    continue
                self._number += 1
                return self._number, shown
        self._number += 1
        return self._number, self._ready.popleft()

    def _count(self, chunk: Chunk) -> None:
        self._tokens += len(chunk.token_ids)
        self._chunks += bool(chunk.text or chunk.tool_calls)
        self._bytes += len(chunk.text.encode()) + sum(len((call.name + call.arguments).encode()) for call in chunk.tool_calls)
        if self._first_text is None and (chunk.text or chunk.tool_calls):
            self._first_text = self._clock()

    def _guarded(self, chunk: Chunk, guard: AnswerGuard) -> Chunk | None:
        began = time.perf_counter()
        shown = guard.read(chunk)
        self.guard_seconds += time.perf_counter() - began
        if self._is_refused:
            self._generation = guard.ended(Generation(FinishReason.CONTENT_FILTER, self._usage()))
        return shown

    def _take_end(self, generation: Generation) -> None:
        self._prompt_tokens = generation.usage.prompt_tokens
        if self.guard is not None:
            self._ready.extend(self.guard.end())
            generation = self.guard.ended(generation)
        self._generation = generation

    async def _moderate_answer(self) -> None:
        """Check the answers once they are complete, and release what was held. Raises Unavailable if they can't be checked."""
        if self.moderation is None:
            return
        assert self._generation is not None
        assert self.answers is not None
        # Until its stream has ended, the request occupies its worker, which may be the one that moderates.
        if self._is_refused:
            await self.answers.aclose()
        async for _ in self.answers:
            pass
        checked, self.moderation = self.moderation, None
        ready, self._ready = self._ready, deque()
        self._ready.extend(await checked.end(ready))
        self._moderated = checked.matches
        self._generation = answer_guard.filtered(self._generation, checked.refused)

    @property
    def _is_refused(self) -> bool:
        """Whether a policy has ended all answers."""
        return self.guard is not None and len(self.guard.refused) == self._wanted_answers

    def _usage(self) -> Usage:
        """Count output by the received token ids rather than the worker's claim."""
        if self._admitted is None:
            return Usage(prompt_tokens=0, completion_tokens=0)
        # Don't trust a claim above the bound.
        prompt_tokens = min(max(self._prompt_tokens, 0), self._admitted.most_prompt_tokens)
        if self._generation is None:
            # Without token ids, a chunk has at least one token.
            return Usage(prompt_tokens, self._tokens or self.chunks)
        claimed = self._generation.usage
        # Backends without token ids (HTTP APIs) leave only the worker's claim. A token has at least one byte of text, apart from the few
        # that mark calls and ends.
        completion = self._tokens or min(max(claimed.completion_tokens, 0), self._bytes + _UNSEEN_TOKENS, self._most_tokens)
        return Usage(prompt_tokens, completion, min(max(claimed.cached_tokens, 0), prompt_tokens))

    @property
    def _most_tokens(self) -> int:
        return 0 if self.held is None else self.held.max_tokens * self._wanted_answers

    @property
    def answer_count(self) -> int:
        return 1 if self._generation is None else max(1, len(self._generation.finish_reasons))

    @property
    def clamped_to(self) -> int | None:
        return self.held.max_tokens if self.held is not None and self.held.clamped else None

    @property
    def begins_conversation(self) -> bool:
        return self._admitted is not None and all(message.role != "assistant" for message in self._admitted.messages)

    @property
    def chunks(self) -> int:
        return self._chunks

    @property
    def cached(self) -> bool:
        return self._origin is AnswerOrigin.HIT

    @property
    def result(self) -> InferenceResult:
        assert self._generation is not None
        assert self.model is not None
        return InferenceResult(
            request_id=self.request_id,
            model=self.model,
            finish_reason=self._generation.finish_reason,
            usage=self.usage,
            response_time_ms=self.response_time_ms,
            first_token_ms=self.response_time_ms if self._first_text is None else milliseconds(self._first_text - self._began),
            finish_reasons=self._generation.finish_reasons,
            cost_micro=self.cost_micro,
            clamped_to=self.clamped_to,
            cached=self.cached,
            target=self.route.target if self.route is not None and self.shows_target else None,
        )

    @property
    def first_text_seconds(self) -> float | None:
        return None if self._first_text is None else self._first_text - self._began

    @property
    def complete(self) -> bool:
        return self._generation is not None


#: Bytes of one number in a vector.
NUMBER_BYTES = 4
#: In all vectors of a request, 16 MiB: OpenAI's most inputs for a model with 2,048 dimensions. As JSON it is five times as much.
MAX_NUMBERS = 2048 * 2048


class ActiveTexts(ActiveRequest):
    """Tracks a request that only reads texts."""

    admitted: AdmittedTexts | None = None
    _prompt_tokens = 0
    _complete = False

    @property
    def likely_prompt_tokens(self) -> int:
        return 0 if self.admitted is None else self.admitted.likely_prompt_tokens

    def _usage(self) -> Usage:
        most = self.admitted.most_prompt_tokens if self.admitted is not None else 0
        return Usage(min(max(self._prompt_tokens, 0), most), completion_tokens=0)

    @property
    def complete(self) -> bool:
        return self._complete


class ActiveEmbedding(ActiveTexts):
    """Tracks one embedding request. Iterate it for the vectors; read ``result`` after the block of ``Pipeline.embed``."""

    method = embedding.request_embeddings.name.partition(".")[2]
    answers: AsyncGenerator[Embedding] | None

    wanted_dimensions: int | None = None
    _vectors = 0
    #: Every vector must have as many as the first.
    _dimensions = 0

    def __aiter__(self) -> "ActiveEmbedding":
        return self

    async def __anext__(self) -> tuple[int, Vectors]:
        """Return the next vectors with their number, as ``ActivePrompt``. Raises ProtocolViolation for an invalid vector."""
        assert self.answers is not None  # `run` sets it before the reader gets this object
        while True:
            answer = await anext(self.answers)
            if isinstance(answer, Vectors):
                for vector in answer.vectors:
                    self._check_vector(vector)
                self._number += not answer.waiting
                return (0 if answer.waiting else self._number), answer
            self._prompt_tokens = answer.prompt_tokens
            if isinstance(answer, Embedded):
                self._ensure_all_vectors()

    @property
    def result(self) -> EmbeddingResult:
        assert self.model is not None
        return EmbeddingResult(self.request_id, self.model, self._dimensions, self.usage.prompt_tokens, self.response_time_ms)

    def _check_vector(self, vector: bytes) -> None:
        assert self.admitted is not None
        self._vectors += 1
        numbers, over = divmod(len(vector), NUMBER_BYTES)
        self._dimensions = self._dimensions or numbers
        wanted = self.wanted_dimensions or self._dimensions
        if over or not 0 < numbers == wanted == self._dimensions <= embedding.MAX_DIMENSIONS or self._vectors > len(self.admitted.inputs):
            raise errors.ProtocolViolation(
                f"the worker sent vector {self._vectors} with {len(vector)} bytes, which is not a valid length", hint="retry the request"
            )
        if numbers * len(self.admitted.inputs) > MAX_NUMBERS:
            most = MAX_NUMBERS // numbers
            raise errors.TooLarge(f"this model has {numbers} dimensions, so a request may have {most} inputs", hint="send several requests")
        if not math.isfinite(math.hypot(*struct.unpack(f"<{numbers}f", vector))):
            raise errors.ProtocolViolation(f"the worker sent vector {self._vectors} with non-finite numbers", hint="retry the request")

    def _ensure_all_vectors(self) -> None:
        assert self.admitted is not None
        if self._vectors != len(self.admitted.inputs):
            raise errors.ProtocolViolation(
                f"the worker sent {self._vectors} vectors for {len(self.admitted.inputs)} texts", hint="retry the request"
            )
        self._complete = True


class ActiveModeration(ActiveTexts):
    """Tracks one moderation request."""

    method = inference.moderate.name.partition(".")[2]
    answers: AsyncGenerator[ModerationItem] | None

    async def read(self) -> tuple[ModerationVerdict, ...]:
        """Return a verdict for each text. Raises ProtocolViolation for another number."""
        assert self.answers is not None  # `moderate` sets it before the reader gets this object
        assert self.admitted is not None
        verdicts: tuple[ModerationVerdict, ...] = ()
        async for answer in self.answers:
            if isinstance(answer, Moderated):
                self._prompt_tokens, verdicts = answer.prompt_tokens, answer.verdicts
        if len(verdicts) != len(self.admitted.inputs):
            raise errors.ProtocolViolation(
                f"the worker sent {len(verdicts)} verdicts for {len(self.admitted.inputs)} texts", hint="retry the request"
            )
        self._complete = True
        return verdicts
