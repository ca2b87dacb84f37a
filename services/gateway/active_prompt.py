"""One prompt on its way through the pipeline: what was said so far, and what that comes to."""

from collections.abc import AsyncGenerator, Callable

from services.gateway.active_request import ActiveRequest, milliseconds
from services.gateway.admission.prompt_admission import AdmittedPrompt
from services.gateway.failover.relay import Said
from services.gateway.idempotency.response_cache import AnswerOrigin
from shared.api import gateway, inference
from shared.api.gateway import InferenceResult
from shared.api.generation import Generation, Usage
from shared.api.inference import Chunk

#: Of an answer from a backend that tells no token ids: marks of calls and ends, which are no text.
_UNSEEN_TOKENS = 64


class ActivePrompt(ActiveRequest):
    """One prompt on its way. Iterate it for what is to be shown; ``result`` is there when the block of ``run`` is left."""

    method = gateway.process_inference_request.name.partition(".")[2]
    answers: AsyncGenerator[Said] | None

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._first_text: float | None = None
        self._prompt_tokens = 0
        self._tokens = 0
        self._generation: Generation | None = None
        self._admitted: AdmittedPrompt | None = None
        #: Of the text and the calls that were delivered.
        self._bytes = 0
        self._chunks = 0
        self._origin = AnswerOrigin.MISS

    def came(self, origin: AnswerOrigin) -> None:
        """Where its answer comes from."""
        self._origin = origin

    def admitted(self, admitted: AdmittedPrompt, prompt_hash: str) -> None:
        self._admitted, self.prompt_hash = admitted, prompt_hash

    def __aiter__(self) -> "ActivePrompt":
        return self

    async def __anext__(self) -> Chunk:
        assert self.answers is not None  # `run` has set it before anybody sees this object
        while True:
            answer = await anext(self.answers)
            if self._first_word is None and not (isinstance(answer, Chunk) and answer.waiting):
                self._first_word = self._clock()
            if isinstance(answer, Generation):
                self._generation = answer
                self._prompt_tokens = answer.usage.prompt_tokens
                continue
            if isinstance(answer, inference.PromptAccepted):
                self._prompt_tokens = answer.prompt_tokens
                continue
            self._tokens += len(answer.token_ids)
            self._chunks += bool(answer.text or answer.tool_calls)
            self._bytes += len(answer.text.encode()) + sum(len((call.name + call.arguments).encode()) for call in answer.tool_calls)
            if self._first_text is None and (answer.text or answer.tool_calls):
                self._first_text = self._clock()
            if answer.text or answer.tool_calls or answer.logprobs or answer.waiting:
                return answer

    @property
    def usage(self) -> Usage:
        """What was delivered so far. Output is counted here, as token ids received, not taken from the worker's word."""
        if self._admitted is None:
            return Usage(prompt_tokens=0, completion_tokens=0)
        # More than there can be is not believed.
        prompt_tokens = min(max(self._prompt_tokens, 0), self._admitted.most_prompt_tokens)
        if self._generation is None:
            return Usage(prompt_tokens, self._tokens)
        claimed = self._generation.usage
        # A backend that has no token ids (an HTTP API) sends none; there the worker's count is all there is. No token is less than a byte
        # of what came, but for the few that mark calls and ends.
        completion = self._tokens or min(max(claimed.completion_tokens, 0), self._bytes + _UNSEEN_TOKENS, self._most_tokens)
        return Usage(prompt_tokens, completion, min(max(claimed.cached_tokens, 0), prompt_tokens))

    @property
    def _most_tokens(self) -> int:
        """Of all its answers."""
        assert self._admitted is not None
        return 0 if self.held is None else self.held.max_tokens * (self._admitted.sampling.n or 1)

    @property
    def clamped_to(self) -> int | None:
        return self.held.max_tokens if self.held is not None and self.held.clamped else None

    @property
    def begins_conversation(self) -> bool:
        return self._admitted is not None and all(message.role != "assistant" for message in self._admitted.messages)

    @property
    def chunks(self) -> int:
        return self._chunks

    @property
    def cached(self) -> bool:
        return self._origin is AnswerOrigin.HIT

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
            first_token_ms=self.response_time_ms if self._first_text is None else milliseconds(self._first_text - self._began),
            finish_reasons=self._generation.finish_reasons,
            cost_micro=self.cost_micro,
            clamped_to=self.clamped_to,
            cached=self.cached,
        )

    @property
    def first_text_seconds(self) -> float | None:
        return None if self._first_text is None else self._first_text - self._began

    @property
    def complete(self) -> bool:
        return self._generation is not None
