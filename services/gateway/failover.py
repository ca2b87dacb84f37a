"""Decides how a request continues when its worker fails, given what the caller already has. Pure.

An answer whose token ids are known resumes after them, on a worker that computes the same (``ResumeOrigin``) with the same seed, so the
caller gets no text twice and misses none. The text needs no check: it is a function of the tokens, which the next worker reads first.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

import msgspec

from services.gateway import tally
from services.gateway.scheduling.routing import WorkerRequirements
from shared import errors
from shared.api import embedding, inference
from shared.api.generation import GenerationEnd, Usage
from shared.api.method import End, Item, Request
from shared.protocol.directory import ResumeOrigin
from shared.timing.backoff import Backoff
from shared.types import FinishReason, NodeId

ATTEMPTS = 3
#: A request that crashed two engines or workers would crash a third.
MOST_CRASHES = 2
#: How long a started answer waits for a worker that can resume it: enough to restart a NATS server, or a worker and its model.
RESUME_WAIT_SECONDS = 20.0
#: Fail fast if nothing was delivered yet, but allow time for a restart when this is the model's only worker.
FIRST_WAIT_SECONDS = 3.0
#: Backoff with full jitter, for when all workers have failed this request.
BACKOFF = Backoff(first_seconds=0.1, longest_seconds=1.0, jitter=1.0)
#: Limit per chunk; a chunk has the text of one token, or of a few that were batched.
MOST_CHUNK_CHARACTERS = 64 * 1024
#: The longest known tokens are runs of blanks.
MOST_TOKEN_CHARACTERS = 256
_MOST_TOKEN_ID = 2**32 - 1
#: Tolerance for each answer: some backends count the end token, which has no text.
_SLACK_SHARE, _SLACK_TOKENS = 0.02, 1
#: More than any admitted prompt, plus what a template or server may add.
MOST_PROMPT_TOKENS = 4 * 1024 * 1024

#: The worker did no work; a later attempt may succeed.
_REFUSALS = (errors.NotReachable, errors.Draining, errors.Overloaded, errors.Unavailable, errors.UnknownMethod)
#: A worker that fails like this is often back in a moment. The other refusals name a retry time.
_MAY_BE_BACK = (errors.LinkLost, errors.NotReachable, errors.Draining)
#: Another worker may succeed, also one of another version after UnknownMethod. DeadlineExceeded is not included, because no time is left.
_RETRYABLE = (*_REFUSALS, errors.LinkLost, errors.ModelCrashed, errors.ProtocolViolation)
#: The worker can't resume an answer: it can't read the earlier tokens or has no room for them.
_CANNOT_RESUME = (errors.BadRequest, errors.TooLarge, errors.UnknownModel)


@dataclass(frozen=True, slots=True)
class RetryOnWorker:
    """Try another worker."""

    #: The caller already has a part of the answer.
    is_resumption: bool
    #: The last attempt did no work, so this retry is not charged to the retry budget.
    is_free: bool


@dataclass(frozen=True, slots=True)
class Ended(Generic[End]):
    """The answer was complete; only its end marker was missing."""

    end: End


@dataclass(frozen=True, slots=True)
class GivenUp:
    """Return this error to the caller."""

    error: errors.AimeshError


class FailoverState(Generic[Request, Item, End]):
    """Tracks one request across workers. This base class can't resume: once begun, the request fails with its worker."""

    def __init__(self, request: Request) -> None:
        #: The call for the next worker.
        self.request = request
        #: The caller has a part of the answer.
        self.began = False
        self._attempts = self._crashes = 0
        #: One entry for each worker lost during this request: whether it had sent anything.
        self._losses: list[bool] = []
        #: The current worker has sent something.
        self.has_responded = False
        self._failed: set[NodeId] = set()
        #: The error of the last worker that was asked.
        self.last_failure: errors.AimeshError | None = None
        #: When the last worker failed and no other was available.
        self._waiting_since: float | None = None
        self._waits = 0
        #: The current worker has delivered a part of the answer.
        self._has_delivered = False

    @property
    def origin(self) -> ResumeOrigin | None:
        """Return what the next worker must compute with; None for anything."""
        return None

    @property
    def excluded(self) -> frozenset[NodeId]:
        return frozenset(self._failed)

    @property
    def can_resume(self) -> bool:
        return not self.began

    @property
    def is_preemptible(self) -> bool:
        """Return whether its worker may be taken away without a loss."""
        return False

    @property
    def delivered_tokens(self) -> int:
        """Return the number of answer tokens that the caller has."""
        return 0

    # --- facts --------------------------------------------------------------------------------------------------------

    def record_attempt(self, digest: str) -> None:
        """Record that a worker with this model file is asked; the digest is empty if unknown."""
        self._has_delivered = self.has_responded = False

    def record_acceptance(self, accepted: inference.PromptAccepted) -> bool:
        """Return whether to tell the caller. Later workers' prompt counts are ignored, because the first one's are billed."""
        return not self.began

    @property
    def processed_tokens(self) -> tuple[int, int] | None:
        """Return the prompt and answer tokens that the current worker processed; None if unknown."""
        return None

    def record_item(self, item: Item) -> bool:
        """Record an item; return whether to pass it on. Raises ProtocolViolation for an invalid one."""
        if not getattr(item, "waiting", ""):
            self._mark_delivered()
        return True

    def has_wrong_counts(self, end: End, requirements: WorkerRequirements) -> bool:
        """Return whether the current worker reports impossible counts."""
        return False

    def with_total_usage(self, end: End) -> End:
        """Return the end to pass to the caller."""
        return end

    def waiting_notice(self, why: str) -> Item:
        raise NotImplementedError

    # --- decisions ----------------------------------------------------------------------------------------------------

    def on_failure(
        self, node: NodeId, error: errors.AimeshError, *, lost_workers: int = 0, others_lost: bool = False
    ) -> RetryOnWorker | Ended[End] | GivenUp:
        """Decide what follows the failure of the current worker. ``lost_workers``: how many workers were lost earlier and have not returned
        as the same process. ``others_lost``: workers that did not run this request were lost recently, too."""
        self._crashes += isinstance(error, errors.ModelCrashed)
        if self._crashes == MOST_CRASHES:
            message = "this request crashed the engine twice and will not be run again"
            return GivenUp(errors.Poison(message, hint="change the request; see the workers' logs for details"))
        if _proves_loss(error) and not others_lost and self._is_poison(lost_workers):
            message = "two workers were lost while they ran this request; it will not be given to a third"
            return GivenUp(errors.Poison(message, hint="retry only if the request can't be the cause; see the workers' logs"))
        is_retryable = isinstance(error, _RETRYABLE) or (self.began and isinstance(error, _CANNOT_RESUME))
        if not is_retryable:
            return GivenUp(error)
        self._failed.add(node)
        errors.drop_tracebacks(error)  # their frames have this state
        self.last_failure = error
        # A started answer may be refused any number of times until its timeout, but only ATTEMPTS workers get to work on it.
        is_free = self.began and not self._has_delivered and isinstance(error, _REFUSALS)
        self._attempts += not is_free
        if self._attempts == ATTEMPTS or not self.can_resume:
            return GivenUp(self.final_error(error))
        return RetryOnWorker(self.began, is_free)

    def on_no_worker(self, error: errors.AimeshError, now: float, draw: Callable[[], float]) -> float | GivenUp:
        """Return in how many seconds to look again for a worker. ``draw`` returns numbers from 0 to 1."""
        patience = RESUME_WAIT_SECONDS if self.began else FIRST_WAIT_SECONDS if isinstance(self.last_failure, _MAY_BE_BACK) else 0.0
        if self._waiting_since is None:
            self._waiting_since = now
        if now - self._waiting_since >= patience:
            # The last worker's error is more useful than "no worker".
            last = self.last_failure
            return GivenUp(self.final_error(error if last is None or isinstance(error, errors.Overloaded) else last))
        # Try all workers again: a failed worker may be back.
        self._failed.clear()
        self._waits += 1
        return BACKOFF.pause(self._waits, draw)

    def final_error(self, error: errors.AimeshError) -> errors.AimeshError:
        return error

    def _is_poison(self, lost_workers: int) -> bool:
        """Count one more lost worker. A lost link proves no crash, because the worker may still run. A worker lost without a response,
        after another had begun, may have been disconnected before it was asked, as in a network partition. A worker that got past the
        place where the earlier ones were lost clears the request: what kills a worker kills the next one at the same place."""
        if not lost_workers or self._has_delivered:
            self._losses.clear()
        if self.has_responded or not any(self._losses):
            self._losses.append(self.has_responded)
        return len(self._losses) >= MOST_CRASHES

    def _mark_delivered(self) -> None:
        self.began = self._has_delivered = True
        self._waiting_since, self._waits = None, 0


