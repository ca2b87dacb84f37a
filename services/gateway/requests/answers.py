"""What the caller of a run gets, of each kind of answers. Pure: pieces come with their count, and what the caller may have goes on."""

import math
import struct
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from services.gateway.facts import tally
from services.gateway.facts.tally import Tally
from services.gateway.guard import answer_guard
from services.gateway.guard.guarded_text import GuardMatches
from services.gateway.requests import request_validation
from services.gateway.requests.plan import AdmissionRecord, Plan
from shared import errors
from shared.api import embedding
from shared.api.embedding import Embed, Embedded, Vectors
from shared.api.generation import GenerationEnd, Usage
from shared.api.inference import (
    MAX_CONVERTED_BYTES,
    TOKEN_BYTES,
    Chunk,
    Conversion,
    Converted,
    ConvertedPart,
    Moderate,
    Moderated,
    ModerationVerdict,
    ProcessPrompt,
)
from shared.types import FinishReason

#: Bytes of one number in a vector.
NUMBER_BYTES = 4
#: In all vectors of a request, 16 MiB: OpenAI's most inputs for a model with 2,048 dimensions. As JSON it is five times as much.
MAX_NUMBERS = 2048 * 2048


class Answer:
    """What its caller has of an answer so far."""

    #: It says something about the target that gave it.
    judges_target: ClassVar[bool] = True
    at = tally.NOTHING
    #: Its caller has a part, so no other target may answer.
    has_part = False
    #: It has its end.
    is_complete = False
    #: Nothing more is wanted of its workers.
    is_enough = False
    #: Number of answers that the worker has reported.
    at_once = 1
    #: It comes from the response cache.
    cached = False
    #: How long guardrails took.
    guard_seconds = 0.0

    def __init__(self, plan: Plan[Any], record: AdmissionRecord) -> None:
        self._plan, self._record = plan, record

    @property
    def has_prompt_count(self) -> bool:
        """Return whether a worker has counted the prompt. Otherwise ``usage`` has a lower bound."""
        return True

    @property
    def matches(self) -> GuardMatches | None:
        """Return what guardrails found in it; None if they don't check it."""
        return None

    def accepted(self, prompt_tokens: int) -> None:
        """A worker has read the prompt."""
        self.at = Tally(prompt_tokens)

    def take(self, piece: Any, at: Tally) -> Any:
        """Return what the caller gets of a piece; None for nothing."""
        raise NotImplementedError

    def end(self, end: Any) -> Sequence[Any]:
        """Return the pieces that are left for the caller."""
        raise NotImplementedError

    async def moderated(self, rest: Sequence[Any]) -> Sequence[Any]:
        return rest

    def ended_by(self, error: errors.AimeshError) -> bool:
        """Return whether this error of a worker is an answer, too."""
        return False

    def usage(self) -> Usage:
        """Return the tokens delivered so far."""
        return Usage(min(max(self.at.prompt, 0), self._record.most_prompt_tokens), completion_tokens=0)


