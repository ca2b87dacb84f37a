"""Reads the answer of one running prompt."""

import time
from collections import deque
from collections.abc import AsyncGenerator

from services.gateway import request_validation
from services.gateway.call_parts import bytes_of
from services.gateway.guard import answer_guard
from services.gateway.guard.answer_guard import AnswerGuard
from services.gateway.guard.guarded_text import GuardMatches
from services.gateway.guard.moderation import Moderation
from services.gateway.idempotency.response_cache import AnswerOrigin
from services.gateway.relay import AnswerItem
from services.gateway.requests.active_request import ActiveAnswer, ActiveRequest, AdmittedRequest, OpenAnswers, RequestLabels, milliseconds
from shared import errors
from shared.api import gateway, inference
from shared.api.gateway import InferenceResult
from shared.api.generation import GenerationEnd, Usage
from shared.api.inference import Chunk
from shared.types import FinishReason

LABELS: RequestLabels = gateway.process_inference_request.name.partition(".")[2], "chat"
#: Allowed tokens without text (tool calls, end marks) if a backend reports no token ids.
_UNSEEN_TOKENS = 64


class ActivePrompt(ActiveAnswer):
    """Iterate it for the chunks; read ``result`` after the block of ``Pipeline.run``."""

    answers: AsyncGenerator[AnswerItem]

    def __init__(self, request: ActiveRequest, admitted: AdmittedRequest[inference.ProcessPrompt], open_answers: OpenAnswers) -> None:
        super().__init__(request, admitted, open_answers)
        self._calls = admitted.calls
        self._prompt_tokens = 0
        self._tokens = self._reasoning_tokens = 0
        self._generation: GenerationEnd | None = None
        self._wanted_answers = admitted.answers
        #: Bytes of the delivered text, thoughts and tool calls that came without token ids.
        self._bytes = 0
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

    def set_origin(self, origin: AnswerOrigin) -> None:
        self.delivered.cached = origin is AnswerOrigin.HIT

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
                self._prompt_tokens = answer.prompt_tokens
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
        has_text = bool(chunk.text or chunk.reasoning or chunk.tool_calls or chunk.call_parts)
        if chunk.token_ids:
            self._tokens += len(chunk.token_ids)
            self._reasoning_tokens += len(chunk.token_ids) if chunk.reasoning else 0
        else:
            self._bytes += bytes_of(chunk)
        if has_text:
            self.delivered.chunks += 1
            if self.delivered.first_text_seconds is None:
                self.delivered.first_text_seconds = self._clock() - self._began
        if chunk.call_parts:
            self._open_calls.add(chunk.answer)
        shown = chunk if self._guard is None else self._guarded(chunk, self._guard)
        if chunk.finish is not None and chunk.answer in self._open_calls:
            # The end of an answer completes its calls.
            self._open_calls.remove(chunk.answer)
            return shown
        return shown if shown is not None and _has_content(shown) else None

    def _guarded(self, chunk: Chunk, guard: AnswerGuard) -> Chunk | None:
        began = time.perf_counter()
        shown = guard.read(chunk)
        self.delivered.guard_seconds += time.perf_counter() - began
        if self._is_refused:
            self._finish(answer_guard.filtered(GenerationEnd(FinishReason.CONTENT_FILTER, self.usage()), guard.refused))
        return shown

    def _take_end(self, generation: GenerationEnd) -> None:
        self._prompt_tokens = generation.usage.prompt_tokens
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
        return self._prompt_tokens > 0

    def _least_prompt_tokens(self) -> int:
        # The targets get the same prompt.
        return request_validation.count_words(self._calls[0].call.prompt) if self._calls else 0

    def usage(self) -> Usage:
        """Count output by the received token ids rather than the worker's claim."""
        # Don't trust a claim above the bound. Without token ids, the prompt is counted at the end of the answer, if it comes.
        claimed_prompt = self._prompt_tokens if self.has_prompt_count else self._least_prompt_tokens()
        prompt_tokens = min(claimed_prompt, self.admission.most_prompt_tokens)
        if self._generation is None:
            # Without token ids, a chunk has at least one token.
            return Usage(prompt_tokens, self._tokens or self.delivered.chunks, reasoning_tokens=self._reasoning_tokens)
        claimed = self._generation.usage
        # Backends without token ids (HTTP APIs) leave only the worker's claim, or none if the end marker is lost. A token has at least one
        # byte of text, apart from the few that mark calls and ends.
        most = self.admission.held.max_tokens * self._wanted_answers
        completion = self._tokens or min(max(claimed.completion_tokens, 0) or self.delivered.chunks, self._bytes + _UNSEEN_TOKENS, most)
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


def _has_content(chunk: Chunk) -> bool:
    return bool(chunk.text or chunk.reasoning or chunk.tool_calls or chunk.call_parts or chunk.logprobs)
