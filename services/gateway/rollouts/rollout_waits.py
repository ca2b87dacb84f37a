"""Finds running requests of open rollouts that have waited longer for their first text than the baseline's usually do.

They count as late at once: a candidate that hangs would otherwise be seen only when its requests reach their deadlines.
"""

from collections.abc import Iterator, Mapping
from uuid import UUID

from services.gateway.active_request import ActivePrompt, ActiveRequest, milliseconds
from services.gateway.rollouts.rollout_evidence import RequestOutcome
from services.gateway.scheduling.route_choice import OpenRollout
from shared.api.auth import Principal


def find_late(
    rollouts: Mapping[str, OpenRollout], requests: Mapping[ActiveRequest, Principal]
) -> Iterator[tuple[UUID, ActiveRequest, RequestOutcome]]:
    """Yield running requests that are late and not yet counted, with their rollouts. ``rollouts``: those of this gateway, by route."""
    if not rollouts:
        return
    for running, principal in list(requests.items()):
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
