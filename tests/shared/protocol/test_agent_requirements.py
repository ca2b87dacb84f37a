"""Which models suit coding agents, and what to change on the others."""

from dataclasses import asdict, dataclass

import pytest

from shared.protocol import agent_requirements
from shared.protocol.agent_requirements import CONTEXT_TOKENS
from shared.types import Ability


@dataclass(frozen=True, kw_only=True)
class Facts:
    context_tokens: int = CONTEXT_TOKENS
    abilities: tuple[Ability, ...] = (Ability.TOOLS,)
    is_upstream: bool = False
    can_have_context: bool = False


@pytest.mark.parametrize(
    ("facts", "mends"),
    [
        pytest.param(Facts(), (), id="enough"),
        pytest.param(Facts(is_upstream=True, context_tokens=200_000), (), id="an upstream with more"),
        pytest.param(
            Facts(context_tokens=CONTEXT_TOKENS - 1, can_have_context=True),
            ("has 65,535 tokens, and agents need 65,536: load it with `aicli models load --for agents`",),
            id="it can have more here",
        ),
        pytest.param(
            Facts(context_tokens=8192),
            ("has 8,192 tokens", "Raise `context` if it is set, or use another model or more memory"),
            id="it can't",
        ),
        pytest.param(Facts(context_tokens=8192, is_upstream=True), ("start its server with a longer context",), id="an upstream"),
        pytest.param(
            Facts(context_tokens=0, is_upstream=True),
            ("is unknown", "set `context` for its server"),
            id="an upstream that is silent",
        ),
        pytest.param(Facts(context_tokens=0), ("is unknown", "set `context` in models.yaml"), id="a program that is silent"),
        pytest.param(
            Facts(abilities=(Ability.IMAGES,), is_upstream=True),
            ("doesn't say that it can call tools: if it can, set `tools` to true for its server",),
            id="tools of an upstream",
        ),
        pytest.param(Facts(abilities=()), ("set `tools` to true in models.yaml",), id="tools of a program"),
        pytest.param(
            Facts(context_tokens=0, abilities=(), is_upstream=True), ("set `context` for its server", "set `tools` to true"), id="both"
        ),
    ],
)
def test_shortfall(facts: Facts, mends: tuple[str, ...]) -> None:
    found = agent_requirements.find_shortfall(**asdict(facts))
    assert bool(found) == bool(mends)
    assert all(mend in found for mend in mends), found
