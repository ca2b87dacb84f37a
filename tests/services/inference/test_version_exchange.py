"""Workers of a real mesh that get one version: from the mesh's store by leases, and from each other through their sidecars."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from services.inference import pulled_copy
from services.inference.pulled_copy import PulledCopy
from shared.api.inference import BegunFile, PullProgress, StoredModel
from shared.api.model_copies import AdvisePull, PulledFile
from shared.models import block_list, manifest
from shared.models.block_list import BLOCK_BYTES
from shared.types import ModelName
from tests import gguf_files
from tests.services.inference.exchange_site import COUNT, DIGEST, MODEL, Blobs, Site, together
from tests.services.inference.models import fake_hub
from tests.services.inference.models.fake_hub import FakeHub
from tests.swarmnet import swarmnet
from tests.testnet import until


def part(number: int) -> bytes:
    pairs = {
        "general.architecture": gguf_files.text("llama"),
        "llama.context_length": gguf_files.single("u32", 64),
        "split.count": gguf_files.single("u16", 2),
        "split.no": gguf_files.single("u16", number),
    }
    return gguf_files.joined(gguf_files.file(pairs, [])) + bytes(BLOCK_BYTES)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with swarmnet() as net:
        made = Site(net, tmp_path, Blobs())
        await made.add_gateway()
        yield made


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub.serving() as served:
        served.add_repository("org/public", {"m-Q4_0.gguf": MODEL})
        yield served


def downloads(hub: FakeHub) -> int:
    return sum("/resolve/" in path for path in hub.paths())


async def test_three_workers_take_one_copy_from_the_store(site: Site) -> None:
    source = site.blobs.push()
    await site.add_gateway()
    workers = [await site.add_worker() for _ in range(3)]
    await together([worker.get(source) for worker in workers])
    assert sorted(site.blobs.sent) == list(range(COUNT))
    # Much later, somebody who has it gives all of it.
    await site.knows(workers[0])
    await together([(await site.add_worker()).get(source)])
    assert len(site.blobs.sent) == COUNT


async def test_a_model_in_parts_is_copied_from_who_has_it(site: Site) -> None:
    source = site.blobs.push(part(0), part(1))
    holder, reader = await site.add_worker(), await site.add_worker()
    await together([holder.get(source)])
    await site.knows(holder)
    await together([reader.get(source)])
    assert len(site.blobs.sent) == 4
    (model,) = reader.store.models()
    assert reader.store.find_file(model.part_digests[1]) == reader.store.file(model).with_name("model-00002-of-00002.gguf")


async def test_a_copy_ends_from_other_workers_when_the_store_and_all_gateways_go_away(site: Site) -> None:
    source = site.blobs.push()
    first = await site.add_worker(rate=16 * BLOCK_BYTES)
    await together([first.get(source)])
    second = await site.add_worker()
    copying = asyncio.create_task(second.get(source))
    await until(lambda: second.copied() >= len(MODEL) // 4, seconds=30)
    site.blobs.is_away = True
    await site.gateways[0].stop()
    await together([copying])
    assert len(site.blobs.sent) == COUNT


async def test_a_worker_that_leaves_amid_the_copy_costs_its_blocks_at_most(site: Site) -> None:
    source = site.blobs.push()
    leaver, *others = [await site.add_worker(rate=8 * BLOCK_BYTES) for _ in range(3)]
    leaving = asyncio.create_task(leaver.get(source))
    copying = [asyncio.create_task(each.get(source)) for each in others]
    await until(lambda: leaver.copied() >= len(MODEL) // 2, seconds=30)
    leaving.cancel()
    await leaver.running.cut()
    await together(list(copying))
    assert set(site.blobs.sent) == set(range(COUNT))
    assert len(site.blobs.sent) <= COUNT + site.blobs.readers.count(leaver.node.id)


async def test_a_worker_that_does_not_share_reads_from_others_and_is_not_read_from(site: Site) -> None:
    source = site.blobs.push()
    sharing, silent = await site.add_worker(), await site.add_worker(shares=False)
    await together([sharing.get(source)])
    await together([silent.get(source)])
    assert len(site.blobs.sent) == COUNT
    await sharing.running.stop()
    third = await site.add_worker()
    await together([third.get(source)])
    assert site.blobs.readers.count(third.node.id) == COUNT


async def test_one_worker_pulls_a_public_model_and_the_others_copy_it(site: Site, hub: FakeHub) -> None:
    workers = [await site.add_worker() for _ in range(3)]
    await together([worker.pull(hub) for worker in workers])
    assert downloads(hub) == 1
    await workers[0].running.stop()
    await together([(await site.add_worker()).pull(hub)])
    assert downloads(hub) == 1
    for worker in workers:
        assert list((worker.store._root / "partial").iterdir()) == []


@pytest.mark.parametrize("has_other_bytes", [True, False])
async def test_a_lie_about_a_public_model_costs_only_time(
    site: Site, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, *, has_other_bytes: bool
) -> None:
    monkeypatch.setattr(pulled_copy, "STALL_SECONDS", 5.0 if has_other_bytes else 0.5)
    liar, worker = await site.add_worker(), await site.add_worker()
    store, other = liar.store, bytes(len(MODEL))
    store.ensure_folders()
    lie = StoredModel(name=ModelName("public"), digest="0" * 64, size=len(other), source="", stored_at=datetime.now(UTC), source_key="")
    store.blob(lie.digest).write_bytes(other)
    copy = PulledCopy(liar.node.rpc, liar.node.directory, store, liar.exchange)
    file = msgspec.structs.replace(copy._list(lie), digest=DIGEST)
    if has_other_bytes:
        store.blob(DIGEST.removeprefix("sha256:")).write_bytes(other)
    await copy._ask(lie.name, AdvisePull(lie.name, "hf:org/public", file))
    await together([worker.pull(hub)])
    assert downloads(hub) == 1


async def test_a_public_model_in_parts_is_pulled_by_each(site: Site, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulled_copy, "WAIT_SECONDS", 0.1)
    hub.add_repository("org/public", {f"m-Q4_0-0000{number + 1}-of-00002.gguf": part(number) for number in range(2)})
    await together([(await site.add_worker()).pull(hub, part(0)), (await site.add_worker()).pull(hub, part(0))])
    assert downloads(hub) == 4


async def test_who_pulls_a_public_model_and_dies_is_replaced(site: Site, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulled_copy, "WAIT_SECONDS", 0.1)
    dying, worker = await site.add_worker(), await site.add_worker()
    copy = PulledCopy(dying.node.rpc, dying.node.directory, dying.store, dying.exchange)
    assert await copy.get(ModelName("public"), "hf:org/public") is None
    waiting = asyncio.create_task(worker.pull(hub))
    await dying.running.cut()
    await together([waiting])
    assert downloads(hub) == 1


def pause(hub: FakeHub) -> int:
    """Let the hub stop amid the 11th block, and return the bytes of ten blocks, of which the last of the model is the shortest."""
    hub.pauses = dict.fromkeys(hub.bodies, 10 * BLOCK_BYTES + 7)
    return len(MODEL) - (COUNT - 10) * BLOCK_BYTES


async def test_others_copy_what_a_worker_pulls_before_it_has_all(site: Site, hub: FakeHub) -> None:
    there = pause(hub)
    workers = [await site.add_worker() for _ in range(3)]
    pulling = [asyncio.create_task(worker.pull(hub)) for worker in workers]
    await until(lambda: sum(worker.copied() >= there for worker in workers) == 3, seconds=30)
    hub.gate.set()
    await together(pulling)
    assert downloads(hub) == 1
    for worker in workers:
        assert list((worker.store._root / "partial").iterdir()) == []


async def test_others_go_on_when_who_pulls_dies_amid_the_file(site: Site, hub: FakeHub) -> None:
    there = pause(hub)
    dying, *others = [await site.add_worker() for _ in range(3)]
    dead = asyncio.create_task(dying.pull(hub))
    await until(lambda: dying.copied() >= there, seconds=30)
    pulling = [asyncio.create_task(worker.pull(hub)) for worker in others]
    await until(lambda: all(worker.copied() >= there for worker in others), seconds=30)
    await dying.running.cut()
    dead.cancel()
    hub.gate.set()
    await together(pulling)
    assert downloads(hub) == 2


async def test_a_worker_that_pulls_other_bytes_costs_only_time(site: Site, hub: FakeHub) -> None:
    liar, worker = await site.add_worker(), await site.add_worker()
    folder, other = liar.store._root, bytes(len(MODEL))
    liar.store.ensure_folders()
    (folder / "other").write_bytes(other)
    copy = PulledCopy(liar.node.rpc, liar.node.directory, liar.store, liar.exchange)
    assert await copy.get(ModelName("public"), "hf:org/public") is None
    async with copy.offered(ModelName("public"), "hf:org/public", None) as offer:
        offer.begin(BegunFile(str(folder / "other"), DIGEST.removeprefix("sha256:"), len(other)))
        await offer.progressed(PullProgress("", len(other)))
        pulling = asyncio.create_task(worker.pull(hub))
        await until(lambda: worker.copied() == len(other), seconds=30)
        blocks = offer.blocks
        list_digest, list_blocks = manifest.digest_of(blocks), b"".join(block_list.compute([blocks]))
        lie = AdvisePull(ModelName("public"), "hf:org/public", PulledFile(DIGEST, len(other), list_digest, list_blocks))
        liar.store.list_of_blocks(list_digest.removeprefix("sha256:")).write_bytes(blocks)
        await copy._ask(lie.model, lie)
        await together([pulling])
    assert downloads(hub) == 1
