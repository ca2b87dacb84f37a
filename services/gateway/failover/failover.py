"""One request on its way over the workers: what its caller has of the answer, and what follows when a worker fails.  Pure.

An answer whose token ids are known goes on behind them, on a worker with the very same file of the model and with the same seed:
what the caller has is never given again, and nothing is left out. The text needs no look: it is a function of the tokens, and the
next worker reads them all before it goes on.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

import msgspec

from services.gateway.scheduling.routing import WorkerRequirements
from services.gateway.scheduling.worker_health import worker_records
from shared import errors
from shared.api import embedding, inference
from shared.api.generation import Generation, Usage
from shared.api.method import End, Item, Request
from shared.types import FinishReason, NodeId

ATTEMPTS = 3
#: A request that ended two engines ends a third one, too; or two workers.
MOST_CRASHES = 2
#: Whoever has a part of an answer waits so long for a worker that can go on: a NATS server that is started again, a worker that is
#: restarted and loads its model.
PATIENCE_SECONDS = 20.0
#: Whoever has nothing yet is told soon; but the only worker of a model may be being started again.
FIRST_PATIENCE_SECONDS = 3.0
#: Backoff with full jitter, where nobody is left but those that were asked before.
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.05, 1.0
#: Of one chunk. A chunk has the text of one token, or of a few that came together.
MOST_CHUNK_CHARACTERS = 64 * 1024
#: The longest tokens in use are runs of blanks.
MOST_TOKEN_CHARACTERS = 256
_MOST_TOKEN_ID = 2**32 - 1

#: It took no work: whoever asks it later may be served.
_REFUSALS = (errors.NotReachable, errors.Draining, errors.Overloaded, errors.Unavailable, errors.UnknownMethod)
#: Such a worker is often back in a moment. The others have said themselves when to come again.
_MAY_BE_BACK = (errors.LinkLost, errors.NotReachable, errors.Draining)
#: What another worker may do better: UnknownMethod too, which an older one says. DeadlineExceeded is not among them: there is no
#: time left.
_WORTH_ANOTHER = (*_REFUSALS, errors.LinkLost, errors.ModelCrashed, errors.ProtocolViolation)
#: Of an answer that goes on elsewhere: this worker cannot read what another has written, or has no room for it.
_CANNOT_GO_ON = (errors.BadRequest, errors.TooLarge, errors.UnknownModel)


@dataclass(frozen=True, slots=True)
class RetryOnWorker:
    """Ask another worker."""

    #: The caller has a part of the answer already.
    goes_on: bool
    #: No work was lost since the last one that cost something: it costs nothing of the retry budget.
    is_free: bool


@dataclass(frozen=True, slots=True)
class Ended(Generic[End]):
    """Nothing was missing but the word that this is all."""

    end: End


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The caller is told this."""

    error: errors.AimeshError


@dataclass(frozen=True, slots=True)
class RetryPause:
    """Nobody can be asked now; look again in so many seconds."""

    seconds: float


