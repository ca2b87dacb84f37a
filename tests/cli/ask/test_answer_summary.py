"""The summary below an answer: its size, speed and cost, and what cut it off."""

from uuid import UUID

import msgspec
import pytest

from cli.ask import answer_summary
from shared.api.gateway import InferenceResult
from shared.api.generation import Usage
from shared.types import FinishReason, MicroCredits, ModelName, RequestId

RESULT = InferenceResult(
    request_id=RequestId(UUID(int=7)),
    model=ModelName("smollm2"),
    finish_reason=FinishReason.STOP,
    usage=Usage(prompt_tokens=4, completion_tokens=2),
    response_time_ms=30,
    first_token_ms=10,
)


def test_summary_has_the_cost() -> None:
    assert answer_summary.summarize(RESULT) == "smollm2: 4 + 2 tokens, first after 10 ms, 50.0 tokens/s"
    paid = msgspec.structs.replace(RESULT, cost_micro=MicroCredits(800), cached=True)
    assert answer_summary.summarize(paid).endswith(" tokens/s, 0.0008 credits, answered from the cache")


@pytest.mark.parametrize(
    ("reason", "tokens", "clamped_to", "context_tokens", "said"),
    [
        pytest.param(FinishReason.STOP, 100, None, 2048, "", id="nothing to say"),
        pytest.param(FinishReason.STOP, 100, None, 0, "", id="an unknown context"),
        pytest.param(
            FinishReason.LENGTH, 100, None, 2048, "The answer was cut off after 50 tokens. To allow more: /set max_tokens", id="cut off"
        ),
        pytest.param(FinishReason.LENGTH, 100, None, 0, "The answer was cut off after 50 tokens.", id="cut off, unknown context"),
        pytest.param(FinishReason.LENGTH, 100, 50, 2048, "The answer was cut off after 50 tokens: not enough credits.", id="credits"),
        pytest.param(FinishReason.STOP, 100, 50, 2048, "", id="credits were enough"),
        pytest.param(FinishReason.LENGTH, 2048, None, 2048, "The context of 2048 tokens is full. /new starts", id="full"),
        pytest.param(FinishReason.STOP, 1536, None, 2048, "The conversation fills 75 % of the model's context. /new", id="nearly full"),
        pytest.param(FinishReason.STOP, 1535, None, 2048, "", id="not yet nearly full"),
    ],
)
def test_limits_are_named(reason: FinishReason, tokens: int, clamped_to: int | None, context_tokens: int, said: str) -> None:
    result = msgspec.structs.replace(
        RESULT, finish_reason=reason, usage=Usage(prompt_tokens=tokens - 50, completion_tokens=50), clamped_to=clamped_to
    )
    note = answer_summary.describe_limit(result, context_tokens)
    assert note.startswith(said)
    assert bool(note) == bool(said)
