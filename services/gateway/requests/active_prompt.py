"""Holds the state of one running prompt."""

import time
from collections import deque
from collections.abc import AsyncGenerator, Callable

from services.gateway.call_parts import bytes_of
from services.gateway.guard import answer_guard
from services.gateway.guard.answer_guard import AnswerGuard
from services.gateway.guard.guarded_text import GuardMatches
from services.gateway.guard.moderation import Moderate, Moderation
from services.gateway.idempotency.response_cache import AnswerOrigin
from services.gateway.relay import AnswerItem
from services.gateway.request_validation import AdmittedPrompt
from services.gateway.requests.active_request import ActiveRequest, milliseconds
from shared.api import gateway, inference
from shared.api.gateway import InferenceResult
from shared.api.generation import Generation, Usage
from shared.api.inference import Chunk
from shared.types import FinishReason

#: Allowed tokens without text (tool calls, end marks) if a backend reports no token ids.
_UNSEEN_TOKENS = 64


class ActivePrompt(ActiveRequest):
    """Tracks one prompt. Iterate it for the chunks; read ``result`` after the block of ``Pipeline.run``."""

    method, operation = gateway.process_inference_request.name.partition(".")[2], "chat"
    answers: AsyncGenerator[AnswerItem] | None

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._prompt_tokens = 0
        self._tokens = self._reasoning_tokens = 0
        self._generation: Generation | None = None
        #: How many the request asked for.
        self.wanted_answers = 1
        #: Bytes of the delivered text, thoughts and tool calls that came without token ids.
        self._bytes = 0
        #: Answers that have parts of calls, and no end yet.
        self._open_calls: set[int] = set()
        #: None if nothing is looked for in the answer.
        self.guard: AnswerGuard | None = None
        #: What the guard has let through, but the reader doesn't have yet.
        self._ready: deque[Chunk] = deque()
        #: Checks texts for a policy. Set by the pipeline.
        self.moderate: Moderate | None = None
        #: None if no policy checks it, or after the check.
        self.moderation: Moderation | None = None
        self._moderated: GuardMatches | None = None

    def _answer_matches(self) -> GuardMatches | None:
        if self.guard is None or self._moderated is None:
            return self._moderated if self.guard is None else self.guard.matches
        return self.guard.matches + self._moderated

    def set_origin(self, origin: AnswerOrigin) -> None:
        self.cached = origin is AnswerOrigin.HIT

    def record_admission(self, prompt: AdmittedPrompt, answers: int, prompt_hash: str) -> None:
        self.most_prompt_tokens, self.likely_prompt_tokens = prompt.most_prompt_tokens, prompt.likely_prompt_tokens
        self.wanted_answers, self.prompt_hash = answers, prompt_hash
        self.begins_conversation = all(message.role != "assistant" for message in prompt.messages)

    def __aiter__(self) -> "ActivePrompt":
        return self

    async def __anext__(self) -> tuple[int, Chunk]:
        """Return the next chunk with its number, from 1; number 0 is a waiting notice."""
        assert self.answers is not None  # `run` sets it before the reader gets this object
        while not self._ready:
            if self.guard is not None and self._is_refused:
                if self.moderation is None:
                    # Closing the worker's stream ends the generation there.
                    raise StopAsyncIteration
                await self._moderate_answer(self.moderation)
                continue
            answer = await anext(self.answers)
            if self._first_item is None and not (isinstance(answer, Chunk) and answer.waiting):
                self._first_item = self._clock()
            if isinstance(answer, inference.PromptAccepted):
                self._prompt_tokens = answer.prompt_tokens
                continue
            if isinstance(answer, Generation):
                self._take_end(answer)
                if self.moderation is not None:
                    await self._moderate_answer(self.moderation)
                continue
            if answer.waiting:
                return 0, answer
            shown = self._take(answer)
            if shown is None or (self.moderation is not None and self.moderation.take(shown)):
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
            self.chunks += 1
            if self.first_text_seconds is None:
                self.first_text_seconds = self.seconds_so_far
        if chunk.call_parts:
            self._open_calls.add(chunk.answer)
        shown = chunk if self.guard is None else self._guarded(chunk, self.guard)
        if chunk.finish is not None and chunk.answer in self._open_calls:
            # The end of an answer completes its calls.
            self._open_calls.remove(chunk.answer)
            return shown
        return shown if shown is not None and _has_content(shown) else None

    def _guarded(self, chunk: Chunk, guard: AnswerGuard) -> Chunk | None:
        began = time.perf_counter()
        shown = guard.read(chunk)
        self.guard_seconds += time.perf_counter() - began
        if self._is_refused:
            self._finish(answer_guard.filtered(Generation(FinishReason.CONTENT_FILTER, self._usage()), guard.refused))
        return shown

    def _take_end(self, generation: Generation) -> None:
        self._prompt_tokens = generation.usage.prompt_tokens
        reasons = generation.finish_reasons or (generation.finish_reason,)
        for answer in sorted(self._open_calls):
            chunk = Chunk("", (), answer=answer, finish=reasons[answer] if answer < len(reasons) else reasons[0])
            shown = chunk if self.guard is None else self.guard.read(chunk)
            self._ready.extend([] if shown is None else [shown])
        if self.guard is not None:
            self._ready.extend(self.guard.end())
            generation = answer_guard.filtered(generation, self.guard.refused)
        self._finish(generation)

    def _finish(self, generation: Generation) -> None:
        self._generation, self.complete = generation, True
        self.answer_count = max(1, len(generation.finish_reasons))

    async def _moderate_answer(self, checked: Moderation) -> None:
        """Check the answers once they are complete, and release what was held. Raises Unavailable if they can't be checked."""
        assert self._generation is not None
        assert self.answers is not None
        # The request occupies its worker until its stream has ended, and the same worker may have to moderate.
        if self._is_refused:
            await self.answers.aclose()
        async for _ in self.answers:
            pass
        self.moderation = None
        ready, self._ready = self._ready, deque()
        self._ready.extend(await checked.end(ready))
        self._moderated = checked.matches
        self._finish(answer_guard.filtered(self._generation, checked.refused))

    @property
    def _is_refused(self) -> bool:
        """Return whether a policy has ended all answers."""
        return self.guard is not None and len(self.guard.refused) == self.wanted_answers

    def _usage(self) -> Usage:
        """Count output by the received token ids rather than the worker's claim."""
        # Don't trust a claim above the bound.
        prompt_tokens = min(max(self._prompt_tokens, 0), self.most_prompt_tokens)
        if self._generation is None:
            # Without token ids, a chunk has at least one token.
            return Usage(prompt_tokens, self._tokens or self.chunks, reasoning_tokens=self._reasoning_tokens)
        claimed = self._generation.usage
        # Backends without token ids (HTTP APIs) leave only the worker's claim. A token has at least one byte of text, apart from the few
        # that mark calls and ends.
        most = 0 if self.held is None else self.held.max_tokens * self.wanted_answers
        completion = self._tokens or min(max(claimed.completion_tokens, 0), self._bytes + _UNSEEN_TOKENS, most)
        reasoning = min(max(claimed.reasoning_tokens, 0), completion)
        return Usage(prompt_tokens, completion, min(max(claimed.cached_tokens, 0), prompt_tokens), reasoning)

    @property
    def result(self) -> InferenceResult:
        assert self._generation is not None
        assert self.model is not None
        return InferenceResult(
            request_id=self.request_id,
            model=self.model,
            finish_reason=self._generation.finish_reason,
            usage=self.usage,
            response_time_ms=self.response_time_ms,
            first_token_ms=self.response_time_ms if self.first_text_seconds is None else milliseconds(self.first_text_seconds),
            finish_reasons=self._generation.finish_reasons,
            cost_micro=self.cost_micro,
            clamped_to=self.clamped_to,
            cached=self.cached,
            target=self.route.target if self.route is not None and self.shows_target else None,
        )


def _has_content(chunk: Chunk) -> bool:
    return bool(chunk.text or chunk.reasoning or chunk.tool_calls or chunk.call_parts or chunk.logprobs)
