"""Formats answers for OpenAI's completions API. Pure.

The answers to all prompts of a request form one response, numbered consecutively.
"""

from collections.abc import Sequence

import msgspec

from services.gateway.http_api import response_formats
from services.gateway.http_api.response_formats import AnswerFacts, AnswerFormat, ServerSentEvent, piece_text
from services.gateway.openai_api.chat_format import ChatUsage, ShownServedBy, finish_word, served_by
from services.gateway.openai_api.completion_request import CompletionBody
from shared.api.gateway import InferenceResult
from shared.api.generation import Usage
from shared.api.inference import Chunk, TokenLogprob
from shared.types import FinishReason, ModelName


class LegacyLogprobs(msgspec.Struct, frozen=True):
    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]
    #: Null if only the sampled tokens' logprobs were requested.
    top_logprobs: tuple[dict[str, float], ...] | None
    #: Offset of each token in the text.
    text_offset: tuple[int, ...]


class CompletionChoice(msgspec.Struct, frozen=True):
    text: str
    index: int
    logprobs: LegacyLogprobs | None = None
    #: Null in all events but the last one of an answer.
    finish_reason: str | None = None


class Completion(msgspec.Struct, frozen=True):
    """A whole response, or an event of a stream."""

    id: str
    created: int
    model: ModelName
    choices: tuple[CompletionChoice, ...]
    #: As in ``ChatChunk``.
    usage: ChatUsage | msgspec.UnsetType | None = msgspec.UNSET
    system_fingerprint: str = ""
    #: Only of a flex request.
    service_tier: str | msgspec.UnsetType = msgspec.UNSET
    object: str = "text_completion"
    #: As in ``ChatChunk``.
    x_aimesh: ShownServedBy = msgspec.UNSET


class CompletionFormat(AnswerFormat):
    """Formats the answers. Call ``begin`` for each prompt, and ``close`` (or ``end`` in a stream) after each but the last."""

    def __init__(self, body: CompletionBody) -> None:
        self._body = body
        self._answers = body.n or 1
        self._prompt = -1
        self._usage = Usage(0, 0)
        self._gathered: list[_GatheredCompletion] = []
        self._reasons: list[FinishReason] = []
        self._echoed: set[int] = set()

    def begin(self, about: AnswerFacts) -> None:
        # The response has the id of its first request.
        super().begin(msgspec.structs.replace(self.about, model=about.model) if self.has_begun else about)
        self._prompt += 1
        self._gathered += [_GatheredCompletion(self._body.logprobs) for _ in range(self._answers)]

    def gather(self, chunk: Chunk) -> None:
        if chunk.answer < self._answers:
            self._gathered[self._index(chunk.answer)].add(chunk)

    def events(self, chunk: Chunk) -> Sequence[ServerSentEvent]:
        if chunk.answer >= self._answers:
            return ()
        index = self._index(chunk.answer)
        logprobs = self._gathered[index].add(chunk)
        if not chunk.text and logprobs is None:
            return ()
        return (ServerSentEvent(self._event((CompletionChoice(self._echo(index) + chunk.text, index, logprobs),))),)

    def close(self, result: InferenceResult) -> None:
        """Finish one prompt."""
        self._reasons += response_formats.reasons(result, self._answers)
        self._usage = _sum(self._usage, result.usage)

    def end(self, result: InferenceResult) -> Sequence[ServerSentEvent]:
        """Finish one prompt, and return its last events."""
        return [ServerSentEvent(event) for event in self._ends(result)]

    def _ends(self, result: InferenceResult) -> list[Completion]:
        self.close(result)
        indexes = range(self._index(0), self._index(self._answers))
        return [
            self._event((CompletionChoice(self._echo(index), index, finish_reason=finish_word(self._reasons[index])),)) for index in indexes
        ]

    def last_events(self, result: InferenceResult) -> Sequence[ServerSentEvent]:
        events = self._ends(result)
        if self._body.include_usage:
            events.append(self._event((), ChatUsage.of(self._usage)))
        events[-1] = msgspec.structs.replace(events[-1], x_aimesh=served_by(result))
        return (*map(ServerSentEvent, events), response_formats.DONE)

    def whole(self, result: InferenceResult) -> Completion:
        self.close(result)
        choices = tuple(
            CompletionChoice(self._echo(index) + gathered.text, index, gathered.logprobs, finish_word(reason))
            for index, (gathered, reason) in enumerate(zip(self._gathered, self._reasons, strict=True))
        )
        return msgspec.structs.replace(self._completion(choices, ChatUsage.of(self._usage)), x_aimesh=served_by(result))

    def _index(self, answer: int) -> int:
        return self._prompt * self._answers + answer

    def _echo(self, index: int) -> str:
        if not self._body.echo or index in self._echoed:
            return ""
        self._echoed.add(index)
        return self._body.prompts[index // self._answers]

    def _event(self, choices: tuple[CompletionChoice, ...], usage: ChatUsage | None = None) -> Completion:
        return self._completion(choices, usage if self._body.include_usage else msgspec.UNSET)

    def _completion(self, choices: tuple[CompletionChoice, ...], usage: ChatUsage | msgspec.UnsetType | None) -> Completion:
        about = self.about
        return Completion(f"cmpl-{about.request_id.hex}", about.created, about.model, choices, usage, about.fingerprint, about.flex)


class _GatheredCompletion:
    def __init__(self, top: int | None) -> None:
        self._top = top
        self._texts: list[str] = []
        self._drawn: list[TokenLogprob] = []
        self._offset = 0

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def logprobs(self) -> LegacyLogprobs | None:
        return None if self._top is None else _legacy(self._drawn, self._top, 0)

    def add(self, chunk: Chunk) -> LegacyLogprobs | None:
        """Add a chunk; return its log probabilities for a stream."""
        self._texts.append(chunk.text)
        if self._top is None or not chunk.logprobs:
            return None
        self._drawn += chunk.logprobs
        logprobs = _legacy(chunk.logprobs, self._top, self._offset)
        self._offset += sum(map(len, logprobs.tokens))
        return logprobs


def _legacy(drawn: Sequence[TokenLogprob], top: int, offset: int) -> LegacyLogprobs:
    tokens = tuple(piece_text(token.drawn.piece) for token in drawn)
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    likeliest = tuple({piece_text(alternative.piece): alternative.logprob for alternative in token.top} for token in drawn) if top else None
    return LegacyLogprobs(tokens, tuple(token.drawn.logprob for token in drawn), likeliest, tuple(offsets))


def _sum(first: Usage, second: Usage) -> Usage:
    return Usage(
        first.prompt_tokens + second.prompt_tokens,
        first.completion_tokens + second.completion_tokens,
        first.cached_tokens + second.cached_tokens,
        first.reasoning_tokens + second.reasoning_tokens,
    )
