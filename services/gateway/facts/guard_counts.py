"""What guardrails found in one request, in numbers only. Pure."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shared.config_documents import GuardAction

#: The kind of what a moderation model finds.
MODERATION: Final = "moderation"


class GuardPlace(StrEnum):
    PROMPT = "prompt"
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class GuardCount:
    """How often guardrails found a kind in one request."""

    #: A ``GuardKind``, or MODERATION.
    kind: str
    action: GuardAction
    place: GuardPlace
    matches: int