class AnswerFailover(FailoverState[inference.ProcessPrompt, inference.Chunk, GenerationEnd]):
    """Tracks a prompt. A single answer with token ids can resume; several answers, or one without ids, can't."""

    def __init__(self, prompt: inference.ProcessPrompt) -> None:
        super().__init__(prompt)
        config = prompt.model_config
        self._answers = config.n or 1
        self._most_tokens = None if config.max_tokens is None else config.max_tokens * self._answers
        self._delivered: list[int] = []
        #: The answer so far, and up to the current worker.
        self._at = self._before = tally.NOTHING
        self._characters = 0
        #: How many calls each answer has begun.
        self._calls: Counter[int] = Counter()
        self._prompt_tokens: int | None = None
        self._digest = self._numerics = ""
        self._has_ids = True
        self._finish: FinishReason | None = None
        self._resumed = False

    @property
    def origin(self) -> ResumeOrigin | None:
        return ResumeOrigin(self._digest, self._numerics) if self.began else None

    @property
    def can_resume(self) -> bool:
        return not self.began or (self._answers == 1 and self._has_ids and bool(self._digest))

    @property
    def is_preemptible(self) -> bool:
        return self.can_resume and self._finish is None

    @property
    def delivered_tokens(self) -> int:
        return self._at.ids

    def record_attempt(self, digest: str) -> None:
        super().record_attempt(digest)
        self._before = self._at
        if self.began:
            self._resumed = True
            self.request = msgspec.structs.replace(self.request, delivered=tuple(self._delivered), numerics=self._numerics)
        else:
            self._digest = digest

    def record_acceptance(self, accepted: inference.PromptAccepted) -> bool:
        if self.began:
            return False
        self._prompt_tokens, self._numerics = accepted.prompt_tokens, accepted.numerics
        return True

    @property
    def processed_tokens(self) -> tuple[int, int] | None:
        return None if self._prompt_tokens is None else (self._prompt_tokens, self._at.ids - self._before.ids)

    def record_item(self, item: inference.Chunk) -> bool:
        if item.waiting:
            return not self.began
        before, at = self._at, tally.count(self._at, item)
        self._characters += self._check(item, at.ids)
        self._at = at
        for part in item.call_parts:
            self._calls[item.answer] = max(self._calls[item.answer], part.index + 1)
        if self._answers == 1:
            self._delivered.extend(item.token_ids)
            # The end of an answer may bring text without a token, so decide on all tokens so far.
            self._has_ids = self._has_ids and (bool(self._delivered) or item.finish is not None)
            self._finish = item.finish
        if not self._has_delivered and (at.pieces > before.pieces or at.ids > before.ids):
            self._mark_delivered()
        return True

    def waiting_notice(self, why: str) -> inference.Chunk:
        return inference.Chunk("", (), waiting=why)

    def has_wrong_counts(self, end: GenerationEnd, requirements: WorkerRequirements) -> bool:
        claimed, received = end.usage, self._at.ids - self._before.ids
        # The worker counts only its own tokens.
        return is_wrong(claimed.completion_tokens, received, self._answers) or any(
            is_impossible(requirements, tokens) for tokens in (claimed.prompt_tokens, self._prompt_tokens or 0)
        )

    def with_total_usage(self, end: GenerationEnd) -> GenerationEnd:
        if not self._resumed:
            return end
        prompt_tokens = end.usage.prompt_tokens if self._prompt_tokens is None else self._prompt_tokens
        reasoning_tokens = self._before.thoughts + end.usage.reasoning_tokens
        return msgspec.structs.replace(end, usage=Usage(prompt_tokens, self._at.ids, end.usage.cached_tokens, reasoning_tokens))

    def on_failure(
        self, node: NodeId, error: errors.AimeshError, *, lost_workers: int = 0, others_lost: bool = False
    ) -> RetryOnWorker | Ended[GenerationEnd] | GivenUp:
        if self._finish is not None:
            usage = Usage(self._prompt_tokens or 0, self._at.ids, reasoning_tokens=self._at.thoughts)
            return Ended(GenerationEnd(self._finish, usage))
        return super().on_failure(node, error, lost_workers=lost_workers, others_lost=others_lost)

    def final_error(self, error: errors.AimeshError) -> errors.AimeshError:
        if not self.began:
            return error
        return errors.WorkerLost(
            f"the worker was lost during its answer, and no other worker could resume it: {error.message}",
            hint="retry the request; the tokens delivered so far are billed",
            retry_after_seconds=1.0,
        )

    def _check(self, chunk: inference.Chunk, tokens: int) -> int:
        """Return its number of characters; with it, the answer has so many tokens. Raises ProtocolViolation."""
        if self._finish is not None:
            raise errors.ProtocolViolation("the worker continued after the end of its answer")
        if not 0 <= chunk.answer < self._answers:
            raise errors.ProtocolViolation(f"the worker sent answer {chunk.answer} of {self._answers}")
        if chunk.token_ids and not 0 <= min(chunk.token_ids) <= max(chunk.token_ids) <= _MOST_TOKEN_ID:
            raise errors.ProtocolViolation("the worker sent an invalid token id")
        new = len(chunk.text) + len(chunk.reasoning)
        if chunk.call_parts:
            new += self._check_calls(chunk)
        if new > MOST_CHUNK_CHARACTERS:
            raise errors.ProtocolViolation(f"the worker sent {new} characters in one chunk")
        if self._most_tokens is None:
            return new
        characters = self._characters + new
        if tokens > self._most_tokens or characters > MOST_CHUNK_CHARACTERS + self._most_tokens * MOST_TOKEN_CHARACTERS:
            raise errors.ProtocolViolation(f"the worker sent more than the requested {self._most_tokens} tokens")
        return new

    def _check_calls(self, chunk: inference.Chunk) -> int:
        """Return their number of characters. Raises ProtocolViolation."""
        begun = self._calls[chunk.answer]
        for part in chunk.call_parts:
            if not max(0, begun - 1) <= part.index <= begun or (part.index == begun and not part.name):
                raise errors.ProtocolViolation(f"the worker sent a part of call {part.index}, which is neither its last nor its next one")
            begun = max(begun, part.index + 1)
        return sum(len(part.arguments) for part in chunk.call_parts)


