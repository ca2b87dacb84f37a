"""A route with its targets, as compiled from its document, and the draw among them. Pure.

A target is drawn by share: the same conversation always gets the same one, at every gateway. Raising one of two shares from 10 to 50
percent keeps the first 10 percent where they are.
"""

import hashlib
from dataclasses import dataclass
from uuid import UUID

from services.gateway.facts import active_hours, upstream_prices
from services.gateway.facts.active_hours import ActiveHours
from shared.api.configuration import RolloutPlan
from shared.config_documents import ModerationFormat, RouteDocument, Sticky, TargetConditions, TargetDocument
from shared.types import MicroCredits, ModelName

#: All shares of a route, in hundredths of a percent.
WHOLE = 10_000


@dataclass(frozen=True, slots=True)
class RouteTarget:
    name: str
    model: ModelName
    #: In hundredths of a percent.
    share: int
    #: None if it is no fallback.
    order: int | None
    when: TargetConditions | None
    #: Upstream money for a UTC day; None for no limit.
    ceiling_micro: MicroCredits | None = None
    #: None for always.
    hours: ActiveHours | None = None
    #: How a chat model that moderates writes its verdict; None for other models.
    format: ModerationFormat | None = None


@dataclass(frozen=True, slots=True)
class OpenRollout:
    """A rollout that moves units of a route from one target to another."""

    id: UUID
    plan: RolloutPlan
    #: The position in ``plan.steps``.
    step: int
    #: Answers that begin later are late; None if that isn't known yet.
    first_token_limit_ms: int | None = None

    @property
    def share(self) -> int:
        """Return the candidate's share of the baseline's units, in hundredths of a percent."""
        return hundredths(self.plan.steps[self.step])


@dataclass(frozen=True, slots=True)
class TargetDraw:
    target: RouteTarget
    #: The target from which a rollout moved the unit.
    moved_from: RouteTarget | None = None


@dataclass(frozen=True, slots=True)
class Route:
    name: str
    version: int
    sticky: Sticky
    spill_after_seconds: float | None
    targets: tuple[RouteTarget, ...]
    #: Callers pay the price of the route's name, whichever target answers.
    has_own_price: bool = False
    #: The model whose upstream price internal answers are compared with.
    compared_with: ModelName | None = None
    rollout: OpenRollout | None = None
    #: It checks texts, and answers no prompts.
    moderates: bool = False
    #: See ``RouteDocument.kept_seconds``.
    cache_seconds: int | None = None

    @property
    def models(self) -> frozenset[ModelName]:
        return frozenset(target.model for target in self.targets)

    def draw(self, unit: bytes) -> TargetDraw | None:
        """Return the target with the unit's share; None if no target has one."""
        # 64 bits of a hash of name, salt (none so far) and unit, scaled to a number below WHOLE.
        digest = hashlib.sha256(self.name.encode() + b"\0\0" + unit).digest()
        point = int.from_bytes(digest[:8], "big") * WHOLE
        for target in self.targets:
            width = target.share << 64
            if point < width:
                return self._move(target, point / width)
            point -= width
        return None

    def _move(self, target: RouteTarget, position: float) -> TargetDraw:
        """Give the first of the baseline's units to the candidate, so that a raise moves nobody back."""
        if self.rollout is None or target.name != self.rollout.plan.baseline or position * WHOLE >= self.rollout.share:
            return TargetDraw(target)
        return TargetDraw(self.find_target(self.rollout.plan.candidate) or target, target)

    def find_target(self, name: str) -> RouteTarget | None:
        return next((target for target in self.targets if target.name == name), None)


def compile_route(name: str, version: int, document: RouteDocument, rollout: OpenRollout | None = None) -> Route:
    only_one = len(document.targets) == 1
    targets = tuple(_target(target, whole=only_one and target.share is None) for target in document.targets)
    compared = {target.name: target.model for target in targets}.get(document.compare_cost_with or "", document.compare_cost_with)
    return Route(
        name,
        version,
        document.sticky,
        document.spill_after_seconds,
        targets,
        has_own_price=document.price == "route",
        compared_with=None if compared is None else ModelName(compared),
        rollout=rollout,
        moderates=document.targets[0].moderates,
        cache_seconds=document.kept_seconds,
    )


def _target(document: TargetDocument, *, whole: bool) -> RouteTarget:
    share = WHOLE if whole else hundredths(document.share or 0)
    ceiling = None if document.daily_ceiling is None else upstream_prices.micro(document.daily_ceiling)
    hours = None if document.when is None or document.when.hours is None else active_hours.parse(document.when.hours)
    return RouteTarget(document.name, ModelName(document.model), share, document.order, document.when, ceiling, hours, document.format)


def hundredths(percent: float) -> int:
    return round(percent * 100)
