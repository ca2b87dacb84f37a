"""Answers a request under an idempotency key once, however often it is asked, and gives every repeat the same answer.

    async with idempotency.answer(asked, produce, seconds=60) as repeat:
        async for number, chunk in repeat: …
    repeat.result

The row of a key says which request runs it. A gateway holds its rows by a lease; when it is gone, the next repeat takes over
with the same seed and the rest of the answer is the same.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from services.gateway.idempotency import answer_encryption, idempotency_keys
from services.gateway.idempotency.answer_buffer import Piece
from services.gateway.idempotency.answer_reader import AnswerReader, Head, StoredAnswers
from services.gateway.idempotency.answer_runs import AnswerRun, AnswerRunId, AnswerRunReader, AnswerRuns
from services.gateway.idempotency.idempotency_keys import (
    End,
    Found,
    IdempotentRequest,
    KeptAnswer,
    KeyExpired,
    KeyState,
    LeftBehind,
    NewKeyUse,
    Orphaned,
    RunningHere,
)
from services.gateway.idempotency.idempotency_store import SWEEP_BATCH, IdempotencyStore
from shared import errors
from shared.node import lifecycle
from shared.telemetry import logs
from shared.types import NodeId, RequestId, TenantId

#: One statement prolongs all leases of a gateway, so it costs little to do so often; and after this time at most a client whose
#: gateway died goes on elsewhere.
LEASE_SECONDS = 20.0
HEARTBEAT_SECONDS = 5.0
#: Who lost the connection comes back within this time; for nobody no GPU is kept busy. Who comes later has it made anew.
UNREAD_SECONDS = 30.0
#: Longer answers are read again only on the gateway that made them, for a while.
MOST_ANSWER_BYTES = 1024 * 1024
#: Repeats that wait for another gateway, each with one question a second to PostgreSQL. More are asked to come again.
MOST_WAITING = 200
#: Answers that wait for PostgreSQL to come back; beyond it only that they were given is kept.
MOST_UNSAVED_BYTES = 64 * 1024 * 1024
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0
#: Before its caller's deadline a repeat is told that the request still runs, rather than nothing.
_MARGIN_SECONDS = 2.0
_SWEEP_SECONDS = 60.0
#: A deadline may fire this much early by our clock.
_CLOCK_SLACK_SECONDS = 0.05

_log = logs.get(part="idempotency")


#: Makes the answer with this seed: says the head, then the chunks.
Produce = Callable[[AnswerRun[Head, Piece, End], int], Awaitable[End]]


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a request ended, until PostgreSQL knows it; no state: it never was."""

    state: KeyState | None
    answer: bytes | None = None


