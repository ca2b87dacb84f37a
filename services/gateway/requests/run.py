"""One request, from its arrival to its row: what it may do, what its caller has, how it ends and what it costs. Pure: each fact is a call.

It knows no connection, neither a worker's nor its caller's. ``Caller`` carries it out.
"""

from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec

from services.gateway.facts import request_record
from services.gateway.facts.guard_counts import GuardCount, GuardPlace
from services.gateway.facts.line_run import LineRun
from services.gateway.facts.reader import AnswerHead
from services.gateway.facts.request_record import RequestLabels, RequestRow, ReservationState
from services.gateway.facts.tally import Tally
from services.gateway.facts.upstream_prices import TargetSpending
from services.gateway.facts.waiting_request import WaitingRequest
from services.gateway.limits import limit_rules
from services.gateway.requests import generation
from services.gateway.requests.answers import Answer, TextAnswer
from services.gateway.requests.plan import NOT_COUNTED, AdmissionRecord, Plan
from services.gateway.requests.targets import SharedClaims, TargetAttempts, TargetCall
from services.gateway.scheduling.worker_claims import Claim
from shared import errors, plan_names
from shared.api.auth import IdentifyOwner, Principal
from shared.api.generation import Usage
from shared.types import MicroCredits, RequestId, RequestStatus

NO_USAGE = Usage(0, 0)

_FREE = MicroCredits(0)
_MAX_ROW_NUMBER = 2**31 - 1
#: How early a deadline may fire by our clock.
_CLOCK_SLACK_SECONDS = 0.05


