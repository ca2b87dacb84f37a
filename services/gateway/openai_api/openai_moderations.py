"""Serves OpenAI's moderations API, POST /v1/moderations."""

import msgspec

from services.gateway.http_api.answer_delivery import HeadReader
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.http_api.tolerant_json import BodyDialect
from services.gateway.requests.request_validation import ModerationRequest
from services.gateway.requests.runs import Runs
from shared.api import inference
from shared.api.embedding import Text
from shared.api.generation import NamedModel
from shared.api.inference import ModerationVerdict, Texts
from shared.types import ModelName

#: Strict clients want all of OpenAI's.
CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip


class ModerationBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A moderation request."""

    #: A text, or up to 32.
    input: Text | Texts
    #: A route for moderation; by default the only one, or the one called `moderation`.
    model: NamedModel | None = None


DIALECT = BodyDialect("moderations", ModerationBody)


class ModerationResult(msgspec.Struct, frozen=True):
    flagged: bool
    #: Whether each category is flagged.
    categories: dict[str, bool]
    #: From 0 to 1.
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, tuple[str, ...]]


class ModerationList(msgspec.Struct, frozen=True):
    id: str
    model: ModelName
    results: tuple[ModerationResult, ...]


class OpenAiModerations:
    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def routes(self) -> tuple[HttpRoute, ...]:
        return (
            HttpRoute("POST", "/v1/moderations", self._moderate, inference.moderate.name.partition(".")[2], "OpenAI's moderations",
                      body=ModerationBody, answer=ModerationList, runs_a_model=True, takes_prompts=True),
        )  # fmt: skip

    async def _moderate(self, call: HttpCall) -> None:
        body = await call.read(DIALECT)
        call.refuse_idempotency_key()
        texts = (body.input,) if isinstance(body.input, str) else body.input
        request = ModerationRequest(texts, body.model, forbid_external=call.forbids_external)
        reader = HeadReader[object](call)
        verdicts = await self._runs.moderate(call.caller, request, reader, seconds=self._runs.most_seconds)
        head = reader.head
        assert head.model is not None  # known before the verdicts
        await call.answer(ModerationList(f"modr-{head.request_id.hex}", head.model, tuple(map(shown, verdicts))))


def shown(verdict: ModerationVerdict) -> ModerationResult:
    scores = dict.fromkeys(CATEGORIES, 0.0) | dict.fromkeys(verdict.categories, 1.0) | verdict.scores
    return ModerationResult(
        verdict.flagged, {name: name in verdict.categories for name in scores}, scores, dict.fromkeys(scores, ("text",))
    )
