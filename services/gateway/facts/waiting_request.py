"""A request that has no text yet, for rollouts."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from services.gateway.facts.request_record import RouteUse
from shared.api.auth import Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingRequest:
    principal: Principal
    route: RouteUse
    began_at: datetime
    waited_ms: int
    #: Says that a rollout knows that it is late.
    mark_counted: Callable[[], object]
