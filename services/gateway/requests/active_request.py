"""Holds the state of one running request: what was delivered so far, and what its row will contain."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import ClassVar

import msgspec

from services.gateway.billing.ledger import HeldCredits
from services.gateway.billing.request_record import RouteUse
from services.gateway.guard.guard_counts import GuardCount, GuardPlace
from services.gateway.guard.guarded_text import GuardMatches
from services.gateway.limits.limit_rules import LimitUsage, TightestLimit
from services.gateway.limits.upstream_prices import TargetSpending, UpstreamPrices
from services.gateway.scheduling.worker_claims import Claim
from shared import context, errors
from shared.api.generation import Usage
from shared.config_documents import ModerationFormat
from shared.protocol.directory import DirectoryEntry
from shared.types import MicroCredits, ModelName, RequestId, RequestStatus


class ServingTarget(msgspec.Struct, frozen=True):
    """A model that may serve a request."""

    model: ModelName
    #: None without a route.
    route: RouteUse | None = None
    #: These two: see ``RouteTarget``.
    ceiling_micro: MicroCredits | None = None
    format: ModerationFormat | None = None
    #: See ``Route``.
    cache_seconds: int | None = None

    @property
    def spending_key(self) -> tuple[str, str]:
        """Return route and target, under which upstream money is counted."""
        return ("", self.model) if self.route is None else (self.route.route, self.route.target)


class ActiveRequest(ABC):
    """Tracks one request from its arrival in the pipeline to its row. What most requests never set is a class attribute."""

    #: The method name in metrics, the same for all APIs, and the operation name of OpenTelemetry.
    method: ClassVar[str]
    operation: ClassVar[str]

    #: This request has its own run.
    is_repeat = False
    #: The answer comes from the response cache.
    cached = False
    #: The worker has sent the end of the answer.
    complete = False
    #: From the start to the first text; None if none was delivered.
    first_text_seconds: float | None = None
    #: Number of chunks with text.
    chunks = 0
    #: Number of answers that the worker has reported.
    answer_count = 1
    #: The messages contain no earlier answer.
    begins_conversation = False
    #: The largest size of the prompt that is believed, and an estimate; 0 until it is admitted.
    most_prompt_tokens = likely_prompt_tokens = 0
    #: Its caller's policy has guardrails.
    is_guarded = False
    #: The number of workers that ran it.
    attempts = 0
    #: Who got the prompt last; None if it stayed on the operator's machines.
    provider: str | None = None
    #: The next five are set by ``end``: what was delivered, and its cost; 0 for a cached answer, which has saved that cost.
    usage = Usage(0, 0)
    cost_micro = saved_micro = MicroCredits(0)
    #: What it has cost upstream, and what an answer of our own machines would have cost where its route compares it.
    spending: tuple[TargetSpending, ...] = ()
    avoided_micro = MicroCredits(0)

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
        #: What guardrails found in the prompt; None if they don't check it.
        self.prompt_matches: GuardMatches | None = None
        #: How long guardrails took so far.
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
        self._claims: list[tuple[ServingTarget, Claim]] = []
        #: When the first item of any kind arrived.
        self._first_item: float | None = None
        #: Called on cancellation: whether another gateway continues the request and writes its row.
        self.continues_elsewhere: Callable[[], bool] = lambda: False
        #: The caller gets the whole answer at the end, or an error.
        self.is_all_or_nothing = False
        #: The current worker; None before one is claimed, and for cached answers.
        self.worker: DirectoryEntry | None = None

    @property
    def head(self) -> "ActiveRequest":
        return self

    def try_target(self, target: ServingTarget) -> None:
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
        self.worker, self.provider = claim.worker, claim.provider
        self.attempts += 1
        self._claims.append((self._target, claim))

    @property
    def start_wait_seconds(self) -> float:
        """Return how long it waited for workers that were starting."""
        return sum(claim.start_wait_seconds for _, claim in self._claims)

    def _spending(self, *, has_delivered: bool) -> tuple[TargetSpending, ...]:
        """Return what it has cost upstream: the last attempt by its usage, earlier ones by their prompt if it was read."""
        found = []
        for number, (target, claim) in enumerate(self._claims, 1):
            if claim.provider is None:
                continue
            if number == len(self._claims) and has_delivered:
                # Other servers count the prompt at the end only.
                prompt = self.usage.prompt_tokens or self.likely_prompt_tokens
                usage = Usage(prompt, self.usage.completion_tokens, self.usage.cached_tokens)
            elif claim.was_accepted:
                usage = Usage(self.likely_prompt_tokens, 0)
            else:
                continue
            if micro := self.upstream.cost(target.model, usage):
                found.append(TargetSpending(*target.spending_key, micro))
        return tuple(found)

    @property
    def allowance(self) -> TightestLimit | None:
        return None if self.limit_usage is None else self.limit_usage.tightest

    @abstractmethod
    def _usage(self) -> Usage:
        """Return the tokens delivered so far."""

    @property
    def clamped_to(self) -> int | None:
        """Return the lowered max_tokens, if the credits didn't cover the requested value."""
        return self.held.max_tokens if self.held is not None and self.held.clamped else None

    @property
    def response_time_ms(self) -> int:
        """Return the same number for the answer and the row: it is fixed when the request ends."""
        return milliseconds((self._ended if self._ended is not None else self._clock()) - self._began)

    def end(self) -> None:
        """Fix what was delivered, and what it costs."""
        now = self._ended = self._clock()
        usage = self.usage = self._usage()
        has_delivered = self.complete or usage.completion_tokens > 0
        if self.held is not None and self.served_model is not None and has_delivered:
            price = self.held.prices[self.served_model]
            if not self.cached:
                # Waiting in the queue is free. A request that joined another's answer has no worker: count from its first item.
                joined = 0.0 if self._claims or self._first_item is None else now - self._first_item
                computed = joined + sum(claim.seconds for _, claim in self._claims)
                self.cost_micro = price.cost(usage.prompt_tokens, usage.completion_tokens, computed)
            elif self.complete:
                self.saved_micro = price.cost(usage.prompt_tokens, usage.completion_tokens, 0)
        if any(claim.provider is not None for _, claim in self._claims):
            self.spending = self._spending(has_delivered=has_delivered)
        if self.upstream.compared is not None and self._claims and self.provider is None and has_delivered:
            self.avoided_micro = self.upstream.compared.cost(usage)

    @property
    def seconds_so_far(self) -> float:
        return self._clock() - self._began


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _request_id() -> RequestId:
    """Return the id of this call. Callers never choose it: it is the row's key, and a reused one would lose a row."""
    now = context.current.get()
    return now.request_id if now is not None else context.start().request_id