class Run:
    def __init__(
        self, labels: RequestLabels, principal: Principal, request_id: RequestId, *, now: float, seconds: float, began_at: datetime,
        is_all_or_nothing: bool = False, line: LineRun | None = None,
    ) -> None:  # fmt: skip
        """``now`` is by the gateway's clock, ``began_at`` by PostgreSQL's. ``is_all_or_nothing``: its caller gets the
        whole answer at the end, or an error."""
        self.method, self.operation = labels
        self.principal, self.request_id, self.began_at = principal, request_id, began_at
        #: The line of a job that it answers; None for a caller.
        self.line = line
        self.admission, self.attempts = AdmissionRecord(), TargetAttempts()
        self.is_all_or_nothing = is_all_or_nothing
        self._began, self._seconds = now, seconds
        #: These three are None until it is admitted.
        self.plan: Plan[Any] | None = None
        self.answer: Answer | None = None
        self.head: AnswerHead | None = None
        #: It comes from the response cache.
        self.cached = False
        self.first_item_at: float | None = None
        #: From the start of the request to the first text; None if none was delivered.
        self.first_text_seconds: float | None = None
        self._number = 0
        self.status = RequestStatus.ERROR
        self.failure: errors.AimeshError | None = None
        #: What is billed, what it costs, and how long it took. Set by ``end``.
        self.usage, self.cost_micro, self.response_time_ms = NO_USAGE, _FREE, 0
        #: A rollout already knows that it is late.
        self._is_counted_late = False

    # --- facts, in their order ----------------------------------------------------------------------------------------

    def allowed(self, seconds: float) -> None:
        """It may take so long."""
        self._seconds = seconds

    def admitted(self, plan: Plan[Any], answer: Answer) -> AnswerHead:
        self.plan, self.answer = plan, answer
        # If moderation holds it, the caller gets nothing before the end, and doesn't pay for an answer that can't be checked.
        self.is_all_or_nothing = self.is_all_or_nothing or (plan.moderation is not None and plan.moderation.holds)
        # Now, because the head names the route.
        self.attempts.try_target(plan.calls[0].target)
        route = self.attempts.route
        self.head = AnswerHead(
            self.request_id,
            plan.choice.model,
            self.began_at,
            route if route is None or plan.choice.shows_target else replace(route, variant=None),
            plan.choice.version,
            self.admission.limit_usage.tightest,
            self.clamped_to,
            is_flex=self.admission.is_batch,
        )
        return self.head

    def opened(self, shared: SharedClaims, *, cached: bool = False, has_joined: bool = False) -> None:
        """The answer is one that several requests may read: from the cache, or of workers that others may have asked."""
        assert self.answer is not None
        assert self.head is not None
        self.cached = self.answer.cached = self.head.cached = cached
        self.attempts.shared, self.attempts.has_joined = shared, has_joined

    def take(self, piece: Any, at: Tally, now: float) -> tuple[int, Any] | None:
        """Return what the caller gets of the next piece, with its number. Raises what the answer raises."""
        assert self.answer is not None
        if self.first_item_at is None:
            self.first_item_at = now
        shown = self.answer.take(piece, at)
        if self.first_text_seconds is None and at.pieces:
            self.first_text_seconds = now - self._began
        if shown is None:
            return None
        self._number += 1
        return self._number, shown

    def numbered(self, piece: Any) -> tuple[int, Any]:
        self._number += 1
        return self._number, piece

    def may_fall_back(self, call: TargetCall[Any], error: errors.AimeshError) -> bool:
        """Return whether another target may answer a request that has failed at this one."""
        assert self.answer is not None
        return not self.answer.has_part and call.requirements.has_alternative and generation.may_try_another_target(error)

    def failed(self, error: errors.AimeshError) -> None:
        self.failure, self.status = error, request_record.status_of(error)
        if self.admission.limit_usage is not NOT_COUNTED:
            limit_rules.attach_limits(error, self.admission.limit_usage.tightest)
        request_record.mark_row(error)

    def cancelled(self, now: float) -> None:
        """A deadline is a cancellation, too."""
        is_late = now - self._began - self.attempts.start_wait_seconds >= self._seconds - _CLOCK_SLACK_SECONDS
        self.status = RequestStatus.TIMEOUT if is_late else RequestStatus.CANCELLED

    def succeeded(self) -> None:
        assert self.answer is not None
        assert self.answer.is_complete
        self.status = RequestStatus.SUCCESS

    # --- what it knows ------------------------------------------------------------------------------------------------

    @property
    def caller(self) -> IdentifyOwner:
        """Return whose rights it needs."""
        return IdentifyOwner(self.principal.user_id, self.principal.key_id, self.principal.team_id)

    @property
    def clamped_to(self) -> int | None:
        """Return the lowered max_tokens, if the credits didn't cover the requested value."""
        held = self.admission.held
        return held.max_tokens if held.clamped else None

    @property
    def has_content(self) -> bool:
        return self.answer is not None and bool(self.answer.at.ids or self.answer.at.pieces)

    def waiting(self, now: float) -> WaitingRequest | None:
        """Return it for rollouts, as long as it has no text, and none knows that it is late. Other answers have no first text."""
        route = self.attempts.route
        if route is None or self._is_counted_late or self.first_text_seconds is not None or not isinstance(self.answer, TextAnswer):
            return None
        waited_ms = milliseconds(now - self._began)
        return WaitingRequest(
            principal=self.principal, route=route, began_at=self.began_at, waited_ms=waited_ms, mark_counted=self._mark_counted
        )

    def _mark_counted(self) -> None:
        self._is_counted_late = True

    # --- its end ------------------------------------------------------------------------------------------------------

    def end(self, now: float) -> RequestRow:
        """Fix what was delivered, and return what it costs. Call it once."""
        answer, record, attempts, status, failure = self.answer, self.admission, self.attempts, self.status, self.failure
        self.response_time_ms = milliseconds(now - self._began)
        usage = self.usage = NO_USAGE if answer is None else answer.usage()
        is_success, is_complete = status is RequestStatus.SUCCESS, answer is not None and answer.is_complete
        # The caller of an unstreamed answer gets nothing if it fails or is too large for the caller's API, so it costs nothing.
        is_lost = status in {RequestStatus.ERROR, RequestStatus.TIMEOUT} or isinstance(failure, errors.TooLarge)
        is_free = is_lost and answer is not None and self.is_all_or_nothing
        target, claim = attempts.target, attempts.claims[-1][1] if attempts.claims else None
        route, first_text = attempts.route, self.first_text_seconds
        self.cost_micro, saved, covered_tokens = self._costs(now)
        variant_failed: bool | None = None
        if route is not None and (answer is None or answer.judges_target):
            variant_failed = attempts.find_fault(status, failure, complete=is_complete, cached=self.cached)
        return RequestRow(
            id=self.request_id,
            user_id=self.principal.user_id,
            team_id=self.principal.team_id,
            api_key_id=self.principal.key_id,
            prompt_hash=record.prompt_hash,
            model_used=None if target is None else target.model,
            response_time_ms=min(self.response_time_ms, _MAX_ROW_NUMBER),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            status=status,
            error_code=None if is_success else request_record.error_code_of(status, failure),
            error_field=None if failure is None else request_record.logged_field_of(failure),
            ignored_fields=record.ignored_fields or None,
            created_at=self.began_at,
            cost_micro=_FREE if is_free else self.cost_micro,
            covered_tokens=0 if is_free else covered_tokens,
            cached=self.cached,
            reservation=ReservationState.RELEASED if is_free else request_record.reservation_of(status, usage),
            worker_owner=None if claim is None else claim.worker.announcement.owner or None,
            worker_labels=() if claim is None else tuple(sorted(claim.worker.announcement.labels.items())),
            begins_conversation=record.begins_conversation,
            saved_micro=saved,
            route=route,
            provider=None if claim is None else claim.provider,
            attempts=len(attempts.claims),
            spending=self._spending(usage),
            avoided_micro=self._avoided(usage),
            first_token_ms=None if first_text is None else min(milliseconds(first_text), _MAX_ROW_NUMBER),
            variant_failed=variant_failed,
            is_counted_late=self._is_counted_late,
            plan=plan_names.name_of(self.principal.tier),
            guard=self._guard_counts() if record.is_guarded else (),
            job_id=None if self.line is None else self.line.job_id,
            is_batch=record.is_batch,
        )

    def _costs(self, now: float) -> tuple[MicroCredits, MicroCredits, int]:
        """Return what it costs, what a cached answer has saved, and how many tokens of the plan it used."""
        target, claims, usage = self.attempts.target, self.attempts.claims, self.usage
        price = None if target is None or self.answer is None else self.admission.held.prices.get(target.model)
        if target is None or price is None or request_record.reservation_of(self.status, usage) is not ReservationState.SETTLED:
            return _FREE, _FREE, 0
        if self.cached:
            is_complete = self.answer is not None and self.answer.is_complete
            return _FREE, price.cost(usage.prompt_tokens, usage.completion_tokens, 0) if is_complete else _FREE, 0
        # Waiting in the queue is free. A request that joined another's answer has no worker: count from its first item.
        joined = 0.0 if claims or self.first_item_at is None else now - self.first_item_at
        computed = joined + sum([claim.seconds for _, claim in claims])
        computed = min(computed, self.admission.held.seconds.get(target.model, computed))
        cost, covered = price.settle(usage, computed, self.admission.held.plan_tokens)
        return cost, _FREE, covered

    @property
    def measured(self) -> Claim | None:
        """Return the only worker of an answer that says how long its model computes. What runs behind live requests doesn't."""
        claims = self.attempts.claims
        is_whole = self.status is RequestStatus.SUCCESS and self.usage.completion_tokens > 0 and not self.admission.is_batch
        return claims[0][1] if is_whole and len(claims) == 1 else None

    @property
    def _has_delivered(self) -> bool:
        return self.answer is not None and (self.answer.is_complete or self.usage.completion_tokens > 0)

    def _spending(self, usage: Usage) -> tuple[TargetSpending, ...]:
        if self.plan is None or self.answer is None:
            return ()
        counted = usage if self.answer.has_prompt_count else msgspec.structs.replace(usage, prompt_tokens=0)
        likely, upstream = self.admission.likely_prompt_tokens, self.plan.choice.upstream
        return self.attempts.spending(upstream, counted, likely, has_delivered=self._has_delivered)

    def _avoided(self, usage: Usage) -> MicroCredits:
        """Return what an answer of our own machines would have cost upstream, where its route compares it."""
        compared = None if self.plan is None else self.plan.choice.upstream.compared
        claims = self.attempts.claims
        is_own = bool(claims) and claims[-1][1].provider is None
        return compared.cost(usage) if compared is not None and is_own and self._has_delivered else _FREE

    def _guard_counts(self) -> tuple[GuardCount, ...]:
        answer_matches = None if self.answer is None else self.answer.matches
        places = ((GuardPlace.PROMPT, self.admission.prompt_matches), (GuardPlace.ANSWER, answer_matches))
        return tuple(
            GuardCount(kind, action, place, number)
            for place, matches in places
            if matches is not None
            for (kind, action), number in sorted(matches.items())
        )


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
