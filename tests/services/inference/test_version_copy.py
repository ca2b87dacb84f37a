"""A worker gets versions from the mesh's store, which loses answers, flips bytes and goes away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from services.inference import version_copy
from services.inference.models import model_copy, model_discovery
from services.inference.models.catalog import Defaults
from services.inference.models.model_copy import CopyProgress
from services.inference.models.model_files import KnownDigests, ModelFile
from services.inference.models.model_store import ModelStore
from services.inference.version_copy import CopyReport, DamagedBlob, Exchange, VersionCopy
from shared import errors
from shared.api.inference import Assignment, PullProgress
from shared.api.model_copies import MAX_RANGE_BYTES, PART_BYTES, VERSION_SOURCE, BlobPart, ReadBlob
from shared.models import block_list, manifest
from shared.models.block_list import BLOCK_BYTES
from shared.models.manifest import VersionConfig, VersionFile
from shared.node import lifecycle
from shared.protocol.directory import Directory
from shared.timing.backoff import Backoff
from shared.types import ModelName
from tests import gguf_files
from tests.services.inference.models import ranged_server

NAME = ModelName("llama3@2")
MODEL = ranged_server.model_bytes(20 * BLOCK_BYTES + 7)
PROJECTOR = gguf_files.joined(gguf_files.file({"general.architecture": gguf_files.text("clip")}, []))

Change = Callable[[ReadBlob, bytes], bytes]


@dataclass
class Origin:
    """Answers `gateway.readBlob`."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[ReadBlob] = field(default_factory=list)
    change: Change = lambda _asked, data: data
    #: How many answers to lose after their first part.
    losses: int = 0

    def add(self, data: bytes) -> str:
        self.blobs[manifest.digest_of(data)] = data
        return manifest.digest_of(data)

    def push(self, files: dict[str, bytes]) -> str:
        """Add a version, and return its source."""
        found = [
            VersionFile(path, self.add(data), len(data), self.add(b"".join(block_list.compute([data])))) for path, data in files.items()
        ]
        config = manifest.encode_config(VersionConfig(), found)
        self.add(config)
        return VERSION_SOURCE + self.add(manifest.build(config, found))

    @asynccontextmanager
    async def stream(self, _method: Any, request: ReadBlob, *, deadline_seconds: float) -> AsyncIterator[Any]:
        self.asked.append(request)
        data = self.change(request, self.blobs[request.digest][request.start : request.start + request.length])
        is_lost = self.losses > 0 and len(data) == BLOCK_BYTES
        self.losses -= is_lost

        async def parts() -> AsyncIterator[BlobPart]:
            for start in range(0, len(data), PART_BYTES):
                if is_lost and start:
                    raise errors.LinkLost("the link was lost")
                yield BlobPart(data[start : start + PART_BYTES])

        yield parts()

    def blocks_of(self, data: bytes) -> list[int]:
        """Return which blocks of these bytes were asked for."""
        return [each.start // BLOCK_BYTES for each in self.asked if each.digest == manifest.digest_of(data)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version_copy, "_BACKOFF", Backoff(first_seconds=0.001, longest_seconds=0.001, jitter=0.5))
    monkeypatch.setattr(model_copy, "ORIGIN_SECONDS", 0.001)
    monkeypatch.setattr(model_copy, "LEASE_SECONDS", 0.001)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


@pytest.fixture
def origin() -> Origin:
    return Origin()


async def get(origin: Origin, store: ModelStore, source: str, name: ModelName = NAME) -> None:
    nodes = Directory(asyncio.get_running_loop().time)
    await VersionCopy(origin, nodes, store, Exchange()).get(name, source, Assignment(slots=2))  # type: ignore[arg-type]


async def test_a_version_is_a_model_of_the_store(origin: Origin, store: ModelStore) -> None:
    source = origin.push({"model.gguf": MODEL, "mmproj.gguf": PROJECTOR})
    await get(origin, store, source)
    (model,) = store.models()
    assert (model.name, model.source, model.assignment, model.size) == (NAME, source, Assignment(slots=2), len(MODEL) + len(PROJECTOR))
    assert store.file(model).read_bytes() == MODEL
    projector = store.projector(model)
    assert projector is not None
    assert projector.read_bytes() == PROJECTOR
    assert model.digest == manifest.digest_of(MODEL).removeprefix("sha256:")
    assert list((store._root / "partial").iterdir()) == []
    assert sorted(origin.blocks_of(MODEL)) == list(range(21))


async def test_a_file_that_another_version_has_is_not_fetched(origin: Origin, store: ModelStore) -> None:
    await get(origin, store, origin.push({"model.gguf": MODEL}))
    await get(origin, store, origin.push({"other.gguf": MODEL}), ModelName("llama3@3"))
    first, second = store.models()
    assert first.digest == second.digest
    assert len(origin.blocks_of(MODEL)) == 21
    store.blob(first.digest).chmod(0o600)
    with store.blob(first.digest).open("r+b") as damaged:
        damaged.seek(5 * BLOCK_BYTES)
        damaged.write(b"damaged")
    await get(origin, store, origin.push({"third.gguf": MODEL}), ModelName("llama3@4"))
    assert origin.blocks_of(MODEL)[21:] == [5]
    assert store.blob(first.digest).read_bytes() == MODEL


def test_what_an_earlier_attempt_left_is_no_speed(store: ModelStore) -> None:
    report = CopyReport(store, "key", NAME, 5000)
    assert report.measure(10.0) == PullProgress("copying", 0, 5000)
    report.update("one", CopyProgress(4000, 100, 0, 1))
    assert report.measure(10.1) == PullProgress("copying", 4000, 5000, peers=1)
    report.update("one", CopyProgress(4500, 400, 200, 1))
    report.update("two", CopyProgress(100, 0, 100, 2))
    assert report.measure(11.1) == PullProgress("copying", 4600, 5000, 600, 300, 2)


async def test_lost_answers_are_asked_for_again(origin: Origin, store: ModelStore) -> None:
    source = origin.push({"model.gguf": MODEL})
    origin.losses = 3
    await get(origin, store, source)
    assert len(origin.blocks_of(MODEL)) == 21 + 3
    assert set(origin.blocks_of(MODEL)) == set(range(21))


async def test_a_gateway_that_is_away_is_asked_several_times(origin: Origin, store: ModelStore) -> None:
    source = origin.push({"model.gguf": MODEL})

    def lose(_asked: ReadBlob, _data: bytes) -> bytes:
        raise errors.NotReachable("no gateway")

    origin.change = lose
    with pytest.raises(errors.NotReachable):
        await get(origin, store, source)
    assert len(origin.asked) == version_copy._MAX_FAILURES


async def test_flipped_bytes_are_fetched_again_and_never_stored(origin: Origin, store: ModelStore) -> None:
    source = origin.push({"model.gguf": MODEL})
    flips = 3

    def flip(asked: ReadBlob, data: bytes) -> bytes:
        nonlocal flips
        if asked.digest != manifest.digest_of(MODEL) or len(data) < BLOCK_BYTES or not flips:
            return data
        flips -= 1
        return data[:9] + bytes([data[9] ^ 1]) + data[10:]

    origin.change = flip
    await get(origin, store, source)
    (model,) = store.models()
    assert store.file(model).read_bytes() == MODEL


async def test_a_store_that_only_lies_is_given_up(origin: Origin, store: ModelStore) -> None:
    source = origin.push({"model.gguf": MODEL})
    origin.change = lambda asked, data: bytes(len(data)) if asked.digest == manifest.digest_of(MODEL) else data
    with pytest.raises(errors.Unavailable, match="not that of the model"):
        await get(origin, store, source)
    assert store.models() == ()
    origin.change = lambda _asked, data: data + b"x" * MAX_RANGE_BYTES
    with pytest.raises(DamagedBlob, match="more of"):
        await get(origin, store, source)
    origin.change = lambda asked, data: data[:-1] + b"x"
    with pytest.raises(DamagedBlob):
        await get(origin, store, source)


@pytest.mark.parametrize("torn", [0, 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 99])
async def test_what_a_killed_worker_left_is_checked_and_kept(origin: Origin, store: ModelStore, torn: int) -> None:
    source = origin.push({"model.gguf": MODEL})
    store.ensure_folders()
    partial = store._root / "partial" / manifest.digest_of(MODEL).removeprefix("sha256:")
    # The end of what was written before a power cut is zeros.
    partial.write_bytes(MODEL[:torn] + bytes(2 * BLOCK_BYTES))
    await get(origin, store, source)
    assert sorted(origin.blocks_of(MODEL)) == list(range(torn // BLOCK_BYTES, 21))
    (model,) = store.models()
    assert store.file(model).read_bytes() == MODEL


def lost_after(origin: Origin, blocks: int) -> asyncio.Event:
    """Lose the link after so many blocks; the event says when."""
    reached = asyncio.Event()

    def stop(asked: ReadBlob, data: bytes) -> bytes:
        if len(origin.blocks_of(MODEL)) <= blocks:
            return data
        reached.set()
        raise errors.LinkLost("the link was lost")

    origin.change = stop
    return reached


async def test_a_canceled_copy_is_resumed(origin: Origin, store: ModelStore) -> None:
    source, reached = origin.push({"model.gguf": MODEL}), lost_after(origin, 18)
    copying = asyncio.create_task(get(origin, store, source))
    await reached.wait()
    copying.cancel()
    await asyncio.wait({copying})
    origin.change = lambda _asked, data: data
    origin.asked.clear()
    await get(origin, store, source)
    assert len(origin.blocks_of(MODEL)) == 21 - 18


async def test_a_disk_without_room_is_told_before_the_first_byte(origin: Origin, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store", quota_bytes=len(MODEL) - 1)
    source = origin.push({"model.gguf": MODEL})
    with pytest.raises(errors.TooLarge, match="the store may use"):
        await get(origin, store, source)
    assert origin.blocks_of(MODEL) == []


async def test_parts_of_a_model_are_one_model(origin: Origin, store: ModelStore) -> None:
    def part(number: int) -> bytes:
        pairs = {
            "general.architecture": gguf_files.text("llama"),
            "llama.context_length": gguf_files.single("u32", 64),
            "split.count": gguf_files.single("u16", 2),
            "split.no": gguf_files.single("u16", number),
        }
        return gguf_files.joined(gguf_files.file(pairs, []))

    source = origin.push({"m-00002-of-00002.gguf": part(1), "m-00001-of-00002.gguf": part(0)})
    await get(origin, store, source)
    (model,) = store.models()
    assert model.parts == 2
    assert store.file(model).read_bytes() == part(0)
    # Each part is checked before it is loaded.
    (entry,) = model_discovery.in_store(store, Defaults())
    async with lifecycle.background() as tasks:
        file = ModelFile(entry, tasks, lambda: None, KnownDigests(None))
        await file.ensure_served()
        hashes = [manifest.digest_of(part(number)) for number in (0, 1)]
        assert [f"sha256:{each}" for each in file.hashes] == hashes
        assert (file.digest, entry.digest, file.problem) == (model.digest, model.digest, "")
    with store.file(model).with_name("model-00002-of-00002.gguf").open("ab") as damaged:
        damaged.write(b"damaged")
    async with lifecycle.background() as tasks:
        file = ModelFile(entry, tasks, lambda: None, KnownDigests(None))
        await file.ensure_served()
        assert "is not the file in the catalog" in file.problem


async def test_what_is_no_model_is_refused(origin: Origin, store: ModelStore) -> None:
    with pytest.raises(errors.BadRequest, match="not a usable model"):
        await get(origin, store, origin.push({"model.gguf": b"x" * 100}))
    assert store.models() == ()


async def test_a_damaged_version_is_taken_away_and_its_sound_blocks_are_kept(origin: Origin, store: ModelStore) -> None:
    source = origin.push({"model.gguf": MODEL})
    await get(origin, store, source)
    await get(origin, store, source, ModelName("llama3@canary"))
    (entry, _) = model_discovery.in_store(store, Defaults())
    assert entry.digest == manifest.digest_of(MODEL).removeprefix("sha256:")
    with entry.file.open("r+b") as damaged:
        damaged.seek(7 * BLOCK_BYTES)
        damaged.write(b"damaged")
    origin.asked.clear()
    store.quarantine(NAME)
    assert store.models() == ()
    await get(origin, store, source)
    assert origin.blocks_of(MODEL) == [7]
    assert entry.file.read_bytes() == MODEL


async def test_a_block_that_the_disk_has_lost_after_it_was_saved_is_fetched_again(origin: Origin, store: ModelStore) -> None:
    source, reached = origin.push({"model.gguf": MODEL}), lost_after(origin, 18)
    copying = asyncio.create_task(get(origin, store, source))
    await reached.wait()
    copying.cancel()
    await asyncio.wait({copying})
    before = origin.blocks_of(MODEL)[:18]
    with (store._root / "partial" / manifest.digest_of(MODEL).removeprefix("sha256:")).open("r+b") as partial:
        partial.seek(before[0] * BLOCK_BYTES)
        partial.write(b"damaged")
    origin.change = lambda _asked, data: data
    origin.asked.clear()
    await get(origin, store, source)
    assert sorted(origin.blocks_of(MODEL)) == sorted(set(range(21)) - set(before[1:]))
    (model,) = store.models()
    assert store.file(model).read_bytes() == MODEL


async def test_a_list_of_blocks_that_is_not_that_of_the_file_is_refused(origin: Origin, store: ModelStore) -> None:
    other = bytes(len(MODEL))
    file = VersionFile("model.gguf", origin.add(MODEL), len(MODEL), origin.add(b"".join(block_list.compute([other]))))
    config = manifest.encode_config(VersionConfig(), [file])
    origin.add(config)
    source = VERSION_SOURCE + origin.add(manifest.build(config, [file]))
    origin.blobs[file.digest] = other
    with pytest.raises(errors.BadRequest, match="do not make its file"):
        await get(origin, store, source)
    assert store.models() == ()


async def test_a_copy_without_peers_loses_few_blocks_when_it_is_killed(origin: Origin, store: ModelStore) -> None:
    """A killed process saves nothing on its way out."""
    source, reached = origin.push({"model.gguf": MODEL}), lost_after(origin, 18)
    exchange = Exchange()
    nodes = Directory(asyncio.get_running_loop().time)
    copying = asyncio.create_task(VersionCopy(origin, nodes, store, exchange).get(NAME, source, Assignment()))  # type: ignore[arg-type]
    await reached.wait()
    exchange.copies._lonely.clear()
    copying.cancel()
    await asyncio.wait({copying})
    origin.change = lambda _asked, data: data
    origin.asked.clear()
    await get(origin, store, source)
    assert 21 - 18 < len(origin.blocks_of(MODEL)) <= 21 - 18 + 16


async def test_what_a_publishers_folder_has_besides_is_left_where_it_is(origin: Origin, store: ModelStore) -> None:
    source = origin.push({"README.md": b"about it", "model.gguf": MODEL, "LICENSE": b"MIT"})
    await get(origin, store, source)
    (model,) = store.models()
    assert (model.parts, model.size, store.file(model).read_bytes()) == (1, len(MODEL), MODEL)
    assert list((store._root / "partial").iterdir()) == []
    with pytest.raises(errors.BadRequest, match=r"has no \.gguf file"):
        await get(origin, store, origin.push({"README.md": b"about it"}))