class IdempotentRequests:
    """One for the gateway. Use ``running``, inside of that of ``takes`` and of the store."""

    def __init__(
        self,
        store: IdempotencyStore,
        takes: AnswerRuns,
        node: NodeId,
        *,
        secret: str,
        most_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``most_seconds``: what the making of an answer may take, whoever waits for it."""
        self._store = store
        self._takes = takes
        self._node = node
        self._secret = secret
        self.most_seconds = most_seconds
        self._clock = clock
        #: The requests that are claimed by this process, or just being claimed, and whose end PostgreSQL does not know.
        self._ours: dict[RequestId, IdempotentRequest] = {}
        self._unsaved: dict[RequestId, _Ending] = {}
        #: Since when nobody reads the answers that nobody reads.
        self._unread: dict[RequestId, float] = {}
        self._waiting = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["IdempotentRequests"]:
        """Prolongs the leases and forgets old keys in the background."""
        async with lifecycle.background() as tasks:
            tasks.create_task(lifecycle.every(HEARTBEAT_SECONDS, self.heartbeat))
            tasks.create_task(lifecycle.every(_SWEEP_SECONDS, self.sweep))
            tasks.create_task(self._watch_withdrawals())
            yield self

    @asynccontextmanager
    async def answer(
        self, asked: IdempotentRequest, produce: Produce[Head, Piece, End], *, seconds: float, whole: bool = False
    ) -> AsyncIterator[AnswerReader[Head, Piece, End]]:
        """The answer behind the chunk ``asked.after``, or the ``whole`` of it. Leaving the block ends the reading; the making
        ends where nobody reads it for a while.

        Raises what ``produce`` raises, IdempotencyConflict, InProgress where the request runs on another gateway and ``seconds``
        are nearly over, AnswerGone where it was answered and the answer is no longer here, and Unavailable without PostgreSQL.
        """
        idempotency_keys.check(asked.key)
        source = await self._open(asked, produce, seconds, 0 if whole else asked.after)
        if isinstance(source, StoredAnswers):
            yield AnswerReader(source, source.answer, is_repeat=source.answer.request_id != asked.request_id)
            return
        with source:
            head = await source.head()
            yield AnswerReader(source, head, is_repeat=head.request_id != asked.request_id)

    async def cancel(self, owner: TenantId, key: str) -> None:
        """End the making of an answer that nobody wants any more, at whichever gateway; what came until then is counted. The same request
        under the same key again is run anew. Raises Unavailable where only this gateway could be told."""
        for asked in [asked for asked in self._ours.values() if asked.owner == owner and idempotency_keys.is_part(asked.key, key)]:
            self._withdrawn(asked)
        await self._store.withdraw(owner, key)

    # --- who runs it ------------------------------------------------------------------------------------------------

    async def _open(
        self, asked: IdempotentRequest, produce: Produce[Head, Piece, End], seconds: float, after: int
    ) -> AnswerRunReader[Head, Piece, End] | StoredAnswers[Piece, End]:
        ends_at = self._clock() + seconds
        pause = _FIRST_PAUSE_SECONDS
        with self._counted() as wait:
            while True:
                match await self._claim(asked):
                    case NewKeyUse() | Orphaned() as claimed:
                        return (await self._begin(asked, claimed, produce)).reader(after)
                    case KeyExpired(request_id, answer):
                        return self._over(asked, request_id, answer, after)
                    case RunningHere(request_id) if (take := self._takes.find(_name(asked, request_id))) is not None:
                        return take.reader(after)
                    case _:  # elsewhere, or here and only just beginning or ending
                        await wait(pause, ends_at)
                        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _claim(self, asked: IdempotentRequest) -> NewKeyUse | Orphaned | Found:
        wanted = idempotency_keys.fingerprint(asked.request, self._secret, asked.together)
        dead: RequestId | None = None
        # Before the row is there: who finds it must not take it for one that a dead process left.
        self._ours[asked.request_id] = asked
        claimed: NewKeyUse | Orphaned | None = None
        try:
            while True:
                claimed = await self._store.claim(asked, wanted, self._node, lease_seconds=LEASE_SECONDS, dead=dead)
                if claimed is not None:
                    return claimed
                held = await self._store.find(asked.owner, asked.key)
                if held is None:  # it failed and was freed meanwhile
                    continue
                found = idempotency_keys.judge(held, wanted, node=self._node, ours=self._ours)
                if not isinstance(found, LeftBehind):
                    return found
                dead = found.request_id
        finally:
            # A claim whose answer was lost is nobody's: the next repeat finds it left behind, and takes it over.
            if claimed is None:
                del self._ours[asked.request_id]

    async def _begin(
        self, asked: IdempotentRequest, claimed: NewKeyUse | Orphaned, produce: Produce[Head, Piece, End]
    ) -> AnswerRun[Head, Piece, End]:
        try:
            idempotency_keys.ensure_can_go_on(claimed, asked)
        except errors.AnswerGone:
            await self._give_up(asked, claimed)
            raise

        async def make(take: AnswerRun[Head, Piece, End]) -> End:
            return await self._make(asked, claimed, take, produce)

        return self._takes.start(_name(asked, asked.request_id), make, seconds=self.most_seconds, kept=True)

    def _over(
        self, asked: IdempotentRequest, request_id: RequestId, answer: bytes | None, after: int
    ) -> AnswerRunReader[Any, Any, Any] | StoredAnswers[Any, Any]:
        kept = None if answer is None else self._unseal(asked, request_id, answer)
        if kept is not None and kept.chunks is not None:
            return StoredAnswers(kept, after)
        take = self._takes.find(_name(asked, request_id))
        if take is None:
            raise errors.AnswerGone(
                "this request was answered, and its answer was too long to be kept", hint="send it again under another idempotency key"
            )
        return take.reader(after)

    @contextmanager
    def _counted(self) -> Iterator[Callable[[float, float], Awaitable[None]]]:
        waits = False

        async def wait(pause: float, ends_at: float) -> None:
            nonlocal waits
            if (not waits and self._waiting >= MOST_WAITING) or self._clock() + pause + _MARGIN_SECONDS > ends_at:
                raise errors.InProgress(
                    "the same request under the same idempotency key still runs on another gateway",
                    hint="send it again in a while; it is not run twice",
                    retry_after_seconds=2,
                )
            self._waiting += not waits
            waits = True
            await asyncio.sleep(pause)

        try:
            yield wait
        finally:
            self._waiting -= waits

    # --- while it runs, and when it has ended -----------------------------------------------------------------------

    async def _make(
        self, asked: IdempotentRequest, claimed: NewKeyUse | Orphaned, take: AnswerRun[Head, Piece, End], produce: Produce[Head, Piece, End]
    ) -> End:
        async def failed(error: errors.AimeshError) -> None:
            await self._failed(asked, claimed, take, error)

        try:
            result = await produce(take, claimed.seed)
        except errors.AimeshError as error:
            await failed(error)
            raise
        except asyncio.CancelledError:
            # A deadline reaches us as a cancel, too; any other means that this gateway goes, or has lost the request.
            if self._clock() >= take.ends_at - _CLOCK_SLACK_SECONDS:
                await failed(errors.DeadlineExceeded("the answer was not ready in time", hint="ask for fewer tokens"))
            else:
                await self._abandon(asked)
            raise
        except BaseException:
            await failed(errors.Internal("the gateway failed; its log has the reason under the request id"))
            raise
        await self._end(asked, take, _Ending(KeyState.ENDED, self._seal(asked, take, result=result)))
        return result

    async def _failed(
        self, asked: IdempotentRequest, claimed: NewKeyUse | Orphaned, take: AnswerRun[Any, Any, Any], error: errors.AimeshError
    ) -> None:
        if take.last == 0 or not idempotency_keys.kind_of(asked.request).counts_in_part:
            # Nobody joins what never was.
            self._takes.forget(take)
            await self._give_up(asked, claimed)
        else:
            await self._end(asked, take, _Ending(KeyState.FAILED, self._seal(asked, take, problem=error.to_problem())))

    async def _end(self, asked: IdempotentRequest, take: AnswerRun[Any, Any, Any], ending: _Ending) -> None:
        await self._save(asked.request_id, ending)
        if asked.request_id not in self._ours and ending.answer is not None and take.chunks is not None:
            # From now on repeats read it from the store.
            self._takes.forget(take)

    async def _give_up(self, asked: IdempotentRequest, claimed: NewKeyUse | Orphaned) -> None:
        """It was not run: as if it had not been asked. But of what another one began its caller may have a part, and come for the rest."""
        if isinstance(claimed, NewKeyUse):
            await self._save(asked.request_id, _Ending(None))
        else:
            await self._abandon(asked)

    async def _abandon(self, asked: IdempotentRequest) -> None:
        # From here on it is a dead process's, also where PostgreSQL does not hear of it.
        self._ours.pop(asked.request_id, None)
        try:
            await self._store.abandon(asked.request_id)
        except errors.Unavailable:
            return  # its lease ends by itself

    async def _save(self, request_id: RequestId, ending: _Ending) -> None:
        """Before the end is told to anybody, so that a repeat never runs it anew. While PostgreSQL is away the lease stays ours."""
        waiting = sum(len(other.answer or b"") for other in self._unsaved.values())
        if waiting + len(ending.answer or b"") > MOST_UNSAVED_BYTES:
            ending = _Ending(ending.state)
        self._unsaved[request_id] = ending
        try:
            await self._tell(request_id, ending)
        except errors.Unavailable as error:
            _log.warning("the end of a request waits", reason=error.message, waiting=len(self._unsaved))

    async def _tell(self, request_id: RequestId, ending: _Ending) -> None:
        if ending.state is None:
            await self._store.free(request_id)
        else:
            await self._store.end(request_id, ending.state, ending.answer)
        self._unsaved.pop(request_id, None)
        self._ours.pop(request_id, None)

    def _seal(
        self,
        asked: IdempotentRequest,
        take: AnswerRun[Head, Piece, End],
        *,
        result: End | None = None,
        problem: errors.Problem | None = None,
    ) -> bytes | None:
        head = take.head
        if head is None:
            return None
        kept = KeptAnswer(head.request_id, head.model, head.began_at, take.chunks, result, problem)
        level = idempotency_keys.kind_of(asked.request).compression
        answer = answer_encryption.seal(msgspec.msgpack.encode(kept), asked.owner, str(asked.request_id), self._secret, compression=level)
        return answer if len(answer) <= MOST_ANSWER_BYTES else None

    def _unseal(self, asked: IdempotentRequest, request_id: RequestId, answer: bytes) -> KeptAnswer[Any, Any] | None:
        plain = answer_encryption.unseal(answer, asked.owner, str(request_id), self._secret)
        try:
            return None if plain is None else idempotency_keys.kind_of(asked.request).decoder.decode(plain)
        except msgspec.MsgspecError:  # of another version
            return None

    # --- in the background ------------------------------------------------------------------------------------------

    async def _watch_withdrawals(self) -> None:
        """Stops what callers withdraw at other gateways."""
        async with aclosing(self._store.withdrawals()) as withdrawals:
            async for request_id in withdrawals:
                if request_id is None:
                    with suppress(errors.Unavailable):  # the next regular one asks again
                        await self.heartbeat()
                elif (asked := self._ours.get(request_id)) is not None:
                    self._withdrawn(asked)

    def _withdrawn(self, asked: IdempotentRequest) -> None:
        if (take := self._takes.find(_name(asked, asked.request_id))) is not None:
            take.stop(errors.Cancelled("the caller wants no more of this answer"))

    async def heartbeat(self) -> None:
        """Tells what PostgreSQL does not know yet, prolongs what runs, and stops what another gateway has taken over. Raises
        Unavailable."""
        for request_id, ending in list(self._unsaved.items()):
            await self._tell(request_id, ending)
        # What has no take yet is only just being claimed, and its row need not be there.
        takes = {request_id: self._takes.find(_name(asked, request_id)) for request_id, asked in self._ours.items()}
        running = {request_id: take for request_id, take in takes.items() if take is not None}
        self._stop_unread(running)
        if not running:
            return
        running_asked = {request_id: self._ours[request_id] for request_id in running}
        still = await self._store.prolong(running, seconds=LEASE_SECONDS)
        for request_id in [one for one, is_withdrawn in still.items() if is_withdrawn]:
            self._withdrawn(running_asked[request_id])
        for request_id, take in running.items():
            # It may have ended, or be ending, since we asked.
            if request_id in still or request_id not in self._ours or request_id in self._unsaved:
                continue
            _log.warning("another gateway has taken a request over", request=str(request_id))
            del self._ours[request_id]
            take.stop(errors.LinkLost("another gateway has gone on with this request", hint="send it again under the same idempotency key"))

    def _stop_unread(self, running: Mapping[RequestId, AnswerRun[Any, Any, Any]]) -> None:
        now = self._clock()
        self._unread = {request_id: self._unread.get(request_id, now) for request_id, take in running.items() if not take.is_read}
        for request_id, since in self._unread.items():
            if now - since >= UNREAD_SECONDS:
                running[request_id].stop(errors.Cancelled("nobody has read this answer for a while"))

    async def sweep(self) -> None:
        """Raises Unavailable."""
        while await self._store.sweep() == SWEEP_BATCH:
            pass


def _name(asked: IdempotentRequest, request_id: RequestId) -> AnswerRunId:
    return AnswerRunId(asked.owner, request_id.bytes)
