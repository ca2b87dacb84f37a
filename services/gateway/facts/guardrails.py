"""Combines the guardrails of all levels into those of one caller. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from shared.config_documents import GuardAction, GuardDocument, GuardKind, GuardPattern, ModerationRule


@dataclass(frozen=True)
class GuardScan:
    """What is looked for in prompts, or in answers."""

    actions: Mapping[GuardKind, GuardAction] = field(default_factory=dict)
    #: The level that each action comes from.
    levels: Mapping[GuardKind, str] = field(default_factory=dict)
    countries: tuple[str, ...] = ()
    patterns: tuple[GuardPattern, ...] = ()
    allow: tuple[str, ...] = ()
    internal_ips: bool = False

    def __bool__(self) -> bool:
        return bool(self.actions)

    @cached_property
    def changes_text(self) -> bool:
        """Return whether it masks or refuses something, so that streams must wait for matches."""
        return any(action.is_stricter_than(GuardAction.REPORT) for action in self.actions.values())

    @property
    def has_patterns(self) -> bool:
        return bool(self.patterns) and GuardKind.OWN in self.actions


NOTHING = GuardScan()


@dataclass(frozen=True, slots=True)
class LeveledModeration:
    level: str
    rule: ModerationRule


@dataclass(frozen=True, slots=True)
class Guardrails:
    """The guardrails of one caller."""

    prompt: GuardScan = NOTHING
    answer: GuardScan = NOTHING
    #: All apply: the checks of different models can't be merged into a stricter check.
    moderation: tuple[LeveledModeration, ...] = ()


NO_GUARD = Guardrails()


def combine(levels: Sequence[tuple[str, GuardDocument]]) -> Guardrails:
    """Take the strictest action of each kind, and everything that any level looks for."""
    if not levels:
        return NO_GUARD
    documents = [document for _, document in levels]
    countries = tuple(dict.fromkeys(country for document in documents for country in document.countries))
    patterns = tuple(dict.fromkeys(pattern for document in documents for pattern in document.patterns))
    allow = tuple(text for text in documents[0].allow if all(text in document.allow for document in documents))
    internal = any(document.internal_ips for document in documents)

    def scan(place: Iterable[tuple[str, Mapping[GuardKind, GuardAction]]]) -> GuardScan:
        found = _strictest(place)
        actions, by = {kind: action for kind, (action, _) in found.items()}, {kind: level for kind, (_, level) in found.items()}
        return GuardScan(actions, by, countries, patterns, allow, internal) if actions else NOTHING

    return Guardrails(
        scan((level, document.prompt) for level, document in levels),
        scan((level, document.answer) for level, document in levels),
        tuple(LeveledModeration(level, document.moderation) for level, document in levels if document.moderation is not None),
    )


def _strictest(levels: Iterable[tuple[str, Mapping[GuardKind, GuardAction]]]) -> dict[GuardKind, tuple[GuardAction, str]]:
    found: dict[GuardKind, tuple[GuardAction, str]] = {}
    for level, actions in levels:
        for kind, action in actions.items():
            known = found.get(kind, (GuardAction.OFF, ""))[0]
            if action.is_stricter_than(known):
                found[kind] = action, level
    return {kind: found[kind] for kind in GuardKind if kind in found}
