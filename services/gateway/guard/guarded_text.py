"""Applies the actions of a policy to texts: masks what is found, or ends the text before it. Pure."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from services.gateway.facts.guardrails import GuardScan
from services.gateway.guard import text_filter
from services.gateway.guard.text_filter import Found, Part
from shared.config_documents import GuardAction, GuardKind

#: Characters read of the name before a value of JSON, such as "ssn".
_NAME_CHARACTERS = 30
#: How often each kind was found, and what was done.
GuardMatches = Counter[tuple[str, GuardAction]]


class GuardedText:
    """One text that arrives in pieces."""

    def __init__(self, scan: GuardScan, matches: GuardMatches, *, before: str = "") -> None:
        """``matches``: what this counts in. ``before``: see ``TextFilter``."""
        self._scan = scan
        self._matches = matches
        self._filter = text_filter.open_filter(scan, before)
        self._holds = scan.changes_text
        #: The kind for which the text ended early.
        self.refused: GuardKind | None = None

    def feed(self, piece: str) -> str:
        """Return what may be shown now; nothing after a refusal."""
        if self.refused is not None:
            return ""
        shown = self._apply(self._filter.feed(piece))
        return shown if self._holds else piece

    def end(self) -> str:
        """Return the rest."""
        if self.refused is not None:
            return ""
        shown = self._apply(self._filter.end())
        return shown if self._holds else ""

    def _apply(self, parts: Iterable[Part]) -> str:
        shown: list[str] = []
        for part in parts:
            if isinstance(part, str):
                shown.append(part)
                continue
            action = self._scan.actions[part.kind]
            self._matches[part.kind, action] += 1
            if action is GuardAction.REFUSE:
                self.refused = part.kind
                break
            shown.append(mask(part) if action is GuardAction.MASK else part.text)
        return "".join(shown)


def mask(found: Found) -> str:
    return f"[{found.name or found.kind}]"


def guard_whole(text: str, scan: GuardScan, matches: GuardMatches, *, before: str = "") -> tuple[str, GuardKind | None]:
    """Return the text to show, and the kind for which it is refused."""
    guarded = GuardedText(scan, matches, before=before)
    return guarded.feed(text) + guarded.end(), guarded.refused


def guard_json(text: str, scan: GuardScan, matches: GuardMatches) -> tuple[str, GuardKind | None]:
    """Guard each text inside a JSON document, so that it stays one; anything else as a whole."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return guard_whole(text, scan, matches)
    refused: list[GuardKind] = []

    def changed(value: Any, name: str) -> Any:
        if isinstance(value, str):
            shown, kind = guard_whole(value, scan, matches, before=f"{name[-_NAME_CHARACTERS:]}: ")
            refused.extend([] if kind is None else [kind])
            return shown
        if isinstance(value, dict):
            return {changed(key, ""): changed(child, key) for key, child in value.items()}
        if isinstance(value, list):
            return [changed(child, name) for child in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            # A number stays one unless it is found.
            written = str(value)
            shown = changed(written, name)
            return value if shown == written else shown
        return value

    found = changed(value, "")
    # Untouched arguments keep the model's spaces.
    return (text if found == value else msgspec.json.encode(found).decode()), (refused[0] if refused else None)