class FailoverState(Generic[Request, Item, End]):
    """The way of one request. What of it has come is not gone on with: begun, it fails with its worker."""

    def __init__(self, request: Request) -> None:
        #: For the next worker.
        self.request = request
        #: The caller has a part of the answer.
        self.began = False
        self._attempts = self._crashes = 0
        #: Of the workers that were lost while they ran it: whether a word had come of each.
        self._losses: list[bool] = []
        self._was_heard = False
        self._failed: dict[NodeId, errors.AimeshError] = {}
        self._last: errors.AimeshError | None = None
        #: Since the last worker failed nobody could be asked.
        self._waits_since: float | None = None
        self._looks = 0
        #: The worker that is asked now has given a part of the answer.
        self._has_given = False

    @property
    def digest(self) -> str | None:
        """Of the file of the model that the next worker must have; None where any will do."""
        return None

    @property
    def not_on(self) -> frozenset[NodeId]:
        return frozenset(self._failed)

    @property
    def can_go_on(self) -> bool:
        return not self.began

    @property
    def delivered_tokens(self) -> int:
        """Of the answer, what the caller has."""
        return 0

    # --- facts --------------------------------------------------------------------------------------------------------

    def asked(self, digest: str) -> None:
        """A worker is asked that has this file of the model; empty where it does not say which."""
        self._has_given = self._was_heard = False

    def heard(self) -> None:
        """The worker that is asked now has it: the first word came."""
        self._was_heard = True

    def accepted(self, told: inference.PromptAccepted) -> bool:
        """Whether the caller is to hear of it: who has delivered nothing charges for nothing."""
        return not self.began

    @property
    def took(self) -> tuple[int, int] | None:
        """Tokens of the prompt and of the answer that the worker that is asked now has worked on; None while it is not known."""
        return None

    def said(self, item: Item) -> bool:
        """A part of the answer. Whether the caller is to hear of it. Raises ProtocolViolation for what cannot be one."""
        if not getattr(item, "waiting", ""):
            self._gave()
        return True

    def is_wrong(self, end: End, wish: WorkerRequirements) -> bool:
        """Whether the worker that is asked now tells numbers that cannot be."""
        return False

    def ended(self, end: End) -> End:
        """What the caller is told as the end."""
        return end

    def waiting(self, why: str) -> Item:
        """What the caller is told while the request waits."""
        raise NotImplementedError

    # --- decisions ----------------------------------------------------------------------------------------------------

    def failed(self, node: NodeId, error: errors.AimeshError, *, gone: int = 0) -> RetryOnWorker | Ended[End] | GivenUp:
        """What follows when the worker that was asked has failed with ``error``. ``gone``: of those that were lost before it, how many
        have not come back as the process that they were."""
        self._crashes += isinstance(error, errors.ModelCrashed)
        if self._crashes == MOST_CRASHES:
            said = "this request ended the engine that ran it twice, and is not run again"
            return GivenUp(errors.Poison(said, hint="change it; the workers' logs say more"))
        if isinstance(error, errors.LinkLost) and self._is_poison(gone):
            said = "two workers were lost while they ran this request, and it is not given to a third"
            return GivenUp(errors.Poison(said, hint="ask again only if it cannot be what ended them; the workers' logs say more"))
        is_worth_it = isinstance(error, _WORTH_ANOTHER) or (self.began and isinstance(error, _CANNOT_GO_ON))
        if not is_worth_it:
            return GivenUp(error)
        self._failed[node] = self._last = error
        # Who has a part of the answer may ask as long as he is patient; but work is given to three.
        is_free = self.began and not self._has_given and isinstance(error, _REFUSALS)
        self._attempts += not is_free
        if self._attempts == ATTEMPTS or not self.can_go_on:
            return GivenUp(self.lost(error))
        return RetryOnWorker(self.began, is_free)

    def nobody(self, error: errors.AimeshError, now: float, draw: Callable[[], float]) -> RetryPause | GivenUp:
        """What follows when no worker can be asked. ``draw`` gives numbers from 0 to 1."""
        patience = PATIENCE_SECONDS if self.began else FIRST_PATIENCE_SECONDS if isinstance(self._last, _MAY_BE_BACK) else 0.0
        if self._waits_since is None:
            self._waits_since = now
        if now - self._waits_since >= patience:
            # What the last worker said tells more than that there is no other.
            return GivenUp(self.lost(error if self._last is None or isinstance(error, errors.Overloaded) else self._last))
        # The next look is at all of them again: one that failed may be back.
        self._failed.clear()
        self._looks += 1
        return RetryPause(draw() * min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(self._looks, 10)))

    def lost(self, error: errors.AimeshError) -> errors.AimeshError:
        """What the caller is told when ``error`` was the last."""
        return error

    def _is_poison(self, gone: int) -> bool:
        """One more is lost. A lost link is no proof: its worker may run on. And one without a word, after one that had begun, may have
        been away before it was asked, as the half of a mesh is that is cut off."""
        if not gone:
            self._losses.clear()
        if self._was_heard or not any(self._losses):
            self._losses.append(self._was_heard)
        return len(self._losses) >= MOST_CRASHES

    def _gave(self) -> None:
        self.began = self._has_given = True
        self._waits_since, self._looks = None, 0


