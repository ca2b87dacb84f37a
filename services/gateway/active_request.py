"""One request on its way through the gateway: what was delivered so far, and what its row will say."""

import math
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import ClassVar

from services.gateway.admission.prompt_admission import AdmittedPrompt, AdmittedTexts
from services.gateway.billing.ledger import HeldCredits
from services.gateway.failover.relay import Embedding, Said
from services.gateway.idempotency.response_cache import AnswerOrigin
from services.gateway.limits.limit_rules import Spent, TightestLimit
from services.gateway.scheduling.worker_claims import Claim
from shared import context, errors
from shared.api import embedding, gateway, inference
from shared.api.embedding import Embedded, EmbeddingResult, Vectors
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
        #: Parts of the answer that were read.
        self._number = 0
        #: Fixed when the request ended.
        self._final_usage: Usage | None = None
        self._claims: list[Claim] = []
        #: When the first of the answer came, whatever it was.
        self._first_word: float | None = None
        #: Fixed when the request ended.
        self._computed: float | None = None
        #: Asked when it is canceled: whether another gateway continues it, and writes its row.
        self.goes_on_elsewhere: Callable[[], bool] = lambda: False
        #: The caller gets the whole answer at the end, or nothing.
        self.seen_at_end = False
        #: Nobody can get the answer, because it is too large for the way it was asked for.
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
    def usage(self) -> Usage:
        """What was delivered so far."""
        return self._final_usage or self._usage()

    @abstractmethod
    def _usage(self) -> Usage: ...

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
    def answers_told(self) -> int:
        """How many answers it has, as far as the worker has said."""
        return 1

    @property
    def clamped_to(self) -> int | None:
        """What max_tokens was lowered to, because the credits do not cover more."""
        return None

    @property
    def is_repeat(self) -> bool:
        """Never: it is made for this call."""
        return False

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
        self._computed, self._final_usage = self.compute_seconds, self._usage()
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
        self._wanted_answers = 1
        #: Of the text and the calls that were delivered.
        self._bytes = 0
        self._chunks = 0
        self._origin = AnswerOrigin.MISS

    def came(self, origin: AnswerOrigin) -> None:
        """Where its answer comes from."""
        self._origin = origin

    def admitted(self, admitted: AdmittedPrompt, answers: int, prompt_hash: str) -> None:
        self._admitted, self._wanted_answers, self.prompt_hash = admitted, answers, prompt_hash

    def __aiter__(self) -> "ActivePrompt":
        return self

    async def __anext__(self) -> tuple[int, Chunk]:
        """A chunk and its number, counted from 1; 0 if it only says what the request waits for."""
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
            if answer.waiting:
                return 0, answer
            if answer.text or answer.tool_calls or answer.logprobs:
                self._number += 1
                return self._number, answer

    def _usage(self) -> Usage:
        """Output is counted here, as token ids received, not taken from the worker's word."""
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
        return 0 if self.held is None else self.held.max_tokens * self._wanted_answers

    @property
    def answers_told(self) -> int:
        return 1 if self._generation is None else max(1, len(self._generation.finish_reasons))

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


#: Each number of a vector has four bytes.
NUMBER_BYTES = 4


class ActiveEmbedding(ActiveRequest):
    """Iterate it for the vectors; ``result`` is there when the block of ``run`` is left."""

    method = embedding.request_embeddings.name.partition(".")[2]
    answers: AsyncGenerator[Embedding] | None

    admitted: AdmittedTexts | None = None
    wanted_dimensions: int | None = None
    _prompt_tokens = 0
    _vectors = 0
    #: Of every vector, as the first one has them.
    _dimensions = 0
    _complete = False

    def __aiter__(self) -> "ActiveEmbedding":
        return self

    async def __anext__(self) -> tuple[int, Vectors]:
        """Vectors and their number, as ``ActivePrompt``. Raises ProtocolViolation for a worker that sends what is none."""
        assert self.answers is not None  # `run` has set it before anybody sees this object
        while True:
            answer = await anext(self.answers)
            if isinstance(answer, Vectors):
                for vector in answer.vectors:
                    self._take(vector)
                self._number += not answer.waiting
                return (0 if answer.waiting else self._number), answer
            self._prompt_tokens = answer.prompt_tokens
            if isinstance(answer, Embedded):
                self._all_came()

    def _usage(self) -> Usage:
        # More than there can be is not believed.
        most = self.admitted.most_prompt_tokens if self.admitted is not None else 0
        return Usage(min(max(self._prompt_tokens, 0), most), completion_tokens=0)

    @property
    def complete(self) -> bool:
        return self._complete

    @property
    def result(self) -> EmbeddingResult:
        assert self.model is not None
        return EmbeddingResult(self.request_id, self.model, self._dimensions, self.usage.prompt_tokens, self.response_time_ms)

    def _take(self, vector: bytes) -> None:
        assert self.admitted is not None
        self._vectors += 1
        numbers, over = divmod(len(vector), NUMBER_BYTES)
        self._dimensions = self._dimensions or numbers
        wanted = self.wanted_dimensions or self._dimensions
        if over or not 0 < numbers == wanted == self._dimensions <= embedding.MAX_DIMENSIONS or self._vectors > len(self.admitted.inputs):
            raise errors.ProtocolViolation(f"the worker sent {len(vector)} bytes as vector {self._vectors}", hint="try again")
        if not math.isfinite(math.hypot(*struct.unpack(f"<{numbers}f", vector))):
            raise errors.ProtocolViolation(f"the worker sent no numbers as vector {self._vectors}", hint="try again")

    def _all_came(self) -> None:
        assert self.admitted is not None
        if self._vectors != len(self.admitted.inputs):
            raise errors.ProtocolViolation(
                f"the worker sent {self._vectors} vectors for {len(self.admitted.inputs)} texts", hint="try again"
            )
        self._complete = True
