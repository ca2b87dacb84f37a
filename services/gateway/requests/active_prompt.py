"""Reads the answer of one running prompt."""

import time
from collections import deque
from collections.abc import AsyncGenerator

import msgspec

from services.gateway import tally
from services.gateway.guard import answer_guard
from services.gateway.guard.answer_guard import AnswerGuard
from services.gateway.guard.guarded_text import GuardMatches
from services.gateway.guard.moderation import Moderation
from services.gateway.idempotency.response_cache import AnswerOrigin
from services.gateway.relay import AnswerItem
from services.gateway.requests import request_validation
from services.gateway.requests.active_request import ActiveAnswer, ActiveRequest, AdmittedRequest, OpenAnswers, RequestLabels, milliseconds
from services.gateway.requests.targets import SharedClaims
from services.gateway.tally import Tally
from shared import errors
from shared.api import gateway, inference
from shared.api.gateway import InferenceResult
from shared.api.generation import GenerationEnd, Usage
from shared.api.inference import Chunk
from shared.types import FinishReason

LABELS: RequestLabels = gateway.process_inference_request.name.partition(".")[2], "chat"


class ActivePrompt(ActiveAnswer):
    """Iterate it for the chunks; read ``result`` after the block of ``Pipeline.run``."""

    answers: AsyncGenerator[AnswerItem]

    def __init__(self, request: ActiveRequest, admitted: AdmittedRequest[inference.ProcessPrompt], open_answers: OpenAnswers) -> None:
        super().__init__(request, admitted, open_answers)
        self._calls = admitted.calls
        self._generation: GenerationEnd | None = None
        self._wanted_answers = admitted.answers
        #: Answers that have parts of calls, and no end yet.
        self._open_calls: set[int] = set()
        self._guard = admitted.guard
        #: What the guard has let through, but the reader doesn't have yet.
        self._ready: deque[Chunk] = deque()
        #: None also after the check.
        self._moderation = admitted.moderation
        self._moderated: GuardMatches | None = None

    @property
    def matches(self) -> GuardMatches | None:
        if self._guard is None or self._moderated is None:
            return self._moderated if self._guard is None else self._guard.matches
        return self._guard.matches + self._moderated

    def set_origin(self, origin: AnswerOrigin, shared: SharedClaims) -> None:
        self.delivered.cached = origin is AnswerOrigin.HIT
        self.attempts.shared, self.attempts.has_joined = shared, origin is AnswerOrigin.JOINED

    def __aiter__(self) -> "ActivePrompt":
        return self

    async def __anext__(self) -> tuple[int, Chunk]:
        """Return the next chunk with its number, from 1; number 0 is a waiting notice."""
        while not self._ready:
            if self._guard is not None and self._is_refused:
                if self._moderation is None:
                    # Closing the worker's stream ends the generation there.
                    raise StopAsyncIteration
                await self._moderate_answer(self._moderation)
                continue
            answer = await anext(self.answers)
            if self.delivered.first_item_at is None and not (isinstance(answer, Chunk) and answer.waiting):
                self.delivered.first_item_at = self._clock()
            if isinstance(answer, inference.PromptAccepted):
                self.delivered.at = Tally(answer.prompt_tokens)
                continue
            if isinstance(answer, GenerationEnd):
                self._take_end(answer)
                if self._moderation is not None:
                    await self._moderate_answer(self._moderation)
                continue
            if answer.waiting:
                return 0, answer
            shown = self._take(answer)
            if shown is None or (self._moderation is not None and self._moderation.take(shown)):
                continue
            self._number += 1
            return self._number, shown
        self._number += 1
        return self._number, self._ready.popleft()

    def _take(self, chunk: Chunk) -> Chunk | None:
        """Return what the reader gets; None for nothing."""
        delivered = self.delivered
        delivered.at = tally.count(delivered.at, chunk)
        if delivered.first_text_seconds is None and delivered.at.pieces:
            delivered.first_text_seconds = self._clock() - self._began
        if chunk.call_parts:
            self._open_calls.add(chunk.answer)
        shown = chunk if self._guard is None else self._guarded(chunk, self._guard)
        if chunk.finish is not None and chunk.answer in self._open_calls:
            # The end of an answer completes its calls.
            self._open_calls.remove(chunk.answer)
            return shown
        has_content = shown is not None and (shown.text or shown.reasoning or shown.tool_calls or shown.call_parts or shown.logprobs)
        return shown if has_content else None

    def _guarded(self, chunk: Chunk, guard: AnswerGuard) -> Chunk | None:
        began = time.perf_counter()
        shown = guard.read(chunk)
        self.delivered.guard_seconds += time.perf_counter() - began
        if self._is_refused:
            self._finish(answer_guard.filtered(GenerationEnd(FinishReason.CONTENT_FILTER, self.usage()), guard.refused))
        return shown

    def _take_end(self, generation: GenerationEnd) -> None:
        self.delivered.at = msgspec.structs.replace(self.delivered.at, prompt=generation.usage.prompt_tokens)
        reasons = generation.finish_reasons or (generation.finish_reason,)
        for answer in sorted(self._open_calls):
            chunk = Chunk("", (), answer=answer, finish=reasons[answer] if answer < len(reasons) else reasons[0])
            shown = chunk if self._guard is None else self._guard.read(chunk)
            self._ready.extend([] if shown is None else [shown])
        if self._guard is not None:
            self._ready.extend(self._guard.end())
            generation = answer_guard.filtered(generation, self._guard.refused)
        self._finish(generation)

    def _finish(self, generation: GenerationEnd) -> None:
        self._generation, self.delivered.complete = generation, True
        self.delivered.answers = max(1, len(generation.finish_reasons))

    async def _moderate_answer(self, checked: Moderation) -> None:
        """Check the answers once they are complete, and release what was held. Raises Unavailable if they can't be checked."""
        # The request occupies its worker until its stream has ended, and the same worker may have to moderate.
        if self._is_refused:
            await self.answers.aclose()
        async for _ in self.answers:
            pass
        self._moderation = None
        ready, self._ready = self._ready, deque()
        self._ready.extend(await checked.end(ready))
        self._moderated = checked.matches
        if self._generation is not None:
            self._finish(answer_guard.filtered(self._generation, checked.refused))

    @property
    def _is_refused(self) -> bool:
        """Return whether a policy has ended all answers."""
        return self._guard is not None and len(self._guard.refused) == self._wanted_answers

    @property
    def has_prompt_count(self) -> bool:
        return self.delivered.at.prompt > 0

    def _least_prompt_tokens(self) -> int:
        # The targets get the same prompt.
        return request_validation.count_words(self._calls[0].call.prompt) if self._calls else 0

    def usage(self) -> Usage:
        at = self.delivered.at
        # Don't trust a claim above the bound. Without token ids, the prompt is counted at the end of the answer, if it comes.
        claimed_prompt = at.prompt if self.has_prompt_count else self._least_prompt_tokens()
        prompt_tokens = min(claimed_prompt, self.admission.most_prompt_tokens)
        claimed = Usage(0, 0, reasoning_tokens=at.thoughts) if self._generation is None else self._generation.usage
        # A hit doesn't use what is held for this request: its worker had the limit of an equal one.
        limit = self._calls[0].call.model_config.max_tokens if self.cached else None
        most = (limit or self.admission.held.max_tokens) * self._wanted_answers
        completion = tally.billed(at, claimed.completion_tokens, most)
        reasoning = min(max(claimed.reasoning_tokens, 0), completion)
        return Usage(prompt_tokens, completion, min(max(claimed.cached_tokens, 0), prompt_tokens), reasoning)

    @property
    def result(self) -> InferenceResult:
        """Raises LinkLost if it has no end."""
        if (generation := self._generation) is None:
            raise errors.LinkLost("the answer ended without its end marker", hint="retry the request")
        totals, route, first_text = self.totals, self.attempts.route, self.delivered.first_text_seconds
        return InferenceResult(
            request_id=self.request_id,
            model=self.model,
            finish_reason=generation.finish_reason,
            usage=totals.usage,
            response_time_ms=totals.response_time_ms,
            first_token_ms=totals.response_time_ms if first_text is None else milliseconds(first_text),
            finish_reasons=generation.finish_reasons,
            cost_micro=totals.cost_micro,
            clamped_to=self.clamped_to,
            cached=self.cached,
            target=route.target if route is not None and self.choice.shows_target else None,
            stop_sequence=generation.stop_sequence,
        )