class VectorsFailover(FailoverState[embedding.Embed, embedding.Vectors, embedding.Embedded]):
    def __init__(self, texts: embedding.Embed) -> None:
        super().__init__(texts)
        self._prompt_tokens: int | None = None

    @property
    def processed_tokens(self) -> tuple[int, int] | None:
        return None if self._prompt_tokens is None else (self._prompt_tokens, 0)

    def record_acceptance(self, accepted: inference.PromptAccepted) -> bool:
        self._prompt_tokens = accepted.prompt_tokens
        return super().record_acceptance(accepted)

    def has_wrong_counts(self, end: embedding.Embedded, requirements: WorkerRequirements) -> bool:
        return is_impossible(requirements, end.prompt_tokens)

    def waiting_notice(self, why: str) -> embedding.Vectors:
        return embedding.Vectors((), waiting=why)


class ModerationFailover(FailoverState[inference.Moderate, inference.ModerationNotice, inference.Moderated]):
    """Tracks a moderation request. Its answer arrives as a whole."""

    def waiting_notice(self, why: str) -> inference.ModerationNotice:
        return inference.ModerationNotice(why)


class ConversionFailover(FailoverState[inference.Conversion, inference.ConvertedPart, inference.Converted]):
    """Tracks a conversion. Its caller gets nothing before the end, so another worker can begin again."""

    def record_item(self, item: inference.ConvertedPart) -> bool:
        return True

    def waiting_notice(self, why: str) -> inference.ConvertedPart:
        return inference.ConvertedPart()


