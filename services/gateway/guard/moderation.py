"""Checks prompts and answers with the moderation models that policies name."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

from services.gateway.facts.call_parts import pieces_of
from services.gateway.facts.guard_counts import MODERATION, GuardPlace
from services.gateway.facts.guardrails import LeveledModeration
from services.gateway.guard.guarded_text import GuardMatches
from shared import errors
from shared.api.generation import ChatMessage
from shared.api.inference import MAX_TEXTS, Chunk, ModerationVerdict
from shared.config_documents import GuardAction, ModerationRule
from shared.telemetry import logs
from shared.types import ModelName

#: Returns a verdict for each of up to MAX_TEXTS texts by a route. Raises an AimeshError.
Moderate = Callable[[ModelName, Sequence[str]], Awaitable[Sequence[ModerationVerdict]]]
#: What happens with a text, and the categories that it is in.
Judgment = tuple[GuardAction, tuple[str, ...]]
#: Errors that waiting doesn't fix, which the caller gets unchanged.
_SHOWN = (errors.BudgetExhausted, errors.NotAllowed)

_log = logs.get(part="moderation")


def find_categories(verdict: ModerationVerdict, rule: ModerationRule) -> tuple[str, ...]:
    """Return the categories for which the rule counts a text; `flagged` if the model names none."""
    if rule.threshold is None:
        found: Collection[str] = verdict.categories
    else:
        found = [name for name, score in verdict.scores.items() if score >= rule.threshold]
    if rule.categories:
        return tuple(name for name in found if any(name == wanted or name.startswith(f"{wanted}/") for wanted in rule.categories))
    return tuple(found) or (("flagged",) if rule.threshold is None and verdict.flagged else ())


class Moderation:
    """Checks one request for all levels of its policy."""

    def __init__(self, levels: Sequence[LeveledModeration], moderate: Moderate) -> None:
        self._levels = levels
        self._moderate = moderate
        #: What was found in the answers.
        self.matches = GuardMatches()
        #: The answers that are not sent.
        self.refused: set[int] = set()
        #: The thoughts of each answer, and what it says.
        self._texts: dict[int, tuple[list[str], list[str]]] = {}
        self._held: list[Chunk] = []
        self._checks_answer = bool(_rules(levels, GuardPlace.ANSWER))
        #: No part of an answer may be sent before all of it is checked.
        self.holds = any(_action(rule, GuardPlace.ANSWER) is GuardAction.REFUSE for rule in _rules(levels, GuardPlace.ANSWER))

    async def check_prompt(self, messages: Sequence[ChatMessage], matches: GuardMatches) -> None:
        """Raises ContentFiltered that names the first refused message, and Unavailable if they can't be checked."""
        fields = [(f"messages[{position}].{field}", text) for position, message in enumerate(messages) for field, text in _parts(message)]
        refused: list[str] = []
        found = await self._judge(GuardPlace.PROMPT, [text for _, text in fields])
        for (field, _), (action, categories) in zip(fields, found, strict=True):
            if action is not GuardAction.OFF:
                matches[MODERATION, action] += 1
            if action is GuardAction.REFUSE:
                refused.append(f"{field} contains what your policy refuses: {MODERATION} ({', '.join(categories)})")
        if refused:
            raise errors.ContentFiltered(refused[0], hint="change it; see `aicli policy explain`")

    def take(self, chunk: Chunk) -> bool:
        """Read a part of an answer; return whether it is held until the end."""
        if self._checks_answer:
            thoughts, texts = self._texts.setdefault(chunk.answer, ([], []))
            thoughts.append(chunk.reasoning)
            texts += (chunk.text, *(call.arguments for call in pieces_of(chunk)))
        if self.holds:
            self._held.append(chunk)
        return self.holds

    async def end(self, rest: Iterable[Chunk]) -> list[Chunk]:
        """Check the answers, of which ``rest`` is the end, and return what isn't sent yet and may be. Raises Unavailable if they can't be
        checked."""
        unsent = [chunk for chunk in rest if not self.take(chunk)]
        texts = {answer: text for answer, parts in sorted(self._texts.items()) if (text := "\n".join(map("".join, parts)).strip())}
        held, self._held, self._texts = self._held, [], {}
        for answer, (action, _) in zip(texts, await self._judge(GuardPlace.ANSWER, list(texts.values())), strict=True):
            if action is not GuardAction.OFF:
                self.matches[MODERATION, action] += 1
            if action is GuardAction.REFUSE:
                self.refused.add(answer)
        return [chunk for chunk in (*held, *unsent) if chunk.answer not in self.refused]

    async def _judge(self, place: GuardPlace, texts: Sequence[str]) -> list[Judgment]:
        """Return the strictest action for each text, and the categories that led to it."""
        found: list[Judgment] = [(GuardAction.OFF, ())] * len(texts)
        by_route: defaultdict[str, list[ModerationRule]] = defaultdict(list)
        for rule in _rules(self._levels, place):
            by_route[rule.route].append(rule)
        for route, rules in by_route.items():
            for start in range(0, len(texts), MAX_TEXTS):
                try:
                    verdicts = await self._moderate(ModelName(route), texts[start : start + MAX_TEXTS])
                except errors.AimeshError as error:
                    _log.warning("text not moderated", route=route, code=errors.code_of(error))
                    if any(_action(rule, place) is GuardAction.REFUSE and rule.on_error == "refuse" for rule in rules):
                        raise _unchecked(place, error) from error
                    # The rest would fail as slowly.
                    break
                for position, verdict in enumerate(verdicts, start):
                    found[position] = _strictest(verdict, rules, place, found[position])
        return found


def _strictest(verdict: ModerationVerdict, rules: Iterable[ModerationRule], place: GuardPlace, known: Judgment) -> Judgment:
    for rule in rules:
        categories = find_categories(verdict, rule)
        if categories and _action(rule, place).is_stricter_than(known[0]):
            known = _action(rule, place), categories
    return known


def _rules(levels: Sequence[LeveledModeration], place: GuardPlace) -> list[ModerationRule]:
    return [leveled.rule for leveled in levels if _action(leveled.rule, place) is not GuardAction.OFF]


def _action(rule: ModerationRule, place: GuardPlace) -> GuardAction:
    return GuardAction(rule.prompt if place is GuardPlace.PROMPT else rule.answer)


def _parts(message: ChatMessage) -> Iterable[tuple[str, str]]:
    calls = ((f"tool_calls[{number}]", call.arguments) for number, call in enumerate(message.tool_calls))
    parts = (("reasoning", message.reasoning), ("content", message.content), *calls)
    return ((field, text) for field, text in parts if text.strip())


def _unchecked(place: GuardPlace, error: errors.AimeshError) -> errors.AimeshError:
    if isinstance(error, _SHOWN):
        return error
    return errors.Unavailable(
        f"your policy refuses {place}s that can't be checked: {error.message}",
        hint="retry soon, or ask an administrator",
        retry_after_seconds=error.retry_after_seconds,
    )
