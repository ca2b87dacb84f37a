"""Finds running prompts whose callers have no text yet, for rollouts."""

from collections.abc import Iterator, Mapping

from services.gateway.requests.active_prompt import ActivePrompt
from services.gateway.requests.active_request import ActiveRequest, milliseconds
from services.gateway.rollouts.rollout_runner import WaitingRequest
from shared.api.auth import Principal


def find(running: Mapping[ActiveRequest, Principal]) -> Iterator[WaitingRequest]:
    """Yield those that no rollout has counted as late."""
    for request, caller in list(running.items()):
        used = request.attempts.route
        has_text = request.delivered.first_text_seconds is not None
        # Embeddings have no first text.
        if used is not None and isinstance(request.answer, ActivePrompt) and not has_text and not request.is_counted_late:
            yield WaitingRequest(used, caller, request.began_at, milliseconds(request.seconds_so_far()), request)
