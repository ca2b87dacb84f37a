"""Finds running requests of open rollouts that have waited longer for their first text than the baseline's usually do.

They count as late at once: a candidate that hangs would otherwise be seen only when its requests reach their deadlines.
"""

from collections.abc import Callable, Iterator, Mapping
from uuid import UUID

from services.gateway.active_request import ActivePrompt, ActiveRequest, milliseconds
from services.gateway.billing.request_record import RequestRow
from services.gateway.rollouts.rollout_evidence import RequestOutcome
from services.gateway.scheduling.route_choice import OpenRollout
from shared.api.auth import Principal


class RolloutWaits:
    """``open_rollouts`` returns those of this gateway by route. ``on_end`` is called with each request and its row, if there is one."""

    def __init__(
        self, open_rollouts: Callable[[], Mapping[str, OpenRollout]], on_end: Callable[[ActiveRequest, RequestRow | None], None]
    ) -> None:
        self._open_rollouts, self._on_end = open_rollouts, on_end
        self._running: dict[ActiveRequest, Principal] = {}

    def follow(self, running: ActiveRequest, principal: Principal) -> Callable[[RequestRow | None], None]:
        """Follow a request until the returned function is called."""
        self._running[running] = principal

        def on_end(row: RequestRow | None) -> None:
            self._running.pop(running, None)
            self._on_end(running, row)

        return on_end

    def find_late(self) -> Iterator[tuple[UUID, ActiveRequest, RequestOutcome]]:
        """Yield requests that are late and not yet counted, with their rollouts."""
        rollouts = self._open_rollouts()
        if not rollouts:
            return
        for running, principal in list(self._running.items()):
            used = running.route
            # Embeddings have no first text.
            if used is None or not used.is_compared or used.target != used.variant or not isinstance(running, ActivePrompt):
                continue
            rollout = rollouts.get(used.route)
            if rollout is None or rollout.first_token_limit_ms is None or running.is_counted_late or running.first_text_seconds is not None:
                continue
            waited_ms = milliseconds(running.seconds_so_far)
            if waited_ms > rollout.first_token_limit_ms and used.variant in {rollout.plan.candidate, rollout.plan.baseline}:
                is_candidate = used.variant == rollout.plan.candidate
                outcome = RequestOutcome(
                    is_candidate=is_candidate,
                    tenant=principal.tenant_id,
                    user=principal.user_id,
                    began_at=running.began_at,
                    has_ended=False,
                    waited_ms=waited_ms,
                )
                yield rollout.id, running, outcome
