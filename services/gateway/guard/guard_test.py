"""Shows what guardrails would do with a text."""

import asyncio

from services.gateway.guard import guarded_text
from services.gateway.guard.guard_rules import GuardScan
from services.gateway.guard.text_filter import Found, Part
from shared.api.configuration import GuardMatch, GuardTest
from shared.config_documents import GuardAction

_AT_ONCE = 2048
_MOST_MATCHES = 1_000


async def run(text: str, scan: GuardScan, *, is_answer: bool) -> GuardTest:
    opened = scan.open_filter()
    parts: list[Part] = []
    for start in range(0, len(text), _AT_ONCE):
        parts.extend(opened.feed(text[start : start + _AT_ONCE]))
        # Other requests get their turn.
        await asyncio.sleep(0)
    parts.extend(opened.end())
    matches: list[GuardMatch] = []
    shown: list[str] = []
    refused = False
    line, column = 1, 1
    for part in parts:
        passed = part.text if isinstance(part, Found) else part
        if isinstance(part, Found):
            action = scan.actions[part.kind]
            refused = refused or action is GuardAction.REFUSE
            matches.append(GuardMatch(part.kind, part.name, action, scan.levels[part.kind], line, column))
            passed = guarded_text.mask(part) if action is GuardAction.MASK else part.text
        if not refused:
            shown.append(passed)
        original = part.text if isinstance(part, Found) else part
        lines = original.count("\n")
        line, column = line + lines, len(original) - original.rfind("\n") if lines else column + len(original)
    return GuardTest(tuple(matches[:_MOST_MATCHES]), "".join(shown) if is_answer or not refused else "", refused)
