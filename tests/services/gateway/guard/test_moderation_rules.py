"""How policy rules apply to the verdicts of moderation models, and what is left of answers."""

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from services.gateway.facts import guardrails
from services.gateway.facts.guard_counts import MODERATION
from services.gateway.guard import moderation
from services.gateway.guard.guarded_text import GuardMatches
from services.gateway.guard.moderation import Moderation
from shared import errors
from shared.api.generation import ChatMessage, ToolCall
from shared.api.inference import Chunk, ModerationVerdict
from shared.config_documents import GuardAction, GuardDocument, ModerationRule
from shared.types import ModelName
from tests import tiers

VERDICT = ModerationVerdict(
    flagged=True, categories=("hate", "violence/graphic"), scores={"hate": 0.6, "violence/graphic": 0.9, "spam": 0.5}
)


def rule(**fields: Any) -> ModerationRule:
    return msgspec.convert({"route": "moderation", **fields}, ModerationRule)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, ("hate", "violence/graphic")),
        ({"categories": ["violence"]}, ("violence/graphic",)),
        ({"categories": ["violence/graphic", "hate"]}, ("hate", "violence/graphic")),
        ({"categories": ["violen", "violence/graphic/more", "spam"]}, ()),
        ({"threshold": 0.5}, ("hate", "violence/graphic", "spam")),
        ({"threshold": 0.6, "categories": ["hate", "spam"]}, ("hate",)),
        ({"threshold": 0.91}, ()),
    ],
)
def test_what_a_rule_counts(fields: dict[str, Any], found: tuple[str, ...]) -> None:
    assert moderation.find_categories(VERDICT, rule(**fields)) == found


def test_a_verdict_without_categories() -> None:
    bare = ModerationVerdict(flagged=True)
    assert moderation.find_categories(bare, rule()) == ("flagged",)
    assert moderation.find_categories(bare, rule(categories=["hate"])) == ()
    assert moderation.find_categories(bare, rule(threshold=0.1)) == ()
    assert moderation.find_categories(ModerationVerdict(flagged=False), rule()) == ()


class FakeModels:
    """Moderation routes whose verdict is a function of the text; a route with None fails."""

    def __init__(self, **judges: Callable[[str], ModerationVerdict] | None) -> None:
        self.judges = judges
        self.asked: list[tuple[str, Sequence[str]]] = []

    async def __call__(self, route: ModelName, texts: Sequence[str]) -> Sequence[ModerationVerdict]:
        self.asked.append((route, tuple(texts)))
        judge = self.judges[route]
        if judge is None:
            raise errors.Unavailable("it is down", retry_after_seconds=7)
        return [judge(text) for text in texts]


def hates(text: str) -> ModerationVerdict:
    return (
        ModerationVerdict(flagged=True, categories=("hate",), scores={"hate": 1.0}) if "hate" in text else ModerationVerdict(flagged=False)
    )


def checking(models: FakeModels, *rules: ModerationRule) -> Moderation:
    levels = [(f"level{number}", GuardDocument(moderation=one)) for number, one in enumerate(rules)]
    return Moderation(guardrails.combine([*levels, ("other", GuardDocument())]).moderation, models)


async def test_each_answer_is_judged_by_its_whole_text() -> None:
    models = FakeModels(moderation=hates)
    checked = checking(models, rule(answer="refuse"))
    chunks = [Chunk("I ha", (1,)), Chunk("fine", (1,), answer=1), Chunk("te it", (1,)), Chunk(" \n", (1,), answer=2)]
    assert all(checked.take(chunk) for chunk in chunks)
    call = ToolCall("1", "say", '{"text": "hate"}')
    rest = [Chunk(" now", (1,), answer=1), Chunk("", (1,), answer=3, tool_calls=(call,))]
    assert await checked.end(rest) == [chunks[1], chunks[3], rest[0]]
    assert checked.refused == {0, 3}
    assert checked.matches == {(MODERATION, GuardAction.REFUSE): 2}
    assert models.asked == [("moderation", ("I hate it", "fine now", '{"text": "hate"}'))]


