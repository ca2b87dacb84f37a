"""What a tier includes, from the settings. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from shared.api.ledger import MICRO
from shared.types import MicroCredits, ModelName, Tier

#: What may be set of a tier, by the name it has in the settings.
NUMBERS = ("requests_per_hour", "requests_per_minute", "tokens_per_minute", "concurrency", "credits")
#: What may be set of a model: it belongs to nobody, so it has no credits.
LIMITS = NUMBERS[:-1]
#: Instead of a number: no limit.
UNLIMITED = "unlimited"


@dataclass(frozen=True, slots=True)
class TierPlan:
    """None is no limit."""

    requests_per_hour: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    #: Requests of one user that run at once.
    concurrency: int | None
    #: Credits of each month.
    credits: int | None
    #: The setting that each number comes from, by the number's name; one that is not here is the default.
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    def source_of(self, name: str) -> str:
        """For people: the setting that the number comes from."""
        return self.sources.get(name, "default")

    @property
    def monthly_micro(self) -> MicroCredits | None:
        return None if self.credits is None else MicroCredits(self.credits * MICRO)


DEFAULTS = {
    Tier.FREE: TierPlan(100, 10, None, 10, 100_000),
    Tier.PRO: TierPlan(1_000, 100, None, 100, 1_000_000),
    # What an enterprise gets is agreed with it.
    Tier.ENTERPRISE: TierPlan(None, None, None, None, None),
}


#: Of a model that the settings do not name.
NO_LIMITS = TierPlan(None, None, None, None, None)


def with_old_setting(plan: TierPlan, setting: str, requests_per_hour: int | None, numbers: Mapping[str, str]) -> TierPlan:
    """The plan where a setting for its hour alone is set. That setting binds: unless the tier's own ``numbers`` name a limit of a minute,
    there is none, which would refuse what the hour allows."""
    if requests_per_hour is None:
        return plan
    sources = {**plan.sources, "requests_per_hour": setting}
    minute = plan.requests_per_minute if "requests_per_minute" in numbers else None
    return replace(plan, requests_per_hour=requests_per_hour, requests_per_minute=minute, sources=sources)


def plan_of(plans: Mapping[Tier, TierPlan], tier: Tier, *, shares_limits: bool) -> TierPlan:
    """An organization that shares its founder's limits has no included credits: else each founding would bring some."""
    return replace(plans[tier], credits=0) if shares_limits else plans[tier]


def changed(plan: TierPlan, numbers: Mapping[str, str], allowed: Sequence[str] = NUMBERS, *, setting: str = "") -> TierPlan:
    """The plan with other numbers, from a setting of this name. Raises ValueError, for people, with all that is wrong."""
    found: dict[str, int | None] = {}
    mistakes: list[str] = []
    for name, text in numbers.items():
        try:
            found[name] = _number(name, text, allowed)
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return replace(plan, **found, sources={**plan.sources, **dict.fromkeys(found, setting)})


def of_models(numbers: Mapping[str, str]) -> dict[ModelName, TierPlan]:
    """The plans of models from `model.name` and a number each. Raises ValueError, for people, with all that is wrong."""
    by_model: dict[ModelName, dict[str, str]] = {}
    for place, text in numbers.items():
        # A model's name may have dots of its own.
        model, _, name = place.rpartition(".")
        by_model.setdefault(ModelName(model), {})[name] = text
    plans: dict[ModelName, TierPlan] = {}
    mistakes: list[str] = []
    for model, of_model in by_model.items():
        if not model:
            mistakes.append(f"{', '.join(of_model)}: say model.{LIMITS[0]}=number")
            continue
        try:
            plans[model] = changed(NO_LIMITS, of_model, LIMITS, setting="MODEL_LIMITS")
        except ValueError as error:
            mistakes.append(f"{model}: {error}")
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return plans


def _number(name: str, text: str, allowed: Sequence[str]) -> int | None:
    if name not in allowed:
        raise ValueError(f"{name!r} is none of {', '.join(allowed)}")
    if text == UNLIMITED:
        return None
    if not text.isascii() or not text.isdigit() or not (0 if name == "credits" else 1) <= int(text) <= 10**12:
        raise ValueError(f"{name}={text}: say a whole number, or {UNLIMITED}")
    return int(text)
