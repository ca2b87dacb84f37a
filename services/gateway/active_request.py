"""One request on its way through the gateway: what was delivered so far, and what its row will say."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import ClassVar

from services.gateway.admission.prompt_admission import AdmittedPrompt
from services.gateway.billing.ledger import HeldCredits
from services.gateway.failover.relay import Said
from services.gateway.idempotency.response_cache import AnswerOrigin
from services.gateway.limits.limit_rules import Spent, TightestLimit
from services.gateway.scheduling.worker_claims import Claim
from shared import context
from shared.api import gateway, inference
from shared.api.gateway import InferenceResult
from shared.api.generation import Generation, Usage
from shared.api.inference import Chunk
from shared.discovery.directory import DirectoryEntry
from shared.types import MicroCredits, ModelName, RequestId


class ActiveRequest(ABC):
    """Made when a request enters the pipeline."""

    #: As the metrics name it, at all doors.
    method: ClassVar[str]

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.request_id = _request_id()
        self.began_at = datetime.now(UTC)
        self._began = clock()
        self._ended: float | None = None
        self.prompt_hash: str | None = None
        #: Known after routing and limiting, so before the first answer.
        self.model: ModelName | None = None
        #: Of the limits; None until it is let in.
        self.spent: Spent | None = None
        #: What it may cost; None until that is reserved.
        self.held: HeldCredits | None = None
        #: What the worker says; closing it ends the work there.
        self.answers: AsyncGenerator[object] | None = None
        self._claims: list[Claim] = []
        #: When the first of the answer came, whatever it was.
        self._first_word: float | None = None
        #: Fixed when the request ended.
        self._computed: float | None = None
        #: Asked when it is cancelled: whether another gateway goes on with it, and writes its row.
        self.goes_on_elsewhere: Callable[[], bool] = lambda: False
        #: Its caller gets the answer as a whole, or nothing of it.
        self.seen_at_end = False
        #: Nobody can get the answer, because it is too large for the way that it was asked by.
        self.undeliverable = False
        #: Who runs it; None until that is decided, and where nobody has to.
        self.worker: DirectoryEntry | None = None

    def runs_on(self, claim: Claim) -> None:
        """Told for each worker that it is given to."""
        self.worker = claim.worker
        self._claims.append(claim)

    @property
    def compute_seconds(self) -> float:
        """How long workers worked on what was delivered; its waiting for them costs nothing."""
        if self._computed is not None:
            return self._computed
        # Who joined the answer of another request has no worker, and pays from the first word on.
        joined = 0.0 if self._claims or self._first_word is None else self._clock() - self._first_word
        return joined + sum(claim.seconds for claim in self._claims)

    @property
    def allowance(self) -> TightestLimit | None:
        """What is left of the limits, for the headers of the answer."""
        return None if self.spent is None else self.spent.tightest

    @property
    @abstractmethod
    def usage(self) -> Usage:
        """What was delivered so far."""

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether the worker has said that this is all."""

    @property
    def first_text_seconds(self) -> float | None:
        """None where no text was delivered."""
        return None

    @property
    def chunks(self) -> int:
        """Pieces that its text came in."""
        return 0

    @property
    def cached(self) -> bool:
        """Whether its answer was given before."""
        return False

    @property
    def begins_conversation(self) -> bool:
        """Whether it goes on from no earlier answer, as far as its messages tell."""
        return False

    @property
    def saved_micro(self) -> MicroCredits:
        """What its tokens would have cost that were given before."""
        if self.held is None or not (self.cached and self.complete):
            return MicroCredits(0)
        return self.held.price.cost(self.usage.prompt_tokens, self.usage.completion_tokens, 0)

    @property
    def cost_micro(self) -> MicroCredits:
        """Of what was delivered so far; nothing where that is nothing, or was given before."""
        if self.held is None or self.cached or not (self.complete or self.usage.completion_tokens):
            return MicroCredits(0)
        return self.held.price.cost(self.usage.prompt_tokens, self.usage.completion_tokens, self.compute_seconds)

    @property
    def response_time_ms(self) -> int:
        """The same in the answer and in the row: fixed when the request ended."""
        return milliseconds((self._ended if self._ended is not None else self._clock()) - self._began)

    def end(self) -> None:
        self._computed = self.compute_seconds
        self._ended = self._clock()

    @property
    def seconds_so_far(self) -> float:
        return self._clock() - self._began


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _request_id() -> RequestId:
    """Always made here, never a caller's: it is the row's key, and a used one would be a request without a row."""
    now = context.current.get()
    return now.request_id if now is not None else context.start().request_id


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
