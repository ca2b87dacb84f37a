"""Runs a request under an idempotency key only once, and gives every repeat the same answer.

A key's row names the request that runs it, under a lease of its gateway. When the lease expires, the next repeat takes over with the
same seed, model and guardrails, so the rest of the answer is the same.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from services.gateway.facts import tally, tenant_encryption
from services.gateway.facts.reader import AnswerHead, Reader, left_early
from services.gateway.idempotency import idempotency_keys
from services.gateway.idempotency.idempotency_keys import (
    AbandonedRequest,
    End,
    EndedRequest,
    ExistingKeyUse,
    IdempotentRequest,
    KeptAnswer,
    KeyState,
    KeyUse,
    NewKeyUse,
    OrphanedKeyUse,
    RunningHere,
)
from services.gateway.idempotency.idempotency_store import SWEEP_BATCH, IdempotencyStore
from services.gateway.idempotency.recorder import Recorder, Recorders, RecordingId
from services.gateway.idempotency.recording import Piece, ReaderId
from shared import errors
from shared.background import tasks as background_tasks
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems
from shared.node import lifecycle
from shared.telemetry import logs
from shared.timing.backoff import Backoff
from shared.types import NodeId, RequestId, TenantId

#: One statement extends all leases of a gateway, so a short interval costs little; the lease is the longest time until a repeat takes over
#: from a dead gateway.
LEASE_SECONDS = 20.0
HEARTBEAT_SECONDS = 5.0
#: How long an answer without readers runs on: enough to reconnect. A later repeat runs it again.
UNREAD_SECONDS = 30.0
#: Longer answers are only kept in memory, on the gateway that made them.
MAX_ANSWER_BYTES = 1024 * 1024
#: Repeats that wait for another gateway, each polling PostgreSQL about once a second. Further ones get an error that asks to retry.
MAX_WAITING = 200
#: Answers that wait for PostgreSQL; above this, only their state is kept.
MAX_UNSAVED_BYTES = 64 * 1024 * 1024
_BACKOFF = Backoff(first_seconds=0.05, longest_seconds=1.0)
#: A repeat gets InProgress this long before its deadline, rather than a timeout.
_MARGIN_SECONDS = 2.0
_SWEEP_SECONDS = 60.0
#: How early a deadline may fire by our clock.
_CLOCK_SLACK_SECONDS = 0.05
_FAILED_HINT = "its idempotency key keeps this part of the answer; send the request again with a new key"

_log = logs.get(part="idempotency")


#: What a caller reads under a key.
KeyReader = Reader[AnswerHead, Piece]
KeyRecorder = Recorder[AnswerHead, Piece, End]
#: Generates the answer with the seed and model of the key's use, for a recorder.
Produce = Callable[[KeyRecorder[Piece, End], KeyUse], Awaitable[End]]


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a request ended, until PostgreSQL has it; without a state, the key is freed."""

    state: KeyState | None
    answer: bytes | None = None


