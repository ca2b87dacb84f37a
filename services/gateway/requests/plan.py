"""What the admission of a request has found, counted and decided."""

from collections.abc import Mapping
from typing import Generic, TypeVar
from uuid import UUID

import msgspec

from services.gateway.billing.reservations import HeldCredits
from services.gateway.facts.tightest_limit import TightestLimit
from services.gateway.guard.answer_guard import AnswerGuard
from services.gateway.guard.guarded_text import GuardMatches
from services.gateway.guard.moderation import Moderation
from services.gateway.limits.limit_rules import CountedRequest, LimitUsage
from services.gateway.requests.request_validation import MAX_ANSWER_TOKENS
from services.gateway.requests.targets import TargetCall, TargetChoice
from shared.api.generation import Usage
from shared.types import ModelName, RequestId

Call = TypeVar("Call")

_NO_REQUEST = RequestId(UUID(int=0))
_NOTHING_HELD = HeldCredits(_NO_REQUEST, {}, 0, clamped=False)
#: Of a request that the limits have not counted yet.
NOT_COUNTED = LimitUsage(CountedRequest.NOWHERE, _NO_REQUEST, (), TightestLimit())


class AdmissionRecord(msgspec.Struct):
    """What was found, counted and reserved so far, also for a request that is refused. Only the admission writes it."""

    #: None until the prompt is valid.
    prompt_hash: str | None = None
    #: See ``Admitted``.
    begins_conversation: bool = False
    #: See ``InferenceRequest``.
    ignored_fields: str = ""
    #: The largest size of the prompt that is believed, and an estimate.
    most_prompt_tokens: int = 0
    likely_prompt_tokens: int = 0
    #: In the prompt.
    images: int = 0
    #: See ``WorkerRequirements``.
    is_batch: bool = False
    #: The context of each model that may serve it, in tokens; 0 if unknown.
    contexts: Mapping[ModelName, int] = msgspec.field(default_factory=dict)
    #: Its caller's policy has guardrails.
    is_guarded: bool = False
    #: What guardrails found in the prompt, and how long that took; None if they don't check it.
    prompt_matches: GuardMatches | None = None
    guard_seconds: float = 0.0
    limit_usage: LimitUsage = NOT_COUNTED
    #: Without prices until credits are reserved, and for what costs nothing.
    held: HeldCredits = _NOTHING_HELD

    @property
    def most_answer_tokens(self) -> int:
        """Return the longest answer that any worker could give; the worker lowers it to what its context leaves."""
        return min(MAX_ANSWER_TOKENS, max([tokens or MAX_ANSWER_TOKENS for tokens in self.contexts.values()], default=MAX_ANSWER_TOKENS))

    def most_usage(self, model: ModelName, completion_tokens: int) -> Usage:
        """Return the maximum usage at a model, which refuses prompts above its context."""
        return Usage(min(self.most_prompt_tokens, self.contexts.get(model) or self.most_prompt_tokens), completion_tokens)


class Plan(msgspec.Struct, Generic[Call], frozen=True):
    """What an admitted request may do."""

    choice: TargetChoice
    #: One for each target, in the order in which they are tried.
    calls: tuple[TargetCall[Call], ...]
    #: How many the request asked for.
    answers: int = 1
    #: None if nothing is looked for in the answer.
    guard: AnswerGuard | None = None
    #: None if no policy checks the texts.
    moderation: Moderation | None = None