def _proves_loss(error: errors.AimeshError) -> bool:
    """Return whether the worker may have died of the request. A silent NATS server loses the links to all workers."""
    return isinstance(error, errors.LinkLost) and not isinstance(error, errors.TransportLost)


def is_wrong(claimed: int, received: int, answers: int) -> bool:
    """Return whether the claimed count contradicts the tokens that came. ``received`` 0: the backend sends no ids, so this can't tell."""
    if claimed < 0:
        return True
    return received > 0 and abs(claimed - received) > max(_SLACK_TOKENS * answers, _SLACK_SHARE * received)


def is_impossible(requirements: WorkerRequirements, prompt_tokens: int) -> bool:
    """Return whether no prompt could have so many tokens. The worker's tokenizer and template count, so only extremes are wrong."""
    return not 0 <= prompt_tokens <= max(requirements.prompt_tokens, MOST_PROMPT_TOKENS)


def may_try_another_target(error: errors.AimeshError) -> bool:
    """Return whether another model may answer a request that failed with this error before its first token."""
    return isinstance(error, (*_RETRYABLE, errors.UnknownModel))


# --- the retry budget ---------------------------------------------------------------------------------------------------

#: During an outage, retries add load, so only a share of the requests is retried.
WINDOW_SECONDS = 10.0
#: Share of the window's requests, or of the running ones if there are more: an answer may outlast the window.
SHARE = 0.2
#: Always allowed, for gateways with little traffic.
PER_SECOND = 10
#: Width of a counting bucket: memory must not grow with the number of requests.
_PIECE_SECONDS = 0.5


