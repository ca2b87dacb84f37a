"""Maps what vendors call it, and how they say how much a model thinks, to one effort. Pure."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shared.api.generation import ReasoningEffort

#: Tokens of thoughts.
ThoughtTokens = Annotated[int, Meta(ge=0)]


class ThinkingBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Anthropic's; DeepSeek, GLM and Kimi took it over."""

    type: Literal["enabled", "adaptive", "auto", "between_tools", "disabled"]
    #: Up to 1,024 is low effort, up to 8,192 medium, above high.
    budget_tokens: Annotated[int, Meta(ge=1)] | None = None
    #: ``omitted`` leaves thoughts out of the answer.
    display: str | None = None

    @property
    def is_on(self) -> bool | None:
        return {"enabled": True, "disabled": False}.get(self.type)


class OpenRouterReasoning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    effort: ReasoningEffort | None = None
    max_tokens: ThoughtTokens | None = None
    enabled: bool | None = None
    #: Leaves thoughts out of the answer.
    exclude: bool = False


def effort_of(*switches: bool | None, budget: int | None, effort: ReasoningEffort | None) -> ReasoningEffort | None:
    """Return what a caller means who said it in several ways: off comes first, then a number of tokens, an effort, and on."""
    if False in switches:
        return ReasoningEffort.NONE
    if budget is not None:
        return ReasoningEffort.of_tokens(budget)
    # As OpenRouter reads "enabled".
    return ReasoningEffort.MEDIUM if effort is None and True in switches else effort
