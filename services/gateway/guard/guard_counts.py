"""What guardrails found in one request, in numbers only. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from shared.config_documents import GuardAction, GuardKind


class GuardPlace(StrEnum):
    PROMPT = "prompt"
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class GuardCount:
    """How often guardrails found a kind in one request."""

    kind: GuardKind
    action: GuardAction
    place: GuardPlace
    matches: int
