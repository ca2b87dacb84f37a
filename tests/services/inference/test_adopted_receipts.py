"""The receipts of a dead worker: one worker that shares its volume serves them until they expire."""

import asyncio
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from services.inference import receipts
from services.inference.receipts import KEPT_FOR, AdoptedReceipts, ReceiptKeeper, keep_key
from shared.api.inference import Receipt
from shared.background.deferred_memory import DeferredMemory
from shared.background.items import BackgroundItems
from shared.identity import node_keys, private_file
from shared.node.lifecycle import background
from shared.stores import file_lock, replica_files
from shared.telemetry import Metrics
from shared.types import NodeId, RequestId
from tests.services.inference.standins import until
from tests.services.inference.test_receipts import work

#: A worker that ends one request and then waits to be killed.
OWNER = """
import asyncio, sys
from pathlib import Path
from services.inference.receipts import ReceiptKeeper, keep_key
from shared.identity import node_keys
from shared.stores import replica_files
from tests.services.inference.test_receipts import work

async def main():
    key = node_keys.load(Path(sys.argv[2]))
    async with replica_files.held(Path(sys.argv[1]), key.id) as path:
        keep_key(path, Path(sys.argv[2]))
        receipts = ReceiptKeeper(path, key)
        writing = asyncio.create_task(receipts.run())
        request = await work(receipts)
        while not (path.exists() and path.stat().st_size):
            await asyncio.sleep(0.01)
        print(request, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return tmp_path / "volume" / "{node}" / "worker.receipts"


def new_key(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    private_file.create(folder / "node.nk", node_keys.new_seed)
    return folder / "node.nk"


def folders(template: Path) -> set[str]:
    return {path.name for path in template.parent.parent.iterdir()}


def adopter(template: Path) -> AdoptedReceipts:
    return AdoptedReceipts(template, node_keys.NodeKey(node_keys.new_seed()).id, BackgroundItems(DeferredMemory(), Metrics("worker")))


def signers(adopters: list[AdoptedReceipts], request: RequestId, signed_by: NodeId) -> int:
    """Return how many adopters have the receipt, after checking its signature."""
    found = [signed for each in adopters for signed in each.read((request,))]
    for signed in found:
        assert node_keys.verify(signed_by, "receipt", signed.text, signed.signature)
        assert msgspec.msgpack.decode(signed.text, type=Receipt).request_id == request
    return len(found)


async def test_the_receipts_of_a_killed_worker_are_served_by_one_of_two_peers(template: Path, tmp_path: Path) -> None:
    key_file = new_key(tmp_path / "killed")
    node, peers = node_keys.load(key_file).id, [adopter(template), adopter(template)]
    command = [sys.executable, "-c", OWNER, str(template), str(key_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220
        assert process.stdout is not None
        request = RequestId(UUID(process.stdout.readline().strip()))
        await asyncio.gather(*(peer.adopt() for peer in peers))
        assert signers(peers, request, node) == 0, "a live owner's receipts were adopted"
        os.kill(process.pid, signal.SIGKILL)
    await asyncio.gather(*(peer.adopt() for peer in peers * 2))
    assert signers(peers, request, node) == 1
    assert folders(template) == {node}


async def test_a_third_worker_adopts_them_when_the_first_adopter_stops(template: Path, tmp_path: Path) -> None:
    node, request = await write(template, tmp_path)
    first, second = adopter(template), adopter(template)
    async with background() as tasks:
        running = tasks.create_task(first.run())
        await until(lambda: first.read((request,)))
        await second.adopt()
        assert second.read((request,)) == ()
        running.cancel()
    assert first.read((request,)) == ()
    await second.adopt()
    assert signers([second], request, node) == 1


async def test_the_folder_is_removed_when_its_receipts_have_expired(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, request = await write(template, tmp_path)
    peer = adopter(template)
    await peer.adopt()
    assert peer.read((request,))
    ((keeper, _),) = peer._held.values()
    monkeypatch.setattr(keeper, "_now", lambda: datetime.now(UTC) + KEPT_FOR + timedelta(seconds=1))
    await peer.adopt()
    assert folders(template) == set()
    assert peer.read((request,)) == ()


async def test_a_folder_without_receipts_or_key_is_removed_at_once(template: Path, tmp_path: Path) -> None:
    node, _ = await write(template, tmp_path)
    path = replica_files.path_of(template, node)
    path.with_suffix(".nk").unlink()
    await adopter(template).adopt()
    assert folders(template) == set()
    node, _ = await write(template, tmp_path)
    replica_files.path_of(template, node).unlink()
    await adopter(template).adopt()
    assert folders(template) == set()


async def test_the_receipts_of_the_version_without_folders_are_adopted(template: Path, tmp_path: Path) -> None:
    node, request = await write(template, tmp_path)
    path, old = replica_files.path_of(template, node), replica_files.without_folder(template)
    for suffix in (".receipts", ".nk"):
        path.with_suffix(suffix).rename(old.with_suffix(suffix))
    peer = adopter(template)
    async with file_lock.hold(old):
        await peer.adopt()
        assert peer.read((request,)) == ()
    await peer.adopt()
    assert signers([peer], request, node) == 1


async def test_only_so_many_are_adopted_at_a_time(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "MAX_ADOPTED", 1)
    requests = [(await write(template, tmp_path))[1] for _ in range(2)]
    one, two = adopter(template), adopter(template)
    for peer in (one, two):
        await peer.adopt()
        assert len(peer.read(tuple(requests))) == 1
    assert one.read((requests[0],)) != two.read((requests[0],))


async def write(template: Path, tmp_path: Path) -> tuple[NodeId, RequestId]:
    """Leave the receipt of a stopped worker."""
    key_file = tmp_path / f"{os.urandom(4).hex()}.nk"
    private_file.create(key_file, node_keys.new_seed)
    key = node_keys.load(key_file)
    async with replica_files.held(template, key.id) as path:
        keep_key(path, key_file)
        receipts = ReceiptKeeper(path, key)
        async with background() as tasks:
            running = tasks.create_task(receipts.run())
            request = await work(receipts)
            await until(lambda: path.exists() and path.stat().st_size)
            running.cancel()
    return key.id, request