class TextAnswer(Answer):
    """The answers to a prompt."""

    def __init__(self, plan: Plan[ProcessPrompt], record: AdmissionRecord) -> None:
        super().__init__(plan, record)
        self._first: ProcessPrompt = plan.calls[0].call
        self._guard, self._moderation = plan.guard, plan.moderation
        #: What moderation has found; None before its check.
        self._moderated: GuardMatches | None = None
        #: As the worker, or a cut, has ended it.
        self.generation: GenerationEnd | None = None
        #: Answers that have parts of calls, and no end yet.
        self._open_calls: set[int] = set()
        self._finished: dict[int, FinishReason] = {}

    @property
    def matches(self) -> GuardMatches | None:
        if self._guard is None or self._moderated is None:
            return self._moderated if self._guard is None else self._guard.matches
        return self._guard.matches + self._moderated

    def take(self, piece: Chunk, at: Tally) -> Chunk | None:
        self.at, self.has_part = at, True
        if piece.finish is not None:
            self._finished[piece.answer] = piece.finish
        if piece.call_parts:
            self._open_calls.add(piece.answer)
        shown: Chunk | None = piece
        if self._guard is not None:
            began = time.perf_counter()
            shown = self._guard.read(piece)
            self.guard_seconds += time.perf_counter() - began
            if len(self._guard.refused) == self._plan.answers:
                self.is_enough = True
                self._finish(answer_guard.filtered(GenerationEnd(FinishReason.CONTENT_FILTER, self.usage()), self._guard.refused))
        if piece.finish is not None and piece.answer in self._open_calls:
            # The end of an answer completes its calls.
            self._open_calls.remove(piece.answer)
        elif shown is not None and not (shown.text or shown.reasoning or shown.tool_calls or shown.call_parts or shown.logprobs):
            return None
        return None if shown is None or (self._moderation is not None and self._moderation.take(shown)) else shown

    def cut_off(self, most_tokens: int) -> GenerationEnd:
        """Return the end of an answer that ends here, because no more tokens are held, or no time is left."""
        reasons = tuple(self._finished.get(answer, FinishReason.LENGTH) for answer in range(self._plan.answers))
        usage = Usage(self.at.prompt, tally.billed(self.at, 0, most_tokens), reasoning_tokens=self.at.thoughts)
        return GenerationEnd(reasons[0], usage, reasons if self._plan.answers > 1 else ())

    def end(self, end: GenerationEnd) -> Sequence[Chunk]:
        self.at = msgspec.structs.replace(self.at, prompt=end.usage.prompt_tokens)
        reasons = end.finish_reasons or (end.finish_reason,)
        rest: deque[Chunk] = deque()
        for answer in sorted(self._open_calls):
            chunk = Chunk("", (), answer=answer, finish=reasons[answer] if answer < len(reasons) else reasons[0])
            shown = chunk if self._guard is None else self._guard.read(chunk)
            rest.extend([] if shown is None else [shown])
        if self._guard is not None:
            rest.extend(self._guard.end())
            end = answer_guard.filtered(end, self._guard.refused)
        self._finish(end)
        return rest

    async def moderated(self, rest: Sequence[Chunk]) -> Sequence[Chunk]:
        """Check the answers once they are complete, of which ``rest`` is the end. Return what the caller doesn't have yet and may. The
        workers must be done: the same one may have to check them. Raises Unavailable if they can't be checked."""
        if self._moderation is None:
            return rest
        rest = await self._moderation.end(rest)
        self._moderated = self._moderation.matches
        if self.generation is not None:
            self._finish(answer_guard.filtered(self.generation, self._moderation.refused))
        return rest

    def _finish(self, generation: GenerationEnd) -> None:
        self.generation, self.is_complete = generation, True
        self.at_once = max(1, len(generation.finish_reasons))

    @property
    def has_prompt_count(self) -> bool:
        return self.at.prompt > 0

    def usage(self) -> Usage:
        at, record = self.at, self._record
        # Don't trust a claim above the bound. Without token ids, the prompt is counted at the end of the answer, if it comes. The targets
        # get the same prompt.
        claimed_prompt = at.prompt if at.prompt > 0 else request_validation.count_words(self._first.prompt)
        prompt_tokens = min(claimed_prompt, record.most_prompt_tokens)
        claimed = Usage(0, 0, reasoning_tokens=at.thoughts) if self.generation is None else self.generation.usage
        # A hit doesn't use what is held for this request: its worker had the limit of an equal one.
        limit = self._first.model_config.max_tokens if self.cached else None
        most = (limit or record.held.max_tokens) * self._plan.answers
        completion = tally.billed(at, claimed.completion_tokens, most)
        reasoning = min(max(claimed.reasoning_tokens, 0), completion)
        return Usage(prompt_tokens, completion, min(max(claimed.cached_tokens, 0), prompt_tokens), reasoning)