class IdempotentRequests:
    """Runs requests under idempotency keys. Use ``running``, within that of ``recorders`` and of the store."""

    def __init__(
        self,
        store: IdempotencyStore,
        recorders: Recorders,
        node: NodeId,
        *,
        items: BackgroundItems,
        secret: str,
        most_seconds: float,
        start_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``most_seconds``: time limit for an answer, independent of its readers' deadlines; it may wait ``start_seconds`` more."""
        self._items = items
        self._store = store
        self._recorders = recorders
        self._node = node
        self._secret = secret
        self.most_seconds = most_seconds
        self._start_seconds = start_seconds
        self._clock = clock
        #: Requests claimed by this process, or being claimed, whose end is not saved yet.
        self._own_requests: dict[RequestId, IdempotentRequest] = {}
        self._unsaved: dict[RequestId, _Ending] = {}
        #: When each answer without readers lost its last one.
        self._unread: dict[RequestId, float] = {}
        self._waiting = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["IdempotentRequests"]:
        """Extend the leases and delete expired keys in the background."""
        async with lifecycle.background() as tasks:
            tasks.create_task(lifecycle.every(HEARTBEAT_SECONDS, self.heartbeat))
            tasks.create_task(lifecycle.every(_SWEEP_SECONDS, self.sweep))
            tasks.create_task(background_tasks.keep("withdrawals", self._watch_withdrawals))
            yield self

    async def answer(
        self,
        request: IdempotentRequest,
        produce: Produce[Piece, End],
        reader: KeyReader[Piece],
        *,
        seconds: float,
        whole: bool = False,
    ) -> End:
        """Give the reader the answer after the chunk ``request.after``, or the ``whole`` of it; return the end. An answer without readers
        is canceled after a while.

        Raises what ``produce`` raises, IdempotencyConflict, InProgress if another gateway runs the request until shortly before the
        deadline, AnswerGone if the answer is no longer stored, Cancelled if the reader wants no more, and Unavailable without PostgreSQL.
        """
        idempotency_keys.check(request.key)
        after = 0 if whole else request.after
        found = await self._open(request, produce, seconds, after)
        if isinstance(found, KeptAnswer):
            return await _play_stored(found, reader, after)
        recorder, place = found
        end = await recorder.play(reader, place)
        if end is None:
            raise left_early()
        return end

    async def cancel(self, owner: TenantId, key: str) -> None:
        """Cancel the answer at any gateway; what was delivered is billed. The same request under the same key then runs again. Raises
        Unavailable if the other gateways couldn't be notified."""
        for own in [own for own in self._own_requests.values() if own.owner == owner and idempotency_keys.is_part(own.key, key)]:
            self._cancel_run(own)
        await self._store.withdraw(owner, key)

    # --- claims -----------------------------------------------------------------------------------------------------

    async def _open(
        self, request: IdempotentRequest, produce: Produce[Piece, End], seconds: float, after: int
    ) -> tuple[KeyRecorder[Piece, End], ReaderId] | KeptAnswer[Piece, End]:
        ends_at = self._clock() + seconds
        waits = 0
        try:
            while True:
                match await self._claim(request):
                    case NewKeyUse() | OrphanedKeyUse() as key_use:
                        return _joined(await self._begin(request, key_use, produce), after)
                    case EndedRequest(request_id, answer):
                        return self._open_ended(request, request_id, answer, after)
                    case RunningHere(request_id) if (found := self._recorders.find(_name(request, request_id))) is not None:
                        return _joined(found, after)
                # It runs elsewhere, or begins or ends here.
                pause = _BACKOFF.pause(waits + 1)
                if (not waits and self._waiting >= MAX_WAITING) or self._clock() + pause + _MARGIN_SECONDS > ends_at:
                    raise errors.InProgress(
                        "a request with this idempotency key is still running on another gateway",
                        hint="retry later; the request will not run twice",
                        retry_after_seconds=2,
                    )
                self._waiting += not waits
                waits += 1
                await asyncio.sleep(pause)
        finally:
            self._waiting -= waits > 0

    async def _claim(self, request: IdempotentRequest) -> KeyUse | ExistingKeyUse:
        fingerprint = idempotency_keys.fingerprint(request.request, self._secret, request.together)
        dead: RequestId | None = None
        # Set before the row exists: other calls must not take it for an orphan of an earlier process.
        self._own_requests[request.request_id] = request
        key_use: KeyUse | None = None
        try:
            while True:
                key_use = await self._store.claim(request, fingerprint, self._node, lease_seconds=LEASE_SECONDS, dead=dead)
                if key_use is not None:
                    return key_use
                held = await self._store.find(request.owner, request.key)
                if held is None:  # it was freed meanwhile
                    continue
                found = idempotency_keys.classify(held, fingerprint, node=self._node, own_requests=self._own_requests)
                if not isinstance(found, AbandonedRequest):
                    return found
                dead = found.request_id
        finally:
            # If the response to a claim was lost, the next repeat finds an orphan and takes over.
            if key_use is None:
                del self._own_requests[request.request_id]

    async def _begin(self, request: IdempotentRequest, key_use: KeyUse, produce: Produce[Piece, End]) -> KeyRecorder[Piece, End]:
        try:
            idempotency_keys.ensure_can_resume(key_use, request)
        except errors.AnswerGone:
            await self._give_up(request, key_use)
            raise
        run_and_save = partial(self._run_and_save, request, key_use, produce)
        seconds = self.most_seconds + self._start_seconds
        return self._recorders.start(_name(request, request.request_id), run_and_save, seconds=seconds, kept=True)

    def _open_ended(
        self, request: IdempotentRequest, request_id: RequestId, answer: bytes | None, after: int
    ) -> tuple[KeyRecorder[Any, Any], ReaderId] | KeptAnswer[Any, Any]:
        stored = None if answer is None else self._unseal(request, request_id, answer)
        if stored is not None and stored.chunks is not None:
            return stored
        found = self._recorders.find(_name(request, request_id))
        if found is None:
            raise errors.AnswerGone(
                "the answer to this request was too long to store", hint="send the request again with a new idempotency key"
            )
        return _joined(found, after)

    # --- runs -------------------------------------------------------------------------------------------------------

    async def _run_and_save(
        self, request: IdempotentRequest, key_use: KeyUse, produce: Produce[Piece, End], recorder: KeyRecorder[Piece, End]
    ) -> End:
        fail = partial(self._fail, request, key_use, recorder)
        try:
            result = await produce(recorder, key_use)
        except errors.AimeshError as error:
            await fail(error)
            raise
        except asyncio.CancelledError:
            # A deadline reaches us as a cancellation, too; any other means that this gateway stops, or lost the request.
            if self._clock() >= recorder.ends_at - _CLOCK_SLACK_SECONDS:
                await fail(errors.DeadlineExceeded("the answer was not ready in time", hint="ask for fewer tokens"))
            else:
                await self._abandon(request)
            raise
        except BaseException:
            await fail(errors.Internal("the gateway failed; search its log for the request id"))
            raise
        await self._end(request, recorder, _Ending(KeyState.ENDED, self._seal(request, recorder, result=result)))
        return result

    async def _fail(self, request: IdempotentRequest, key_use: KeyUse, recorder: KeyRecorder[Any, Any], error: errors.AimeshError) -> None:
        if recorder.recording.last == 0 or not idempotency_keys.kind_of(request.request).counts_in_part:
            self._recorders.forget(recorder)
            await self._give_up(request, key_use)
        else:
            # Waiting does not help: the key keeps this answer.
            problem = msgspec.structs.replace(error.to_problem(), hint=_FAILED_HINT, retryable=False, retry_after_ms=None)
            await self._end(request, recorder, _Ending(KeyState.FAILED, self._seal(request, recorder, problem=problem)))

    async def _end(self, request: IdempotentRequest, recorder: KeyRecorder[Any, Any], ending: _Ending) -> None:
        await self._save(request.request_id, ending)
        if request.request_id not in self._own_requests and ending.answer is not None and recorder.recording.whole is not None:
            # Repeats now read it from the store.
            self._recorders.forget(recorder)

    async def _give_up(self, request: IdempotentRequest, key_use: KeyUse) -> None:
        """Free the key of a request that didn't run; keep an orphan's, because its caller may have a part and resume later."""
        if isinstance(key_use, NewKeyUse):
            await self._save(request.request_id, _Ending(None))
        else:
            await self._abandon(request)

    async def _abandon(self, request: IdempotentRequest) -> None:
        # Treat it as an orphan from here on, even if PostgreSQL can't be updated.
        self._own_requests.pop(request.request_id, None)
        try:
            await self._store.abandon(request.request_id)
        except errors.Unavailable:
            return  # the lease expires

    async def _save(self, request_id: RequestId, ending: _Ending) -> None:
        """Save the end before the caller learns it, so that no repeat runs it again. Without PostgreSQL, keep the lease and retry."""
        waiting = sum(len(other.answer or b"") for other in self._unsaved.values())
        if waiting + len(ending.answer or b"") > MAX_UNSAVED_BYTES:
            ending = _Ending(ending.state)
        self._unsaved[request_id] = ending
        try:
            await self._write_end(request_id, ending)
        except errors.Unavailable as error:
            _log.warning("the end of a request is not saved yet", reason=error.message, waiting=len(self._unsaved))

    async def _write_end(self, request_id: RequestId, ending: _Ending) -> None:
        if ending.state is None:
            await self._store.free(request_id)
        else:
            await self._store.end(request_id, ending.state, ending.answer)
        self._unsaved.pop(request_id, None)
        self._own_requests.pop(request_id, None)

    def _seal(
        self,
        request: IdempotentRequest,
        recorder: KeyRecorder[Piece, End],
        *,
        result: End | None = None,
        problem: errors.Problem | None = None,
    ) -> bytes | None:
        head = recorder.head
        if head is None:
            return None
        stored = KeptAnswer(head.request_id, head.model, head.began_at, recorder.recording.whole, result, problem)
        level = idempotency_keys.kind_of(request.request).compression
        body = msgspec.msgpack.encode(stored)
        answer = tenant_encryption.seal(body, request.owner, str(request.request_id), self._secret, compression=level)
        return answer if len(answer) <= MAX_ANSWER_BYTES else None

    def _unseal(self, request: IdempotentRequest, request_id: RequestId, answer: bytes) -> KeptAnswer[Any, Any] | None:
        plain = tenant_encryption.unseal(answer, request.owner, str(request_id), self._secret)
        try:
            return None if plain is None else idempotency_keys.kind_of(request.request).decoder.decode(plain)
        except msgspec.MsgspecError:  # of another version
            return None

    # --- background -------------------------------------------------------------------------------------------------

    async def _watch_withdrawals(self) -> None:
        async with aclosing(self._store.withdrawals()) as withdrawals:
            async for request_id in withdrawals:
                if request_id is None:
                    with suppress(errors.Unavailable):  # the next heartbeat retries
                        await self.heartbeat()
                elif (request := self._own_requests.get(request_id)) is not None:
                    self._cancel_run(request)

    def _cancel_run(self, request: IdempotentRequest) -> None:
        if (recorder := self._recorders.find(_name(request, request.request_id))) is not None:
            recorder.stop(errors.Cancelled("the caller canceled this request"))

    async def heartbeat(self) -> None:
        """Save pending ends, extend the leases of running requests, and stop those that another gateway took over. Raises Unavailable."""
        unsaved = list(self._unsaved.items())
        await self._items.each(ItemKind.ANSWER, unsaved, lambda each: self._write_end(*each), lambda each: str(each[0]))
        # A request without a recorder is just being claimed, and its row may not exist yet.
        found = {request_id: self._recorders.find(_name(request, request_id)) for request_id, request in self._own_requests.items()}
        running = {request_id: recorder for request_id, recorder in found.items() if recorder is not None}
        self._stop_unread(running)
        if not running:
            return
        running_requests = {request_id: self._own_requests[request_id] for request_id in running}
        extended = await self._store.extend_leases(running, seconds=LEASE_SECONDS)
        for request_id in [request_id for request_id, is_withdrawn in extended.items() if is_withdrawn]:
            self._cancel_run(running_requests[request_id])
        for request_id, recorder in running.items():
            # It may have ended during the query.
            if request_id in extended or request_id not in self._own_requests or request_id in self._unsaved:
                continue
            _log.warning("another gateway took over a request", request=str(request_id))
            del self._own_requests[request_id]
            recorder.stop(errors.LinkLost("another gateway continues this request", hint="retry with the same idempotency key"))

    def _stop_unread(self, running: Mapping[RequestId, KeyRecorder[Any, Any]]) -> None:
        now = self._clock()
        self._unread = {
            request_id: self._unread.get(request_id, now) for request_id, recorder in running.items() if not recorder.recording.is_read
        }
        for request_id, since in self._unread.items():
            if now - since >= UNREAD_SECONDS:
                running[request_id].stop(errors.Cancelled("the answer had no reader for a while"))

    async def sweep(self) -> None:
        """Delete expired keys. Raises Unavailable."""
        while await self._store.sweep() == SWEEP_BATCH:
            pass


def _joined(found: KeyRecorder[Piece, End], after: int) -> tuple[KeyRecorder[Piece, End], ReaderId]:
    return found, found.join(after)


async def _play_stored(stored: KeptAnswer[Piece, End], reader: KeyReader[Piece], after: int) -> End:
    """Give the reader what is stored. Raises the error with which the answer ended, after the chunks before it."""
    reader.begin(AnswerHead(stored.request_id, stored.model, stored.began_at))
    for number, chunk in [*enumerate(stored.chunks or (), start=1)][after:]:
        if not await reader.take(number, chunk, tally.NOTHING):
            raise left_early()
    if stored.problem is not None:
        raise errors.from_problem(stored.problem)
    assert stored.result is not None  # set if `problem` is None
    return stored.result


def _name(request: IdempotentRequest, request_id: RequestId) -> RecordingId:
    return RecordingId(request.owner, request_id.bytes)
