"""Finds the restrictions that a change of the configuration removes or loosens. Pure."""

from collections.abc import Iterator, Mapping

import msgspec

from services.gateway.facts import upstream_prices
from services.gateway.facts.config_snapshot import DocumentKey
from services.gateway.facts.unreadable import Unreadable
from shared.config_documents import (
    KEY_POLICY,
    RESTRICTING,
    Document,
    Flex,
    GuardAction,
    GuardDocument,
    Machines,
    ModerationRule,
    Money,
    PolicyDocument,
    StoredPrompts,
    TrustDocument,
    TrustMode,
)

_SWITCHES = ("direct_models", "show_targets", "store_items")
#: None is what the level above says, which can only forbid more.
_PROMPTS = {StoredPrompts.NEVER: 0, None: 1, StoredPrompts.DAY: 2}
#: Of moderation, from the mildest.
_ACTIONS = ("off", "report", "refuse")


def find(before: Mapping[DocumentKey, Document | Unreadable | None], changed: Mapping[DocumentKey, Document | None]) -> Iterator[str]:
    """Yield a line for each document whose restrictions become fewer, for people."""
    for (kind, name), after in changed.items():
        old = before.get((kind, name))
        if old is None or kind not in RESTRICTING:
            continue
        title = f"{kind.value} {name}"
        if isinstance(old, Unreadable):
            yield f"{title}: its version {old.version}, which this gateway can't read, no longer applies"
        elif after is None:
            yield f"{title} is removed, and no longer restricts anything"
        elif lost := tuple(_lost(name, old, after)):
            yield f"{title} restricts less: {', '.join(lost)}"


def _lost(name: str, old: Document, new: Document) -> Iterator[str]:
    """Yield the fields."""
    match old, new:
        case PolicyDocument(), PolicyDocument():
            yield from _lost_of_policy(name, old, new)
        case TrustDocument(), TrustDocument():
            if tuple(TrustMode).index(new.mode) < tuple(TrustMode).index(old.mode):
                yield "mode"
            if set(new.keys) - set(old.keys):
                yield "keys"
        case _:
            # What a field of these allows depends on the others; one that is left out no longer restricts.
            for field in msgspec.structs.fields(type(old)):
                if not field.required and getattr(old, field.name) != field.default == getattr(new, field.name):
                    yield field.name


def _lost_of_policy(name: str, old: PolicyDocument, new: PolicyDocument) -> Iterator[str]:
    # Levels other than keys that list no providers allow none.
    no_list = None if name.startswith(KEY_POLICY) else ()
    lists = {
        "external": (no_list if old.external is None else old.external, no_list if new.external is None else new.external),
        "models": (old.models, new.models),
        "targets": (old.targets, new.targets),
    }
    ceilings = {f"max_price.{of}": (_ceiling(old, of), _ceiling(new, of)) for of in ("input", "output")}
    lost = {
        **{field: was is not None and (now is None or set(now) - set(was)) for field, (was, now) in lists.items()},
        **{field: was is not None and (now is None or now > was) for field, (was, now) in ceilings.items()},
        **{field: getattr(old, field) is False and getattr(new, field) is not False for field in _SWITCHES},
        "machines": (old.machines or Machines.GROUP).is_narrower_than(new.machines or Machines.GROUP),
        "stored_prompts": _PROMPTS[new.stored_prompts] > _PROMPTS[old.stored_prompts],
        "flex": old.flex not in {None, Flex.ALLOWED, new.flex},
    }
    yield from (field for field, is_lost in lost.items() if is_lost)
    if old.guard is not None:
        yield from (f"guard.{field}" for field in _lost_of_guard(old.guard, new.guard or GuardDocument()))


def _ceiling(policy: PolicyDocument, field: str) -> int | None:
    ceiling: Money | None = None if policy.max_price is None else getattr(policy.max_price, field)
    return None if ceiling is None else upstream_prices.micro(ceiling)


def _lost_of_guard(old: GuardDocument, new: GuardDocument) -> Iterator[str]:
    for side in ("prompt", "answer"):
        now = getattr(new, side)
        yield from (
            f"{side}.{kind}" for kind, action in getattr(old, side).items() if action.is_stricter_than(now.get(kind, GuardAction.OFF))
        )
    lost = {
        "countries": set(old.countries) - set(new.countries),
        "patterns": set(old.patterns) - set(new.patterns),
        "allow": set(new.allow) - set(old.allow),
        "internal_ips": old.internal_ips and not new.internal_ips,
        "moderation": old.moderation not in {None, new.moderation} and not _is_stricter(new.moderation, old.moderation),
    }
    yield from (field for field, is_lost in lost.items() if is_lost)


def _is_stricter(new: ModerationRule | None, old: ModerationRule | None) -> bool:
    """Return whether only the actions differ, and are stricter: nobody can say whether another route or threshold is."""
    if new is None or old is None or msgspec.structs.replace(new, prompt=old.prompt, answer=old.answer) != old:
        return False
    return all(_ACTIONS.index(now) >= _ACTIONS.index(was) for now, was in ((new.prompt, old.prompt), (new.answer, old.answer)))