async def test_a_reported_answer_is_passed_on_at_once() -> None:
    models = FakeModels(moderation=hates)
    checked = checking(models, rule(answer="report", prompt="refuse"))
    assert not checked.take(Chunk("I hate", (1,)))
    rest = Chunk(" it", (2,))
    assert await checked.end([rest]) == [rest]
    assert (checked.refused, checked.matches) == (set(), {(MODERATION, GuardAction.REPORT): 1})
    assert models.asked == [("moderation", ("I hate it",))]


async def test_only_the_chosen_place_is_checked() -> None:
    models = FakeModels(moderation=hates)
    checked = checking(models, rule(prompt="refuse"))
    assert not checked.take(Chunk("I hate it", (1,)))
    assert await checked.end([]) == []
    await checking(models, rule(answer="refuse")).check_prompt([ChatMessage("user", "hate")], GuardMatches())
    await checking(models).check_prompt([ChatMessage("user", "hate")], GuardMatches())
    assert models.asked == []


async def test_a_failed_check_keeps_what_the_caller_may_wait_for() -> None:
    models = FakeModels(moderation=None)
    with pytest.raises(errors.Unavailable, match="your policy refuses prompts that can't be checked: it is down") as failed:
        await checking(models, rule(prompt="refuse")).check_prompt([ChatMessage("user", "hi")], GuardMatches())
    assert failed.value.retry_after_seconds == 7


async def test_a_failure_lets_no_text_pass_that_was_found_harmful_before() -> None:
    def fails(text: str) -> ModerationVerdict:
        if text == "too long":
            raise errors.BadRequest("too long")
        return hates(text)

    models = FakeModels(moderation=fails)
    messages = [ChatMessage("user", "hate"), *[ChatMessage("user", "fine")] * 31, *[ChatMessage("user", "too long")] * 64]
    with pytest.raises(errors.ContentFiltered, match=r"^messages\[0\].content contains"):
        await checking(models, rule(prompt="refuse", on_error="allow")).check_prompt(messages, GuardMatches())
    assert len(models.asked) == 2, "the rest is not tried"


async def test_no_level_loosens_another() -> None:
    """Random rules at two levels: together they are at least as strict as each alone, at both places and for every verdict."""
    rng = random.Random(tiers.seed("MODERATION_SEED"))
    verdicts = [
        VERDICT,
        ModerationVerdict(flagged=False),
        ModerationVerdict(flagged=True),
        ModerationVerdict(flagged=False, scores={"hate": 0.4}),
    ]
    order = tuple(GuardAction)

    def drawn() -> ModerationRule:
        fields = {
            "route": rng.choice(["a", "b", "down"]),
            "prompt": rng.choice(["off", "report", "refuse"]),
            "categories": rng.choice([[], ["hate"], ["violence"]]),
            "on_error": rng.choice(["refuse", "allow"]),
            **rng.choice([{}, {"threshold": 0.4}, {"threshold": 0.8}]),
        }
        return rule(**fields)

    async def strictness(verdict: ModerationVerdict, *rules: ModerationRule) -> int:
        matches = GuardMatches()
        models = FakeModels(a=lambda _text: verdict, b=lambda _text: verdict, down=None)
        try:
            await checking(models, *rules).check_prompt([ChatMessage("user", "hi")], matches)
        except (errors.ContentFiltered, errors.Unavailable):
            return order.index(GuardAction.REFUSE)
        return max((order.index(action) for _, action in matches), default=0)

    for _ in range(300):
        first, second = drawn(), drawn()
        for verdict, rules in itertools.product(verdicts, ((first, second), (second, first))):
            alone = [await strictness(verdict, one) for one in rules]
            assert await strictness(verdict, *rules) >= max(alone), (rules, verdict)