class VectorAnswer(Answer):
    """Vectors, of one number if a query ranks the texts."""

    #: Every vector must have as many numbers as the first.
    dimensions = 0

    def __init__(self, plan: Plan[Embed], record: AdmissionRecord) -> None:
        super().__init__(plan, record)
        call: Embed = plan.calls[0].call
        self._texts, self._wanted = len(call.inputs), call.dimensions if call.query is None else 1
        self._vectors = 0

    def take(self, piece: Vectors, at: Tally) -> Vectors:
        """Raises ProtocolViolation for an invalid vector."""
        self.at, self.has_part = at, True
        for vector in piece.vectors:
            self._check(vector)
        return piece

    def end(self, end: Embedded) -> Sequence[Vectors]:
        self.accepted(end.prompt_tokens)
        if self._vectors != self._texts:
            raise _violation(f"{self._vectors} vectors for {self._texts} texts")
        self.is_complete = True
        return ()

    def _check(self, vector: bytes) -> None:
        self._vectors += 1
        numbers, over = divmod(len(vector), NUMBER_BYTES)
        self.dimensions = self.dimensions or numbers
        wanted = self._wanted or self.dimensions
        if over or not 0 < numbers == wanted == self.dimensions <= embedding.MAX_DIMENSIONS or self._vectors > self._texts:
            raise _violation(f"vector {self._vectors} with {len(vector)} bytes, which is not a valid length")
        if numbers * self._texts > MAX_NUMBERS:
            most = MAX_NUMBERS // numbers
            raise errors.TooLarge(f"this model has {numbers} dimensions, so a request may have {most} inputs", hint="send several requests")
        if not math.isfinite(math.hypot(*struct.unpack(f"<{numbers}f", vector))):
            raise _violation(f"vector {self._vectors} with non-finite numbers")


class VerdictAnswer(Answer):
    verdicts: tuple[ModerationVerdict, ...] = ()

    def __init__(self, plan: Plan[Moderate], record: AdmissionRecord) -> None:
        super().__init__(plan, record)
        self._texts = len(plan.calls[0].call.texts)

    def accepted(self, prompt_tokens: int) -> None:
        """Do nothing: only verdicts count."""

    def end(self, end: Moderated) -> Sequence[Any]:
        self.at = Tally(end.prompt_tokens)
        if len(end.verdicts) != self._texts:
            raise _violation(f"{len(end.verdicts)} verdicts for {self._texts} texts")
        self.verdicts, self.is_complete = end.verdicts, True
        return ()


class ConvertedAnswer(Answer):
    """Token ids, or a text. It says nothing about the answers of its target."""

    judges_target = False
    #: The model's context; 0 if unknown.
    context_tokens = 0

    def __init__(self, plan: Plan[Conversion], record: AdmissionRecord) -> None:
        super().__init__(plan, record)
        self._content = bytearray()

    @property
    def content(self) -> bytes:
        return bytes(self._content)

    def accepted(self, prompt_tokens: int) -> None:
        """Do nothing: it is free."""

    def take(self, piece: ConvertedPart, at: Tally) -> None:
        """Raises ProtocolViolation for parts out of order, or too many."""
        if piece.start == 0:
            self._content.clear()
        if piece.start != len(self._content) or piece.start + len(piece.content) > MAX_CONVERTED_BYTES:
            raise _violation("parts out of order, or too many")
        self._content += piece.content

    def end(self, end: Converted) -> Sequence[Any]:
        self.context_tokens, self.is_complete = max(0, end.context_tokens), True
        return ()


class CountedAnswer(ConvertedAnswer):
    """A number of tokens."""

    #: None if the model's server can't tell.
    count: int | None = None

    def end(self, end: Converted) -> Sequence[Any]:
        self.count = len(self._content) // TOKEN_BYTES
        return super().end(end)

    def ended_by(self, error: errors.AimeshError) -> bool:
        self.is_complete = isinstance(error, errors.UnknownMethod)
        return self.is_complete


def _violation(what: str) -> errors.ProtocolViolation:
    return errors.ProtocolViolation(f"the worker sent {what}", hint="retry the request")
