"""Holds the state of one running request. Each part has one owner, which alone writes it.

``RequestAdmission`` writes ``AdmissionRecord``, also for a request that it refuses. ``TargetAttempts`` records the targets and workers.
``ActiveAnswer`` counts in ``DeliveredAnswer``. ``ActiveRequest.end`` fixes the totals for the row.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Generic, Self, TypeVar
from uuid import UUID

import msgspec

from services.gateway.billing.reservations import HeldCredits
from services.gateway.facts import request_record
from services.gateway.facts.guard_counts import GuardCount, GuardPlace
from services.gateway.facts.request_record import NO_TOTALS, RequestTotals, ReservationState, RouteUse
from services.gateway.facts.tightest_limit import TightestLimit
from services.gateway.guard.answer_guard import AnswerGuard
from services.gateway.guard.guarded_text import GuardMatches
from services.gateway.guard.moderation import Moderation
from services.gateway.limits.limit_rules import CountedRequest, LimitUsage
from services.gateway.requests.targets import TargetAttempts, TargetCall, TargetChoice
from services.gateway.tally import NOTHING, Tally
from shared import context
from shared.api.generation import Usage
from shared.types import ModelName, RequestId, RequestStatus

Call = TypeVar("Call")
#: What metrics call a kind of request: its method, the same for all APIs, and its operation, as in OpenTelemetry.
RequestLabels = tuple[str, str]

_NO_REQUEST = RequestId(UUID(int=0))
_NOTHING_HELD = HeldCredits(_NO_REQUEST, {}, 0, clamped=False)
#: Of a request that the limits have not counted yet.
NOT_COUNTED = LimitUsage(CountedRequest.NOWHERE, _NO_REQUEST, (), TightestLimit())


class AdmissionRecord(msgspec.Struct):
    """What the admission has found, counted and reserved so far."""

    #: None until the prompt is valid.
    prompt_hash: str | None = None
    #: The messages contain no earlier answer.
    begins_conversation: bool = False
    #: See ``InferenceRequest``.
    ignored_fields: str = ""
    #: The largest size of the prompt that is believed, and an estimate.
    most_prompt_tokens: int = 0
    likely_prompt_tokens: int = 0
    #: In the prompt.
    images: int = 0
    #: The context of each model that may serve it, in tokens; 0 if unknown.
    contexts: Mapping[ModelName, int] = msgspec.field(default_factory=dict)
    #: Its caller's policy has guardrails.
    is_guarded: bool = False
    #: What guardrails found in the prompt, and how long that took; None if they don't check it.
    prompt_matches: GuardMatches | None = None
    guard_seconds: float = 0.0
    limit_usage: LimitUsage = NOT_COUNTED
    #: Without prices until credits are reserved, and for what costs nothing.
    held: HeldCredits = _NOTHING_HELD

    def most_usage(self, model: ModelName, completion_tokens: int) -> Usage:
        """Return the maximum usage at a model, which refuses prompts above its context."""
        return Usage(min(self.most_prompt_tokens, self.contexts.get(model) or self.most_prompt_tokens), completion_tokens)


class DeliveredAnswer(msgspec.Struct):
    """What the caller has of the answer so far."""

    #: It comes from the response cache; known with the first item.
    cached: bool = False
    #: The worker has sent its end.
    complete: bool = False
    #: When the first item of any kind arrived.
    first_item_at: float | None = None
    #: From the start of the request to the first text; None if none was delivered.
    first_text_seconds: float | None = None
    #: Of a prompt.
    at: Tally = NOTHING
    #: Number of answers that the worker has reported.
    answers: int = 1
    #: How long guardrails took.
    guard_seconds: float = 0.0


class AdmittedRequest(msgspec.Struct, Generic[Call], frozen=True):
    """What an admitted request may do."""

    choice: TargetChoice
    #: One for each target, in the order in which they are tried.
    calls: tuple[TargetCall[Call], ...]
    #: How many the request asked for.
    answers: int = 1
    #: None if nothing is looked for in the answer.
    guard: AnswerGuard | None = None
    #: None if no policy checks the texts.
    moderation: Moderation | None = None


class ActiveRequest:
    """Tracks one request from its arrival in the pipeline to its row."""

    def __init__(
        self,
        labels: RequestLabels,
        clock: Callable[[], float],
        *,
        began_at: datetime,
        is_all_or_nothing: bool = False,
        continues_elsewhere: Callable[[], bool] = lambda: False,
    ) -> None:
        """``began_at`` is by PostgreSQL's clock. ``is_all_or_nothing``: the caller gets the whole answer at the end, or an error.
        ``continues_elsewhere`` is called on cancellation: whether another gateway continues the request and writes its row."""
        self.method, self.operation = labels
        self.clock = clock
        self.is_all_or_nothing = is_all_or_nothing
        self.continues_elsewhere = continues_elsewhere
        # Callers never choose the id: it is the row's key, and a reused one would lose a row.
        self.request_id = (context.current.get() or context.start()).request_id
        self.began_at = began_at
        #: By the clock.
        self.began = clock()
        self.admission = AdmissionRecord()
        self.attempts = TargetAttempts()
        self.delivered = DeliveredAnswer()
        #: None until the request is admitted.
        self.answer: ActiveAnswer | None = None
        self.totals = NO_TOTALS
        #: A rollout already knows that it is late. Written by ``RolloutRunner``.
        self.is_counted_late = False

    def seconds_so_far(self) -> float:
        return self.clock() - self.began

    def end(self, status: RequestStatus) -> None:
        """Fix what was delivered, and what it costs."""
        now, answer = self.clock(), self.answer
        response_time_ms = milliseconds(now - self.began)
        if answer is None:
            self.totals = RequestTotals(response_time_ms)
            return
        usage, admission, delivered = answer.usage(), self.admission, self.delivered
        target, claims = self.attempts.target, self.attempts.claims
        has_delivered = delivered.complete or usage.completion_tokens > 0
        cost = saved = avoided = NO_TOTALS.cost_micro
        price = None if target is None else admission.held.prices.get(target.model)
        if price is not None and request_record.reservation_of(status, usage) is ReservationState.SETTLED:
            if not delivered.cached:
                # Waiting in the queue is free. A request that joined another's answer has no worker: count from its first item.
                joined = 0.0 if claims or delivered.first_item_at is None else now - delivered.first_item_at
                computed = joined + sum([claim.seconds for _, claim in claims])
                cost = price.cost(usage.prompt_tokens, usage.completion_tokens, computed)
            elif delivered.complete:
                saved = price.cost(usage.prompt_tokens, usage.completion_tokens, 0)
        upstream = answer.choice.upstream
        counted = usage if answer.has_prompt_count else msgspec.structs.replace(usage, prompt_tokens=0)
        spending = self.attempts.spending(upstream, counted, admission.likely_prompt_tokens, has_delivered=has_delivered)
        if upstream.compared is not None and claims and claims[-1][1].provider is None and has_delivered:
            avoided = upstream.compared.cost(usage)
        self.totals = answer.totals = RequestTotals(response_time_ms, usage, cost, saved, spending, avoided)

    @property
    def guard_counts(self) -> tuple[GuardCount, ...]:
        answer_matches = None if self.answer is None else self.answer.matches
        places = ((GuardPlace.PROMPT, self.admission.prompt_matches), (GuardPlace.ANSWER, answer_matches))
        return tuple(
            GuardCount(kind, action, place, number)
            for place, matches in places
            if matches is not None
            for (kind, action), number in sorted(matches.items())
        )


#: Opens the worker's stream for an ``ActiveAnswer``. Closing it ends the work there.
OpenAnswers = Callable[[Any], AsyncGenerator[Any]]


class ActiveAnswer(ABC):
    """The answer of an admitted request, as its caller reads it in the block of a pipeline's method."""

    #: This request has its own run.
    is_repeat = False
    #: Set by ``ActiveRequest.end``.
    totals = NO_TOTALS

    def __init__(self, request: ActiveRequest, admitted: AdmittedRequest[Any], open_answers: OpenAnswers) -> None:
        self.request_id, self.began_at = request.request_id, request.began_at
        self.admission, self.attempts, self.delivered = request.admission, request.attempts, request.delivered
        self._clock, self._began = request.clock, request.began
        self.choice, self.model = admitted.choice, admitted.choice.model
        moderation = admitted.moderation
        # If moderation holds it, the caller gets nothing before the end, and doesn't pay for an answer that can't be checked.
        self.is_all_or_nothing = request.is_all_or_nothing or (moderation is not None and moderation.holds)
        #: Number of items returned to the reader.
        self._number = 0
        self.answers = open_answers(self)

    @property
    def head(self) -> Self:
        return self

    @property
    def cached(self) -> bool:
        return self.delivered.cached

    @property
    def shown_route(self) -> RouteUse | None:
        route = self.attempts.route
        return route if route is None or self.choice.shows_target else replace(route, variant=None)

    @property
    def allowance(self) -> TightestLimit:
        return self.admission.limit_usage.tightest

    @property
    def clamped_to(self) -> int | None:
        """Return the lowered max_tokens, if the credits didn't cover the requested value."""
        held = self.admission.held
        return held.max_tokens if held.clamped else None

    @property
    def matches(self) -> GuardMatches | None:
        """Return what guardrails found in it; None if they don't check it."""
        return None

    @property
    def has_prompt_count(self) -> bool:
        """Return whether a worker has counted the prompt. Otherwise ``usage`` has a lower bound."""
        return True

    @abstractmethod
    def usage(self) -> Usage:
        """Return the tokens delivered so far."""


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
