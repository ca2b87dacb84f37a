"""Keeps a receipt of each request for a day, so that a gateway can settle a dead gateway's requests.

A receipt is readable as soon as its request ends, and in the file some milliseconds later. `kill -9` loses the receipts of those
milliseconds, a power cut also what the system hadn't written yet. Requests without a receipt are not charged.

The receipts of workers that are gone, on a volume that this worker shared with them, are served until they expire. A worker's key lies
beside its receipts, because a gateway accepts only receipts that the worker itself has signed.
"""

import asyncio
import os
import struct
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from services.inference.backend_interface import Sink
from shared import errors
from shared.api import inference
from shared.api.generation import GenerationEnd
from shared.api.inference import Receipt, SignedReceipt
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems
from shared.identity import node_keys, private_file
from shared.stores import file_lock, replica_files
from shared.telemetry import logs
from shared.types import NodeId, RequestId

KEPT_FOR = timedelta(hours=24)
#: About 300 bytes each in memory; 150 in the file, which holds at most twice as many: 30 MB of each.
CAPACITY = 100_000
#: Receipts within this time are written together, because each write is a turn of a thread.
GATHER_SECONDS = 0.01
#: A longer receipt in the file is damaged.
_MAX_BYTES = 4096
#: CRC-32 and length, before each receipt in the file.
_HEAD = struct.Struct(">II")
#: Others stay on the volume for another worker, or until they expire. Each needs up to 30 MB.
MAX_ADOPTED = 32

#: Returns how many of the sent items the caller's side has given credit for.
CreditedItems = Callable[[], int]

log = logs.get(part="receipts")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Receipt).decode


class RequestMeter:
    """One request. Passes its answer on to ``sink``, and counts what the caller is sent."""

    def __init__(
        self, request_id: RequestId, delivered_before: int, sink: Sink, clock: Callable[[], float], credited_items: CreditedItems | None
    ) -> None:
        self._sink = sink
        self._clock = clock
        self._credited_items = credited_items
        #: Tokens of each item without credit; bounded by the caller's window.
        self._uncredited: deque[int] = deque()
        self._seen_credits = self._credited_tokens = 0
        self._began = clock()
        self._request_id = request_id
        self._delivered_before = delivered_before
        self._prompt_tokens: int | None = None
        self._completion_tokens = 0
        self._finish: str | None = None

    @property
    def has_begun(self) -> bool:
        return self._prompt_tokens is not None or self._completion_tokens > 0

    def accept(self, prompt_tokens: int | None) -> None:
        self._prompt_tokens = prompt_tokens
        self._sink.accept(prompt_tokens)

    async def send(self, item: inference.Chunk) -> None:
        await self._sink.send(item)
        tokens = len(item.token_ids)
        self._completion_tokens += tokens
        if self._credited_items is not None:
            self._uncredited.append(tokens)
            self._count_credits()

    def finished(self, generation: GenerationEnd) -> None:
        self._finish = generation.finish_reason.value
        self._prompt_tokens = generation.usage.prompt_tokens
        # Backends without token ids report a count.
        self._completion_tokens = self._completion_tokens or generation.usage.completion_tokens

    def receipt(self, ended: str, ended_at: datetime | None) -> Receipt:
        self._count_credits()
        counts = (self._prompt_tokens or 0, self._delivered_before, self._completion_tokens)
        seconds = round(self._clock() - self._began, 3)
        return Receipt(self._request_id, *counts, self._finish or ended, ended_at, seconds, self._credited_tokens)

    def _count_credits(self) -> None:
        credited = 0 if self._credited_items is None else self._credited_items()
        while self._seen_credits < credited and self._uncredited:
            self._seen_credits += 1
            self._credited_tokens += self._uncredited.popleft()


