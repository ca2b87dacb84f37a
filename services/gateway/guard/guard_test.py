"""Shows what guardrails would do with a text."""

from services.gateway.facts.guardrails import GuardScan
from services.gateway.guard import guarded_text, prompt_guard, text_filter
from services.gateway.guard.text_filter import Found
from shared.api.configuration import MAX_GUARD_MATCHES, GuardMatch, GuardTest
from shared.config_documents import GuardAction


async def run(text: str, scan: GuardScan, *, is_answer: bool) -> GuardTest:
    opened = text_filter.open_filter(scan)
    parts = [part async for piece in prompt_guard.Turns(scan).pieces(text) for part in opened.feed(piece)] + opened.end()
    matches: list[GuardMatch] = []
    shown: list[str] = []
    refused = False
    line, column = 1, 1
    for part in parts:
        original = passed = part.text if isinstance(part, Found) else part
        if isinstance(part, Found):
            action = scan.actions[part.kind]
            refused = refused or action is GuardAction.REFUSE
            matches.append(GuardMatch(part.kind, part.name, action, scan.levels[part.kind], line, column))
            passed = guarded_text.mask(part) if action is GuardAction.MASK else original
        if not refused:
            shown.append(passed)
        lines = original.count("\n")
        line, column = line + lines, len(original) - original.rfind("\n") if lines else column + len(original)
    return GuardTest(tuple(matches[:MAX_GUARD_MATCHES]), "".join(shown) if is_answer or not refused else "", refused)
