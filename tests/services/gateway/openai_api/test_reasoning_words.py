"""How much a model thinks, in the words of each vendor."""

import json
from typing import Any

import pytest

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import tolerant_json
from services.gateway.http_api.tolerant_json import Ignored
from services.gateway.openai_api import anthropic_request, chat_request, response_request
from services.gateway.openai_api.chat_request import ChatBody
from shared.api.generation import ReasoningEffort

HI = [{"role": "user", "content": "hi"}]


def read(**words: Any) -> tuple[ChatBody, Ignored]:
    ignored = Ignored()
    return tolerant_json.read(json.dumps({"messages": HI, **words}).encode(), chat_request.DIALECT, ignored), ignored


@pytest.mark.parametrize(
    ("words", "effort"),
    [
        ({}, None),
        *(({"reasoning_effort": word}, word) for word in ("none", "minimal", "low", "medium", "high", "xhigh")),
        ({"reasoning_effort": "max"}, "xhigh"),
        # OpenRouter
        ({"reasoning": {}}, None),
        ({"reasoning": {"effort": "low"}}, "low"),
        ({"reasoning": {"effort": "max", "exclude": True}}, "xhigh"),
        ({"reasoning": {"max_tokens": 1024}}, "low"),
        ({"reasoning": {"max_tokens": 8192}}, "medium"),
        ({"reasoning": {"max_tokens": 8193}}, "high"),
        ({"reasoning": {"max_tokens": 0}}, "none"),
        ({"reasoning": {"enabled": True}}, "medium"),
        ({"reasoning": {"enabled": False}}, "none"),
        ({"reasoning": {"enabled": True, "effort": "high"}}, "high"),
        ({"include_reasoning": True}, None),
        ({"include_reasoning": False}, None),
        # Qwen
        ({"enable_thinking": True}, "medium"),
        ({"enable_thinking": True, "thinking_budget": 500}, "low"),
        ({"enable_thinking": False, "thinking_budget": 500}, "none"),
        # DeepSeek, GLM, Kimi, Doubao
        ({"thinking": {"type": "enabled"}}, "medium"),
        ({"thinking": {"type": "enabled", "clear_thinking": False}, "reasoning_effort": "max"}, "xhigh"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "medium"),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "high"}, "none"),
        ({"thinking": {"type": "auto"}}, None),
        # As null is absent:
        ({"reasoning": None, "enable_thinking": None, "thinking": None, "reasoning_effort": None}, None),
    ],
)
def test_the_words_of_all_vendors_are_one_effort(words: dict[str, Any], effort: str | None) -> None:
    body, ignored = read(**words)
    assert chat_request.to_request(body).reasoning_effort == effort
    assert set(ignored.labels) <= {"thinking.clear_thinking"}


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ({"reasoning_effort": "ultra"}, "reasoning_effort"), ({"reasoning": {"effort": "ultra"}}, "reasoning.effort"),
        ({"thinking": {"type": "deep"}}, "thinking.type"), ({"thinking_budget": -1}, "thinking_budget"), ({"reasoning": True}, "reasoning"),
    ],
)  # fmt: skip
def test_a_word_that_nobody_knows_is_refused(words: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField, match=field):
        read(**words)


def test_the_other_apis_know_the_newest_word_too() -> None:
    """``max`` is the name that Anthropic, DeepSeek and GLM use."""
    said = {"messages": HI, "max_tokens": 5, "thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}
    body = tolerant_json.read(json.dumps(said).encode(), anthropic_request.DIALECT, Ignored())
    assert body.effort is ReasoningEffort.XHIGH
    response = tolerant_json.read(b'{"input": "hi", "reasoning": {"effort": "max"}}', response_request.DIALECT, Ignored())
    assert response.effort is ReasoningEffort.XHIGH
