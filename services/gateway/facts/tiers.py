"""Defines what each tier includes, from the settings. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from services.gateway.facts.unreadable import Unreadable
from shared import limits, plan_names
from shared.api.ledger import MICRO
from shared.config_documents import Flex
from shared.types import MicroCredits, ModelName, PlanName, Tier

#: The numbers of a tier, by their names in the settings.
NUMBERS = (*limits.BY_NAME, "included_tokens", "file_bytes", "queued_lines")
#: Gateways of version 0.3 don't know them.
NEW_NUMBERS = ("included_tokens", "file_bytes", "queued_lines")
#: The setting's value for no limit.
UNLIMITED = "unlimited"
#: While Valkey is down: each gateway counts alone, nothing is counted, or every request is refused.
WithoutValkey = Literal["degrade", "open", "closed"]


_NOTHING = MicroCredits(0)


@dataclass(frozen=True, slots=True)
@limits.fields(int | None)
class TierPlan:
    """The limits of a tier or model, and what a tier includes; None means no limit."""

    #: Tokens each month, while MONEY is on. A model has no account and so no tokens.
    included_tokens: int | None = None
    #: Of all stored files together.
    file_bytes: int | None = None
    #: Of batches, that have no result.
    queued_lines: int | None = None
    #: How far the balance of an account may fall below zero.
    overage_micro: MicroCredits | None = _NOTHING
    #: For a month; None: agreed with each customer.
    fee_micro: MicroCredits | None = _NOTHING
    flex: Flex = Flex.ALLOWED
    #: Whether people may choose it.
    for_sale: bool = False
    #: The ids of its prices at payment providers.
    stripe_price: str | None = None
    stripe_meter: str | None = None
    paddle_price: str | None = None
    #: It includes tokens, which an account gets once it has verified its address.
    withholds_tokens: bool = False
    #: Its document, if this gateway can't read it: then the numbers are only defaults.
    unreadable: Unreadable | None = None
    #: The setting that defines each number; missing ones are defaults.
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    def source_of(self, name: str) -> str:
        """Return the setting that defines the number, for people."""
        return self.sources.get(name, "default")


#: Enterprise is negotiated with each customer.
_INCLUDED = {
    Tier.FREE: TierPlan(included_tokens=100_000, file_bytes=1 << 30, queued_lines=50_000, for_sale=True),
    Tier.PRO: TierPlan(included_tokens=1_000_000, file_bytes=10 << 30, fee_micro=MicroCredits(29 * MICRO), for_sale=True),
    Tier.ENTERPRISE: TierPlan(overage_micro=None, fee_micro=None),
}
DEFAULTS: Mapping[PlanName, TierPlan] = {
    tier: replace(_INCLUDED[tier], **{kind.name: kind.defaults.get(tier) for kind in limits.LIMITS})  # type: ignore[arg-type]
    for tier in Tier
}


#: For models without settings.
NO_LIMITS = TierPlan()


@dataclass(frozen=True, slots=True)
class LimitRules:
    plans: Mapping[PlanName, TierPlan] = field(default_factory=lambda: DEFAULTS)
    #: Limits of a model over all its callers.
    models: Mapping[ModelName, TierPlan] = field(default_factory=dict)

    def plan_of(self, tier: PlanName, *, shares_limits: bool = False, has_free_tokens: bool = True) -> TierPlan:
        """Return the tier's plan, or its version, as in `pro@3`; that of `free` if the configuration has lost it. An organization that
        shares its founder's limits gets no tokens, and a user who may not have free ones gets those of a plan with a fee: otherwise people
        could found organizations, or register again, to get more. Raises ConfigUnreadable."""
        plan = self.plans.get(tier) or self.plans.get(plan_names.name_of(tier)) or self.plans[Tier.FREE]
        if plan.unreadable is not None:
            raise plan.unreadable.problem()
        if shares_limits:
            return replace(plan, included_tokens=0)
        if not has_free_tokens and plan.fee_micro == 0 and plan.included_tokens != 0:
            return replace(plan, included_tokens=0, withholds_tokens=True)
        return plan


def with_old_setting(plan: TierPlan, setting: str, requests_per_hour: int | None, numbers: Mapping[str, str]) -> TierPlan:
    """Apply the older setting for requests per hour. Drop the tier's default limit per minute, which could refuse what the hour allows,
    unless the tier's own ``numbers`` set one."""
    if requests_per_hour is None:
        return plan
    changes: dict[str, int | None] = {"requests_per_hour": requests_per_hour}
    dropped = {name: None for name in ("requests_per_minute",) if name not in numbers}
    return replace(with_numbers(plan, changes, setting), **dropped)  # type: ignore[arg-type]


def label_of(tier: PlanName) -> str:
    """Return the label of metrics: their number must not grow with the configuration."""
    return name if (name := plan_names.name_of(tier)) in DEFAULTS else "other"


def changed(plan: TierPlan, numbers: Mapping[str, str], allowed: Sequence[str] = NUMBERS, *, setting: str = "") -> TierPlan:
    """Return the plan with other numbers from ``setting``. Raises ValueError that lists all mistakes, for people."""
    found: dict[str, int | None] = {}
    mistakes: list[str] = []
    for name, text in numbers.items():
        try:
            found[name] = _number(name, text, allowed)
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return with_numbers(plan, found, setting)


def with_numbers(plan: TierPlan, numbers: Mapping[str, int | None], source: str) -> TierPlan:
    changes: dict[str, Any] = {**numbers, "sources": {**plan.sources, **dict.fromkeys(numbers, source)}}
    return replace(plan, **changes)


def of_models(numbers: Mapping[str, str]) -> dict[ModelName, TierPlan]:
    """Parse plans from `model.name` and number pairs. Raises ValueError that lists all mistakes, for people."""
    by_model: dict[ModelName, dict[str, str]] = {}
    for key, text in numbers.items():
        # A model's name may contain dots.
        model, _, name = key.rpartition(".")
        by_model.setdefault(ModelName(model), {})[name] = text
    plans: dict[ModelName, TierPlan] = {}
    mistakes: list[str] = []
    for model, model_numbers in by_model.items():
        if not model:
            mistakes.append(f"{', '.join(model_numbers)}: write model.{limits.LIMITS[0].name}=number")
            continue
        try:
            plans[model] = changed(NO_LIMITS, model_numbers, tuple(limits.BY_NAME), setting="MODEL_LIMITS")
        except ValueError as error:
            mistakes.append(f"{model}: {error}")
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return plans


def _number(name: str, text: str, allowed: Sequence[str]) -> int | None:
    if name not in allowed:
        raise ValueError(f"{name!r} is not one of {', '.join(allowed)}")
    if text == UNLIMITED:
        return None
    if not text.isascii() or not text.isdigit() or not (1 if name in limits.BY_NAME else 0) <= int(text) <= 10**12:
        raise ValueError(f"{name}={text}: use a whole number, or {UNLIMITED}")
    return int(text)