class _Window:
    __slots__ = ("_pieces", "_total")

    def __init__(self) -> None:
        self._pieces: deque[tuple[int, int]] = deque()
        self._total = 0

    def add(self, now: float) -> None:
        piece, count = int(now // _PIECE_SECONDS), 0
        if self._pieces and self._pieces[0][0] <= piece - WINDOW_SECONDS / _PIECE_SECONDS:
            self.total(now)  # drops old buckets
        if self._pieces and self._pieces[-1][0] >= piece:
            piece, count = self._pieces.pop()
        self._pieces.append((piece, count + 1))
        self._total += 1

    def total(self, now: float) -> int:
        oldest = (now - WINDOW_SECONDS) // _PIECE_SECONDS
        while self._pieces and self._pieces[0][0] <= oldest:
            self._total -= self._pieces.popleft()[1]
        return self._total


class RetryBudget:
    """Limits the gateway's retries. Follow every ``begin`` with one ``end``."""

    def __init__(self) -> None:
        self._requests, self._retries = _Window(), _Window()
        self._running = 0

    def begin(self, now: float) -> None:
        self._requests.add(now)
        self._running += 1

    def end(self) -> None:
        self._running -= 1

    def spend(self, now: float) -> bool:
        """Return whether another retry is allowed, and count it if so."""
        requests = max(self._requests.total(now), self._running)
        if self._retries.total(now) + 1 > SHARE * requests + PER_SECOND * WINDOW_SECONDS:
            return False
        self._retries.add(now)
        return True
