"""Gets one answer from its workers, one after another. Pure: each fact gives the next step.

While our own connection to NATS is lost, nothing is known of the workers behind it. The work waits then, without an attempt or a failure.
``back_at`` is when it came back: infinity while it is lost, and its opposite if it never was.

An answer whose token ids are known resumes after them, on a worker that computes the same (``ResumeOrigin``) with the same seed, so the
caller gets no text twice and misses none. The text needs no check: it is a function of the tokens, which the next worker reads first.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from services.gateway.facts import tally
from services.gateway.facts.tally import Tally
from services.gateway.facts.worker_requirements import WorkerRequirements
from shared import errors
from shared.api import embedding, inference
from shared.api.embedding import Embed, Embedded, Vectors
from shared.api.generation import GenerationEnd, Usage
from shared.api.inference import (
    Chunk,
    Conversion,
    Converted,
    ConvertedPart,
    Moderate,
    Moderated,
    ModerationNotice,
    ProcessPrompt,
    PromptAccepted,
)
from shared.api.method import StreamMethod
from shared.protocol.directory import ResumeOrigin
from shared.timing.backoff import Backoff
from shared.types import FinishReason, NodeId

ATTEMPTS = 3
#: A request that crashed two engines or workers would crash a third.
MAX_CRASHES = 2
#: How long a started answer waits for a worker that can resume it, once our own connection is back: enough to restart a worker and its
#: model.
RESUME_WAIT_SECONDS = 20.0
#: The same if nothing was delivered yet. Fail fast, but allow time for a restart when this is the model's only worker.
FIRST_WAIT_SECONDS = 3.0
#: Backoff with full jitter, for when all workers have failed this request.
BACKOFF = Backoff(first_seconds=0.1, longest_seconds=1.0, jitter=1.0)
#: Limit per chunk; a chunk has the text of one token, or of a few that were batched.
MAX_CHUNK_CHARACTERS = 64 * 1024
#: The longest known tokens are runs of blanks.
MAX_TOKEN_CHARACTERS = 256
_MAX_TOKEN_ID = 2**32 - 1
#: Tolerance for each answer: some backends count the end token, which has no text.
_SLACK_SHARE, _SLACK_TOKENS = 0.02, 1
#: More than any admitted prompt, plus what a template or server may add.
MAX_PROMPT_TOKENS = 4 * 1024 * 1024

#: The worker did no work; a later attempt may succeed.
_REFUSALS = (errors.NotReachable, errors.Draining, errors.Overloaded, errors.Unavailable, errors.UnknownMethod)
#: A worker that fails like this is often back in a moment. The other refusals name a retry time.
_MAY_BE_BACK = (errors.LinkLost, errors.NotReachable, errors.Draining)
#: Another worker may succeed, also one of another version after UnknownMethod. DeadlineExceeded is not included, because no time is left.
_RETRYABLE = (*_REFUSALS, errors.LinkLost, errors.ModelCrashed, errors.ProtocolViolation)
#: The worker can't resume an answer: it can't read the earlier tokens or has no room for them.
_CANNOT_RESUME = (errors.BadRequest, errors.TooLarge, errors.UnknownModel)

#: What workers are asked for.
Work = ProcessPrompt | Embed | Moderate | Conversion
Item = Chunk | Vectors | ModerationNotice | ConvertedPart
End = GenerationEnd | Embedded | Moderated | Converted


# --- kinds ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """What workers are asked for."""

    method: StreamMethod[Any, Any, Any]
    #: As in OpenTelemetry.
    operation: str
    #: Tells the caller what its request waits for.
    notice: Callable[[str], Item]
    #: The caller has it part by part: after the first one, no worker may begin again, and the tokens so far are the tenant's.
    is_in_parts: bool = False


PROMPT = Kind(inference.process_prompt, "chat", lambda why: Chunk("", (), waiting=why), is_in_parts=True)
_VECTORS = Kind(embedding.embed, "embeddings", lambda why: Vectors((), waiting=why), is_in_parts=True)
_SCORES = Kind(embedding.rank, "rerank", _VECTORS.notice, is_in_parts=True)
_VERDICTS = Kind(inference.moderate, "moderation", ModerationNotice)
_CONVERSIONS = {
    request: Kind(method, "tokenize", lambda _: ConvertedPart())
    for request, method in (
        (inference.Tokenize, inference.tokenize),
        (inference.Detokenize, inference.detokenize),
        (inference.RenderChat, inference.render_chat),
    )
}


def kind_of(work: Work) -> Kind:
    match work:
        case ProcessPrompt():
            return PROMPT
        case Embed():
            return _VECTORS if work.query is None else _SCORES
        case Moderate():
            return _VERDICTS
        case _:
            return _CONVERSIONS[type(work)]


# --- steps ----------------------------------------------------------------------------------------------------------------


class Step(msgspec.Struct, frozen=True):
    """What to do next."""


class FindWorker(Step, frozen=True):
    excluded: frozenset[NodeId] = frozenset()
    #: What the worker must compute with; None for anything.
    origin: ResumeOrigin | None = None
    #: "retry" or "resumption"; empty for the first worker.
    why: str = ""
    #: To the gateway's retry budget; the last attempt did some work.
    is_charged: bool = False


class AskWorker(Step, frozen=True):
    #: It continues after these tokens, and computes as their worker.
    delivered: tuple[int, ...]
    numerics: str
    seconds: float


class NotReached(Step, frozen=True):
    """Several workers could not be reached: go on as if there were none."""


class Pause(Step, frozen=True):
    seconds: float


class Done(Step, frozen=True):
    end: End
    #: The worker reports impossible ones.
    has_wrong_counts: bool = False


class Failed(Step, frozen=True):
    error: errors.AimeshError


# --- the answer -----------------------------------------------------------------------------------------------------------


class Generation:
    """A single answer with token ids can resume. Several answers, or one without ids, fail with their worker once they have begun."""

    def __init__(
        self,
        kind: Kind,
        requirements: WorkerRequirements,
        ends_at: float,
        *,
        answers: int = 0,
        most_tokens: int | None = None,
        most_wait_seconds: float = math.inf,
    ) -> None:
        """``answers``: of a prompt, each with so many tokens; None for any number. ``most_wait_seconds``: how long it waits while our own
        connection is lost."""
        self.kind = kind
        self.ends_at = ends_at
        self.at = tally.NOTHING
        #: The caller has a part of the answer; and another worker may take over.
        self.began, self.can_resume = False, True
        self._has_alternative = requirements.has_alternative
        self._most_wait_seconds = most_wait_seconds
        self._most_prompt_tokens = max(requirements.prompt_tokens, MAX_PROMPT_TOKENS)
        self._answers = answers
        self._most_tokens = None if most_tokens is None else most_tokens * answers
        self._ids: list[int] = []
        self._has_ids = True
        self._characters = 0
        #: How many calls each answer has begun.
        self._calls: Counter[int] = Counter()
        self._finish: FinishReason | None = None
        #: Of the worker that began; the digest is empty if unknown.
        self._digest = self._numerics = ""
        #: A worker has read the prompt.
        self._is_read = False
        #: The current worker has sent anything, and a part of the answer; and what earlier ones had delivered.
        self._has_responded = self._has_delivered = False
        self._before = tally.NOTHING
        self._attempts = self._crashes = 0
        #: One entry for each worker lost during this request: whether it had sent anything.
        self._losses: list[bool] = []
        self._failed: set[NodeId] = set()
        #: The error of the last worker that was asked.
        self.last_failure: errors.AimeshError | None = None
        #: When the last worker failed and no other was available.
        self._waiting_since: float | None = None
        self._waits = 0

    @property
    def is_preemptible(self) -> bool:
        """Return whether its worker may be taken away without a loss."""
        return self._answers > 0 and self.may_continue

    @property
    def may_continue(self) -> bool:
        """Return whether it has something left to do, which another worker can do."""
        return self.can_resume and self._finish is None

    @property
    def processed_tokens(self) -> tuple[int, int] | None:
        """Return the prompt and answer tokens that the current worker processed; None if unknown."""
        return (self.at.prompt, self.at.ids - self._before.ids) if self._is_read and self.kind.is_in_parts else None

    # --- the search for a worker --------------------------------------------------------------------------------------

    def claimed(self, digest: str, now: float, start_wait_seconds: float = 0.0) -> AskWorker:
        """A worker with this model file has room. Its start doesn't count into the deadline."""
        self.ends_at += start_wait_seconds
        self._has_delivered = self._has_responded = False
        self._before = self.at
        if not self.began:
            self._digest = digest
        return AskWorker(tuple(self._ids), self._numerics, self.ends_at - now)

    def no_worker(self, error: errors.AimeshError, now: float, draw: Callable[[], float], back_at: float = -math.inf) -> Pause | Failed:
        """``draw`` returns numbers from 0 to 1."""
        last = self.last_failure
        if isinstance(error, errors.NotStarted):
            return Failed(error)  # it has waited long enough
        if self._has_alternative and not self.began:
            return Failed(last or error)
        return self._wait(error, now, draw, back_at)

    def _wait(self, error: errors.AimeshError, now: float, draw: Callable[[], float], back_at: float) -> Pause | Failed:
        last = self.last_failure
        if self._waiting_since is None:
            self._waiting_since = now
        if self._has_waited(error, now, back_at):
            # The last worker's error is more useful than "no worker".
            return Failed(self._final(error if last is None or isinstance(error, errors.Overloaded) else last))
        # Try all workers again: a failed worker may be back.
        self._failed.clear()
        self._waits += 1
        pause = BACKOFF.pause(self._waits, draw)
        if self.ends_at - now <= pause:
            return Failed(errors.DeadlineExceeded("no worker could resume the answer in time", hint="retry with a longer timeout"))
        return Pause(pause)

    def _has_waited(self, error: errors.AimeshError, now: float, back_at: float) -> bool:
        """Return whether it has waited long enough for a worker."""
        assert self._waiting_since is not None
        may_be_back = isinstance(self.last_failure, _MAY_BE_BACK) or (
            isinstance(error, errors.NotReachable) and self._is_back(now, back_at)
        )
        patience = RESUME_WAIT_SECONDS if self.began else FIRST_WAIT_SECONDS if may_be_back else 0.0
        if back_at > now and patience:
            return now - self._waiting_since >= self._most_wait_seconds
        return now - max(self._waiting_since, min(back_at, now)) >= patience

    def _is_back(self, now: float, back_at: float) -> bool:
        """Return whether our own connection is lost, or so new that workers may not be back yet."""
        return now - back_at < (RESUME_WAIT_SECONDS if self.began else FIRST_WAIT_SECONDS)

    def paused(self) -> FindWorker:
        return self._find()

    def preempted(self) -> FindWorker:
        """Another tenant, or a live request, needs the slot of the current worker."""
        return self._find()

    def over_budget(self) -> Failed:
        """The gateway may not retry now."""
        assert self.last_failure is not None
        return Failed(self._final(self.last_failure))

    # --- the worker's answer ------------------------------------------------------------------------------------------

    def accepted(self, accepted: PromptAccepted) -> bool:
        """Return whether to tell the caller. Later workers' prompt counts are ignored, because the first one's are billed."""
        if self.began:
            return False
        self._is_read, self._numerics = True, accepted.numerics
        self.at = Tally(accepted.prompt_tokens)
        return True

    def item(self, item: Item) -> Tally | None:
        """Return the count with it; None if nobody gets it. Raises ProtocolViolation, which is a failure of the worker."""
        self._has_responded = True
        if item.waiting:
            return None if self.began else self.at
        has_new = self.kind.is_in_parts
        if self.kind is PROMPT and isinstance(item, Chunk):
            at = tally.count(self.at, item)
            self._characters += self._check(item, at)
            has_new = at.pieces > self.at.pieces or at.ids > self.at.ids
            self.at = at
            for part in item.call_parts:
                self._calls[item.answer] = max(self._calls[item.answer], part.index + 1)
            if self._answers == 1:
                self._ids.extend(item.token_ids)
                # The end of an answer may bring text without a token, so decide on all tokens so far.
                self._has_ids = self._has_ids and (bool(self._ids) or item.finish is not None)
                self._finish = item.finish
        if has_new and not self._has_delivered:
            self.began = self._has_delivered = True
            self._waiting_since, self._waits = None, 0
        self.can_resume = not self.began or (self._answers == 1 and self._has_ids and self._digest != "")
        return self.at

    def ended(self, end: End) -> Done:
        """The worker's counts are its own: of an answer in parts, all parts count."""
        match end:
            case GenerationEnd(usage=claimed):
                received = self.at.ids - self._before.ids
                is_odd = is_wrong(claimed.completion_tokens, received, self._answers)
                is_odd = is_odd or any(map(self._is_impossible, (claimed.prompt_tokens, self.at.prompt)))
                if self._before.ids:
                    prompt_tokens = self.at.prompt if self._is_read else claimed.prompt_tokens
                    reasoning_tokens = self._before.thoughts + claimed.reasoning_tokens
                    end = msgspec.structs.replace(end, usage=Usage(prompt_tokens, self.at.ids, claimed.cached_tokens, reasoning_tokens))
                return Done(end, is_odd)
            case Embedded():
                return Done(end, self._is_impossible(end.prompt_tokens))
            case _:
                return Done(end)

    def judge(self, error: errors.AimeshError, *, was_accepted: bool, now: float, back_at: float) -> errors.AimeshError:
        """Return how a worker's failure counts. While our own connection is lost, workers lose their links, too: one that had not accepted
        the request was not reached. One that had may have died of it."""
        is_lost = isinstance(error, errors.LinkLost) and not isinstance(error, errors.OWN_CONNECTION_LOST)
        if is_lost and not (was_accepted or self._has_responded) and self._is_back(now, back_at):
            return errors.NotReachable(error.message, hint=error.hint, retry_after_seconds=error.retry_after_seconds)
        return error

    def failed(
        self, node: NodeId, error: errors.AimeshError, *, was_accepted: bool = False, lost_workers: int = 0, others_lost: bool = False
    ) -> Done | FindWorker | NotReached | Failed:
        """``was_accepted``: the worker had accepted the request. ``lost_workers``: how many were lost earlier and have not returned as the
        same process. ``others_lost``: workers that did not run this request were lost recently, too, so it may not be the cause."""
        if self._finish is not None:
            return self._finished()
        self._crashes += isinstance(error, errors.ModelCrashed)
        if self._crashes == MAX_CRASHES:
            message = "this request crashed the engine twice and will not be run again"
            return Failed(errors.Poison(message, hint="change the request; see the workers' logs for details"))
        self._has_responded = self._has_responded or was_accepted
        if isinstance(error, errors.LinkLost) and self._is_poison(lost_workers):
            message = "two workers were lost while they ran this request; it will not be given to a third"
            if others_lost:
                return Failed(
                    errors.WorkerLost(f"{message}, although others were lost, too", hint="retry the request", retry_after_seconds=1.0)
                )
            return Failed(errors.Poison(message, hint="retry only if the request can't be the cause; see the workers' logs"))
        is_retryable = isinstance(error, _RETRYABLE) or (self.began and isinstance(error, _CANNOT_RESUME))
        if not is_retryable:
            return Failed(error)
        self._failed.add(node)
        errors.drop_tracebacks(error)  # their frames have this object
        self.last_failure = error
        # A started answer may be refused any number of times until its timeout, but only ATTEMPTS workers get to work on it.
        is_free = self.began and not self._has_delivered and isinstance(error, _REFUSALS)
        self._attempts += not is_free
        return self._next(error, is_charged=not is_free)

    def connection_lost(
        self, error: errors.AimeshError, now: float, draw: Callable[[], float], back_at: float = -math.inf
    ) -> Done | Pause | Failed:
        """Our own connection was lost: no attempt, and no worker's failure. Look for any worker again; the queue waits for the others."""
        if self._finish is not None:
            return self._finished()
        errors.drop_tracebacks(error)  # as above
        self.last_failure = error
        return self._wait(error, now, draw, back_at) if self.can_resume else Failed(self._final(error))

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _finished(self) -> Done:
        """Only the end marker is missing."""
        assert self._finish is not None
        return Done(GenerationEnd(self._finish, Usage(self.at.prompt, self.at.ids, reasoning_tokens=self.at.thoughts)))

    def _next(self, error: errors.AimeshError, *, is_charged: bool) -> FindWorker | NotReached | Failed:
        if self._attempts == ATTEMPTS and isinstance(error, errors.NotReachable) and not self.began:
            # This one has not got it. If the NATS server dies, nobody has: of thousands, ask a few after each pause.
            self._attempts = 0
            return NotReached()
        if self._attempts == ATTEMPTS or not self.can_resume:
            return Failed(self._final(error))
        return self._find(is_charged=is_charged)

    def _find(self, *, is_charged: bool = False) -> FindWorker:
        origin = ResumeOrigin(self._digest, self._numerics) if self.began else None
        return FindWorker(frozenset(self._failed), origin, "resumption" if self.began else "retry", is_charged)

    def _final(self, error: errors.AimeshError) -> errors.AimeshError:
        if not self.began or not self._answers:
            return error
        return errors.WorkerLost(
            f"the worker was lost during its answer, and no other worker could resume it: {error.message}",
            hint="retry the request; the tokens delivered so far are billed",
            retry_after_seconds=1.0,
        )

    def _is_poison(self, lost_workers: int) -> bool:
        """Count one more lost worker. A lost link proves no crash, because the worker may still run. A worker lost without a response,
        after another had begun, may have been disconnected before it was asked, as in a network partition. A worker that got past the
        place where the earlier ones were lost clears the request: what kills a worker kills the next one at the same place."""
        if not lost_workers or self._has_delivered:
            self._losses.clear()
        if self._has_responded or not any(self._losses):
            self._losses.append(self._has_responded)
        return len(self._losses) >= MAX_CRASHES

    def _is_impossible(self, prompt_tokens: int) -> bool:
        """Return whether no prompt could have so many tokens. The worker's tokenizer and template count, so only extremes are wrong."""
        return not 0 <= prompt_tokens <= self._most_prompt_tokens

    def _check(self, chunk: Chunk, at: Tally) -> int:
        """Return its number of characters. ``at``: the count with it. Raises ProtocolViolation."""
        if self._finish is not None:
            raise errors.ProtocolViolation("the worker continued after the end of its answer")
        if not 0 <= chunk.answer < self._answers:
            raise errors.ProtocolViolation(f"the worker sent answer {chunk.answer} of {self._answers}")
        if chunk.token_ids and not 0 <= min(chunk.token_ids) <= max(chunk.token_ids) <= _MAX_TOKEN_ID:
            raise errors.ProtocolViolation("the worker sent an invalid token id")
        new = len(chunk.text) + len(chunk.reasoning)
        if chunk.call_parts:
            new += self._check_calls(chunk)
        if new > MAX_CHUNK_CHARACTERS:
            raise errors.ProtocolViolation(f"the worker sent {new} characters in one chunk")
        if self._most_tokens is None:
            return new
        characters = self._characters + new
        if at.ids > self._most_tokens or characters > MAX_CHUNK_CHARACTERS + self._most_tokens * MAX_TOKEN_CHARACTERS:
            raise errors.ProtocolViolation(f"the worker sent more than the requested {self._most_tokens} tokens")
        return new

    def _check_calls(self, chunk: Chunk) -> int:
        """Return their number of characters. Raises ProtocolViolation."""
        begun = self._calls[chunk.answer]
        for part in chunk.call_parts:
            if not max(0, begun - 1) <= part.index <= begun or (part.index == begun and not part.name):
                raise errors.ProtocolViolation(f"the worker sent a part of call {part.index}, which is neither its last nor its next one")
            begun = max(begun, part.index + 1)
        return sum(len(part.arguments) for part in chunk.call_parts)


def is_wrong(claimed: int, received: int, answers: int) -> bool:
    """Return whether the claimed count contradicts the tokens that came. ``received`` 0: the backend sends no ids, so this can't tell."""
    if claimed < 0:
        return True
    return received > 0 and abs(claimed - received) > max(_SLACK_TOKENS * answers, _SLACK_SHARE * received)


def may_try_another_target(error: errors.AimeshError) -> bool:
    """Return whether another model may answer a request that failed with this error before its first token."""
    return isinstance(error, (*_RETRYABLE, errors.UnknownModel))
