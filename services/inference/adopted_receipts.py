"""Serves the receipts of workers that are gone, on the volume that this worker shared with them, until the receipts expire.

A worker's key lies beside its receipts, because a gateway accepts only receipts that the worker itself has signed.
"""

import asyncio
from contextlib import ExitStack
from pathlib import Path

from services.inference.receipts import ReceiptKeeper
from shared import errors
from shared.api.inference import SignedReceipt
from shared.identity import node_keys, private_file
from shared.stores import file_lock, replica_files
from shared.telemetry import logs
from shared.types import NodeId, RequestId

#: Others stay on the volume for another worker, or until they expire. Each needs up to 30 MB.
MOST_ADOPTED = 32

_log = logs.get(part="receipts")


def keep_key(path: Path, key_file: Path) -> None:
    """Store the key beside the receipts, for a worker that adopts them. Blocks."""
    try:
        private_file.create(replica_files.key_of(path), lambda: key_file.read_bytes().strip())
    except OSError as error:
        _log.warning("receipts_not_saved", file=str(path), reason=error.strerror)


class AdoptedReceipts:
    def __init__(self, template: Path, node: NodeId) -> None:
        self._template = template
        self._node = node
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
        for path, (keeper, lock) in list(self._held.items()):
            if not keeper.forget_old():
                await asyncio.to_thread(replica_files.remove, path)
                del self._held[path]
                lock.close()
        for path in await asyncio.to_thread(replica_files.find_others, self._template, self._node):
            if path not in self._held and len(self._held) < MOST_ADOPTED:
                await self._adopt(path)

    async def _adopt(self, path: Path) -> None:
        with ExitStack() as stack:
            if not stack.enter_context(file_lock.try_hold(path)):
                return
            keeper = await asyncio.to_thread(_load, path)
            if keeper is None or not keeper.forget_old():
                await asyncio.to_thread(replica_files.remove, path)
                return
            self._held[path] = keeper, stack.pop_all()
            _log.info("adopted the receipts of a worker that is gone", file=str(path))


def _load(path: Path) -> ReceiptKeeper | None:
    """Return None without a key: nobody can sign these receipts."""
    try:
        keeper = ReceiptKeeper(path, node_keys.load(replica_files.key_of(path)))
    except errors.BadSettings:
        return None
    keeper.recall()
    return keeper