class AnswerFailover(FailoverState[inference.ProcessPrompt, inference.Chunk, Generation]):
    """The way of a prompt. One answer with token ids goes on where it was; several, or one without, cannot."""

    def __init__(self, prompt: inference.ProcessPrompt) -> None:
        super().__init__(prompt)
        config = prompt.model_config
        self._answers = config.n or 1
        self._most_tokens = None if config.max_tokens is None else config.max_tokens * self._answers
        self._delivered: list[int] = []
        self._tokens = self._characters = 0
        #: Of these the ones that came before the worker that is asked now.
        self._tokens_before = 0
        self._prompt_tokens: int | None = None
        self._digest = ""
        self._has_ids = True
        self._finish: FinishReason | None = None
        self._resumed = False

    @property
    def digest(self) -> str | None:
        return self._digest if self.began else None

    @property
    def can_go_on(self) -> bool:
        return not self.began or (self._answers == 1 and self._has_ids and bool(self._digest))

    @property
    def delivered_tokens(self) -> int:
        return self._tokens

    def asked(self, digest: str) -> None:
        super().asked(digest)
        self._tokens_before = self._tokens
        if self.began:
            self._resumed = True
            self.request = msgspec.structs.replace(self.request, delivered=tuple(self._delivered))
        else:
            self._digest = digest

    def accepted(self, told: inference.PromptAccepted) -> bool:
        if self.began:
            return False
        self._prompt_tokens = told.prompt_tokens
        return True

    @property
    def took(self) -> tuple[int, int] | None:
        return None if self._prompt_tokens is None else (self._prompt_tokens, self._tokens - self._tokens_before)

    def said(self, item: inference.Chunk) -> bool:
        if item.waiting:
            return not self.began
        self._check(item)
        self._tokens += len(item.token_ids)
        self._characters += len(item.text)
        if self._answers == 1:
            self._delivered.extend(item.token_ids)
            # The end of an answer may bring text without a token; only who never tells any has none.
            self._has_ids = self._has_ids and (bool(self._delivered) or item.finish is not None)
            self._finish = item.finish
        if item.text or item.token_ids or item.tool_calls:
            self._gave()
        return True

    def waiting(self, why: str) -> inference.Chunk:
        return inference.Chunk("", (), waiting=why)

    def is_wrong(self, end: Generation, wish: WorkerRequirements) -> bool:
        claimed, came = end.usage, self._tokens - self._tokens_before
        # The last worker counts what it made itself.
        return worker_records.is_wrong(claimed.completion_tokens, came, self._answers) or any(
            worker_records.is_impossible(wish, told) for told in (claimed.prompt_tokens, self._prompt_tokens or 0)
        )

    def ended(self, end: Generation) -> Generation:
        if not self._resumed:
            return end
        prompt_tokens = end.usage.prompt_tokens if self._prompt_tokens is None else self._prompt_tokens
        return msgspec.structs.replace(end, usage=Usage(prompt_tokens, self._tokens, end.usage.cached_tokens))

    def failed(self, node: NodeId, error: errors.AimeshError, *, gone: int = 0) -> RetryOnWorker | Ended[Generation] | GivenUp:
        if self._finish is not None:
            return Ended(Generation(self._finish, Usage(self._prompt_tokens or 0, self._tokens)))
        return super().failed(node, error, gone=gone)

    def lost(self, error: errors.AimeshError) -> errors.AimeshError:
        if not self.began:
            return error
        return errors.WorkerLost(
            f"the worker was lost in the middle of its answer, and no other could go on with it: {error.message}",
            hint="ask again; what had come until then is counted",
            retry_after_seconds=1.0,
        )

    def _check(self, chunk: inference.Chunk) -> None:
        """A worker may be broken, or mean no good."""
        if self._finish is not None:
            raise errors.ProtocolViolation("the worker went on behind the end of its answer")
        if not 0 <= chunk.answer < self._answers:
            raise errors.ProtocolViolation(f"the worker gave answer {chunk.answer} of {self._answers}")
        if any(not 0 <= token <= _MOST_TOKEN_ID for token in chunk.token_ids):
            raise errors.ProtocolViolation("the worker gave a token id that is none")
        if len(chunk.text) > MOST_CHUNK_CHARACTERS:
            raise errors.ProtocolViolation(f"the worker gave {len(chunk.text)} characters at once")
        if self._most_tokens is None:
            return
        tokens, characters = self._tokens + len(chunk.token_ids), self._characters + len(chunk.text)
        if tokens > self._most_tokens or characters > MOST_CHUNK_CHARACTERS + self._most_tokens * MOST_TOKEN_CHARACTERS:
            raise errors.ProtocolViolation(f"the worker gave more than the {self._most_tokens} tokens that were asked for")


class VectorsFailover(FailoverState[embedding.Embed, embedding.Vectors, embedding.Embedded]):
    """The way of texts that become vectors."""

    def __init__(self, texts: embedding.Embed) -> None:
        super().__init__(texts)
        self._prompt_tokens: int | None = None

    @property
    def took(self) -> tuple[int, int] | None:
        return None if self._prompt_tokens is None else (self._prompt_tokens, 0)

    def accepted(self, told: inference.PromptAccepted) -> bool:
        self._prompt_tokens = told.prompt_tokens
        return super().accepted(told)

    def is_wrong(self, end: embedding.Embedded, wish: WorkerRequirements) -> bool:
        return worker_records.is_impossible(wish, end.prompt_tokens)

    def waiting(self, why: str) -> embedding.Vectors:
        return embedding.Vectors((), waiting=why)


# --- the retry budget ---------------------------------------------------------------------------------------------------

#: When many requests fail at once, retrying all of them makes it worse, so only a share of them is retried.
WINDOW_SECONDS = 10.0
#: The share of the window's requests, or of the running ones if these are more: an answer may take longer than the window.
SHARE = 0.2
#: Always allowed, for gateways with few requests.
PER_SECOND = 10
#: Times are counted in pieces of this length, so that memory does not grow with the number of requests.
_PIECE_SECONDS = 0.5


class _Window:
    """How often something happened in the last WINDOW_SECONDS."""

    __slots__ = ("_pieces", "_total")

    def __init__(self) -> None:
        self._pieces: deque[tuple[int, int]] = deque()
        self._total = 0

    def add(self, now: float) -> None:
        piece, count = int(now // _PIECE_SECONDS), 0
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
    """One for the gateway. Every ``begin`` is followed by one ``end``; the caller brings the clock."""

    def __init__(self) -> None:
        self._requests, self._retries = _Window(), _Window()
        self._running = 0

    def begin(self, now: float) -> None:
        self._requests.total(now)  # lets go of what is too old
        self._requests.add(now)
        self._running += 1

    def end(self) -> None:
        self._running -= 1

    def spend(self, now: float) -> bool:
        """Whether one more retry may be sent; it is counted if so."""
        requests = max(self._requests.total(now), self._running)
        if self._retries.total(now) + 1 > SHARE * requests + PER_SECOND * WINDOW_SECONDS:
            return False
        self._retries.add(now)
        return True
