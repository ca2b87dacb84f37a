"""Which models suit coding agents, and what is said of the others."""

import pytest

from shared.protocol import agent_requirements
from shared.protocol.agent_requirements import CONTEXT_TOKENS, MIN_RIGHT_CALLS


@pytest.mark.parametrize(
    ("context_tokens", "right_calls", "are_met", "said"),
    [
        pytest.param(CONTEXT_TOKENS, MIN_RIGHT_CALLS, True, "tools 45 of 50", id="just enough"),
        pytest.param(200_000, 50, True, "tools 50 of 50", id="more"),
        pytest.param(CONTEXT_TOKENS, MIN_RIGHT_CALLS - 1, False, "tools 44 of 50", id="too many wrong calls"),
        pytest.param(CONTEXT_TOKENS, 0, False, "tools 0 of 50", id="no right call"),
        pytest.param(CONTEXT_TOKENS, None, False, "tools not checked", id="never checked"),
        pytest.param(CONTEXT_TOKENS - 1, 47, False, "tools 47 of 50, context 65,535 of 65,536", id="too short"),
        pytest.param(0, 47, False, "tools 47 of 50, context unknown", id="a silent server"),
        pytest.param(0, None, False, "tools not checked, context unknown", id="a silent server, never checked"),
    ],
)
def test_requirements(context_tokens: int, right_calls: int | None, are_met: bool, said: str) -> None:
    assert agent_requirements.are_met(context_tokens, right_calls) is are_met
    assert agent_requirements.describe(context_tokens, right_calls, can_have_context=False) == said


def test_a_longer_context_that_is_there_for_the_asking_is_named() -> None:
    said = agent_requirements.describe(8192, 47, can_have_context=True)
    assert said == "tools 47 of 50, context 8,192 of 65,536 until it is loaded for agents"
    assert agent_requirements.describe(CONTEXT_TOKENS, 47, can_have_context=True) == "tools 47 of 50"