class ReceiptKeeper:
    """Holds all receipts of a worker. If there is no file, or it can't be written, they are only in memory."""

    def __init__(
        self,
        file: Path | None,
        key: node_keys.NodeKey,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
        *,
        capacity: int = CAPACITY,
    ) -> None:
        self._file = file
        self._key = key
        self._now = now
        self._clock = clock
        self._capacity = capacity
        self._running: dict[RequestId, RequestMeter] = {}
        #: Oldest first; packed to save memory.
        self._kept: OrderedDict[RequestId, bytes] = OrderedDict()
        self._unwritten: deque[bytes] = deque(maxlen=capacity)
        self._arrived = asyncio.Event()
        #: Receipts in the file, expired ones included.
        self._in_file = 0
        self._is_well = True

    @contextmanager
    def meter(
        self, request_id: RequestId, delivered_before: int, sink: Sink, credited_items: CreditedItems | None = None
    ) -> Iterator[RequestMeter]:
        """Write a receipt for the request that the block runs, however it ends. ``credited_items`` is None if the credits don't show
        what the caller has received."""
        meter = self._running[request_id] = RequestMeter(request_id, delivered_before, sink, self._clock, credited_items)
        ended = errors.Internal.code
        try:
            yield meter
        except errors.AimeshError as error:
            ended = errors.code_of(error)
            raise
        except asyncio.CancelledError:
            ended = errors.Cancelled.code
            raise
        finally:
            if self._running.get(request_id) is meter:
                del self._running[request_id]
            # A refused retry must not replace the receipt of an earlier run.
            if meter.has_begun or request_id not in self._kept:
                self._keep(meter.receipt(ended, self._now()))

    def read(self, request_ids: tuple[RequestId, ...]) -> tuple[SignedReceipt, ...]:
        texts = (self._text(request_id) for request_id in request_ids)
        return tuple(SignedReceipt(text, self._key.sign(inference.RECEIPT_PURPOSE, text)) for text in texts if text is not None)

    def recall(self) -> None:
        """Read the file, for a keeper that doesn't ``run``. Blocks."""
        self._recall(self._load())

    def forget_old(self) -> int:
        """Return how many receipts are left."""
        while self._kept and (len(self._kept) > self._capacity or self._is_old(next(iter(self._kept.values())))):
            self._kept.popitem(last=False)
        return len(self._kept)

    async def run(self) -> None:
        """Read the file, then append new receipts until cancelled; writes all of them before it ends."""
        try:
            with ThreadPoolExecutor(1, "receipts") as thread:
                loop = asyncio.get_running_loop()
                self._recall(await loop.run_in_executor(thread, self._load))
                while True:
                    await self._arrived.wait()
                    await asyncio.sleep(GATHER_SECONDS)
                    self._arrived.clear()
                    # A cancel must not take a write back that the thread has not begun: its receipts are no longer in `_unwritten`.
                    await asyncio.shield(loop.run_in_executor(thread, self._write, *self._due()))
        finally:
            self._write(*self._due())

    def _recall(self, texts: list[bytes]) -> None:
        since, self._kept = self._kept, OrderedDict()
        for text in (*texts, *since.values()):
            self._remember(text)
        # Makes the first write rewrite the file, without expired receipts.
        self._in_file = self._capacity * 2

    def _text(self, request_id: RequestId) -> bytes | None:
        running = self._running.get(request_id)
        return _encode(running.receipt(inference.RUNNING, None)) if running is not None else self._kept.get(request_id)

    def _keep(self, receipt: Receipt) -> None:
        text = _encode(receipt)
        self._remember(text, receipt)
        self._unwritten.append(text)
        self._arrived.set()

    def _remember(self, text: bytes, receipt: Receipt | None = None) -> None:
        receipt = receipt or _decode(text)
        self._kept.pop(receipt.request_id, None)
        self._kept[receipt.request_id] = text
        self.forget_old()

    def _is_old(self, text: bytes) -> bool:
        ended_at = _decode(text).ended_at
        return ended_at is None or self._now() - ended_at > KEPT_FOR

    def _due(self) -> tuple[list[bytes], bool]:
        """Return the receipts to write, and whether they replace the file's content."""
        texts = list(self._unwritten)
        self._unwritten.clear()
        if self._in_file + len(texts) > self._capacity * 2:
            self._in_file = len(self._kept)
            return list(self._kept.values()), True
        self._in_file += len(texts)
        return texts, False

    # --- the file: one thread -----------------------------------------------------------------------------------------

    def _load(self) -> list[bytes]:
        try:
            return [] if self._file is None else list(_records(self._file.read_bytes()))
        except OSError:
            return []

    def _write(self, texts: list[bytes], anew: bool) -> None:
        if self._file is None or not (texts or anew):
            return
        body = b"".join(_record(text) for text in texts)
        try:
            if anew:
                private_file.replace(self._file, body)
            else:
                with open(self._file, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                    file.write(body)
            self._is_well = True
        except OSError as error:
            if self._is_well:
                log.warning("receipts_not_saved", file=str(self._file), reason=error.strerror)
            self._is_well = False


def _record(text: bytes) -> bytes:
    return _HEAD.pack(zlib.crc32(text), len(text)) + text


def _records(body: bytes) -> Iterator[bytes]:
    """Yield the receipts up to the first damaged one, which a power cut may leave."""
    at = 0
    while at + _HEAD.size <= len(body):
        crc, size = _HEAD.unpack_from(body, at)
        text = body[at + _HEAD.size : at + _HEAD.size + size]
        if size > _MAX_BYTES or zlib.crc32(text) != crc:
            return
        try:
            _decode(text)
        except msgspec.MsgspecError:
            return
        yield text
        at += _HEAD.size + size


def keep_key(path: Path, key_file: Path) -> None:
    """Store the key beside the receipts, for a worker that adopts them. Blocks."""
    try:
        private_file.create(replica_files.key_of(path), lambda: key_file.read_bytes().strip())
    except OSError as error:
        log.warning("receipts_not_saved", file=str(path), reason=error.strerror)


class AdoptedReceipts:
    def __init__(self, template: Path, node: NodeId, items: BackgroundItems) -> None:
        self._template = template
        self._node = node
        self._items = items
        self._held: dict[Path, tuple[ReceiptKeeper, ExitStack]] = {}

    def read(self, request_ids: tuple[RequestId, ...]) -> tuple[SignedReceipt, ...]:
        return tuple(receipt for keeper, _ in self._held.values() for receipt in keeper.read(request_ids))

    async def run(self) -> None:
        """Adopt receipts until cancelled; then let other workers have them."""
        try:
            while True:
                await self.adopt()
                await asyncio.sleep(replica_files.ADOPT_SECONDS)
        finally:
            for _, lock in self._held.values():
                lock.close()
            self._held.clear()

    async def adopt(self) -> None:
        await self._items.each(ItemKind.ADOPTED_RECEIPTS, list(self._held), self._give_up_old, lambda path: path.name)
        others = await asyncio.to_thread(replica_files.find_others, self._template, self._node)
        await self._items.each(ItemKind.ADOPTED_RECEIPTS, others, self._adopt, lambda path: path.name)

    async def _give_up_old(self, path: Path) -> None:
        keeper, lock = self._held[path]
        if not keeper.forget_old():
            await asyncio.to_thread(replica_files.remove, path)
            del self._held[path]
            lock.close()

    async def _adopt(self, path: Path) -> None:
        if path in self._held or len(self._held) >= MAX_ADOPTED:
            return
        with ExitStack() as stack:
            if not stack.enter_context(file_lock.try_hold(path)):
                return
            keeper = await asyncio.to_thread(_load, path)
            if keeper is None or not keeper.forget_old():
                await asyncio.to_thread(replica_files.remove, path)
                return
            self._held[path] = keeper, stack.pop_all()
            log.info("adopted the receipts of a worker that is gone", file=str(path))


def _load(path: Path) -> ReceiptKeeper | None:
    """Return None without a key: nobody can sign these receipts."""
    try:
        keeper = ReceiptKeeper(path, node_keys.load(replica_files.key_of(path)))
    except errors.BadSettings:
        return None
    keeper.recall()
    return keeper
