"""The object store, as a folder and on a real S3 server."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from obstore import store as stores

from shared import errors
from shared.stores import objects
from shared.stores.objects import ObjectMissing, ObjectStore, StoreUnavailable
from tests import object_server
from tests.object_server import ObjectServer

PIECE = os.urandom(1 << 20)


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectServer]:
    with object_server.running() as server:
        # The first object creates the bucket.
        asyncio.run(objects.open_store(server.address, server.credentials).put("first", b""))
        yield server


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return objects.open_store(str(tmp_path / "store"), {})
    server: ObjectServer = request.getfixturevalue("s3")
    return objects.open_store(f"{server.address}/{tmp_path.name}", server.credentials)


async def names_in(store: ObjectStore, prefix: str = "") -> list[str]:
    return sorted([found.name async for found in store.list(prefix)])


async def pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield PIECE


async def test_it_keeps_replaces_lists_and_deletes_objects(store: ObjectStore) -> None:
    assert await names_in(store) == []
    await store.put("base/a/manifest.json", b"0123456789")
    await store.put("base/b/manifest.json", b"old")
    await store.put("base/b/manifest.json", b"new")
    await store.put("wal/x", b"")
    assert await names_in(store) == ["base/a/manifest.json", "base/b/manifest.json", "wal/x"]
    assert await names_in(store, "base") == ["base/a/manifest.json", "base/b/manifest.json"]
    assert await store.get("base/b/manifest.json") == b"new"
    assert (await store.get("base/a/manifest.json", 2, 5), await store.get("base/a/manifest.json", 7)) == (b"234", b"789")
    found = await store.head("base/a/manifest.json")
    assert (found.name, found.size) == ("base/a/manifest.json", 10)
    await store.delete(["base/a/manifest.json", "never/was"])
    assert await names_in(store) == ["base/b/manifest.json", "wal/x"]
    for look in (store.get("base/a/manifest.json"), store.head("base/a/manifest.json")):
        with pytest.raises(ObjectMissing, match=r"base/a/manifest\.json"):
            await look
    with pytest.raises(ObjectMissing, match=r"the store has no base/a/manifest\.json"):
        await anext(store.read("base/a/manifest.json"))


async def test_a_bucket_that_does_not_exist_yet_is_empty() -> None:
    with object_server.running() as server:
        store = objects.open_store(server.address, server.credentials)
        assert await names_in(store, "base/") == []
        with pytest.raises(ObjectMissing, match=r"mesh\.json"):
            await store.get("mesh.json")


async def test_of_several_at_once_one_creates_an_object(store: ObjectStore) -> None:
    won = await asyncio.gather(*(store.put_if_absent("site/2.json", str(number).encode()) for number in range(8)))
    assert sorted(won) == [False] * 7 + [True]
    assert await store.get("site/2.json") == str(won.index(True)).encode()


async def test_a_stream_is_stored_whole_or_not_at_all(store: ObjectStore) -> None:
    assert await store.put_stream("base/big", pieces(24)) == 24 << 20
    read = [piece async for piece in store.read("base/big")]
    assert b"".join(read) == PIECE * 24

    async def broken() -> AsyncIterator[bytes]:
        async for piece in pieces(12):
            yield piece
        raise ValueError("the source broke")

    async def endless() -> AsyncIterator[bytes]:
        yield PIECE * 10
        await asyncio.Event().wait()

    with pytest.raises(ValueError, match="the source broke"):
        await store.put_stream("base/broken", broken())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await store.put_stream("base/cut", endless())
    assert await names_in(store) == ["base/big"]


async def test_an_object_that_was_confirmed_but_not_stored_is_an_error(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lie(*_: object, **__: object) -> None:
        return None

    monkeypatch.setattr(objects.obstore, "put_async", lie)
    for attempt in (store.put("a", b"text"), store.put_if_absent("b", b"text"), store.put_stream("c", pieces(1))):
        with pytest.raises(StoreUnavailable, match=r"but does not have it|cannot be written|failed at"):
            await attempt


async def test_a_large_object_is_read_in_pieces(store: ObjectStore) -> None:
    for size in (0, objects._RANGE_BYTES, 2 * objects._RANGE_BYTES + 3):
        data = os.urandom(size)
        await store.put("large", data)
        read = [piece async for piece in store.read("large")]
        assert b"".join(read) == data
        assert max(map(len, read), default=0) <= 1 << 20


async def test_a_store_that_does_not_answer_has_a_deadline(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    await store.put("a", b"1")
    pieces_of_a = store.read("a")
    monkeypatch.setattr(objects, "_REQUEST_SECONDS", 0.05)
    for function in ("put_async", "get_async", "get_range_async"):
        monkeypatch.setattr(objects.obstore, function, hang)
    for attempt in (store.put("a", b""), store.get("a"), anext(pieces_of_a)):
        with pytest.raises(StoreUnavailable, match="did not answer"):
            await attempt


async def test_a_folder_has_no_leftovers_of_killed_uploads(tmp_path: Path) -> None:
    store = objects.open_store(str(tmp_path), {})
    await store.put("base/a/data", b"whole")
    for name, seconds in (("data#1", 3700), ("data#2", 60)):
        path = tmp_path / "base" / "a" / name
        path.write_bytes(b"half")
        os.utime(path, (time.time() - seconds,) * 2)
    assert await names_in(store) == ["base/a/data"]
    await store.delete_unfinished()
    assert not (tmp_path / "base" / "a" / "data#1").exists()
    # Another process may still be writing it.
    (tmp_path / "base" / "a" / "data#2").unlink()
    assert [path.name for path in (tmp_path / "base" / "a").iterdir()] == ["data"]
    await store.delete(["base/a/data"])
    assert not await asyncio.to_thread(lambda: list(tmp_path.iterdir()))


async def test_a_folder_reaches_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        real(handle)

    monkeypatch.setattr(objects.os, "fsync", fsync)
    store = objects.open_store(str(tmp_path), {})
    await store.put("base/one", b"1")
    await store.put_stream("base/two", pieces(1))
    await store.put_if_absent("base/three", b"3")
    assert synced == ["one", "base", "two", "base", "three", "base"]


async def test_refusals_of_s3_say_why_and_no_secret(s3: ObjectServer) -> None:
    wrong = objects.open_store(s3.address, {**s3.credentials, "AWS_SECRET_ACCESS_KEY": "not-the-secret"})
    with pytest.raises(StoreUnavailable, match="403") as refused:
        await wrong.put("a", b"")
    away = objects.open_store(s3.address, {**s3.credentials, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    with pytest.raises(StoreUnavailable, match="sending request") as unreachable:
        await away.put("a", b"")
    for error in (refused.value, unreachable.value):
        assert "secret" not in error.message
        assert "\n" not in error.message


@pytest.mark.parametrize("address", ["relative/folder", "ftp://host/folder", "s3://", ""])
def test_an_address_that_is_no_store_is_refused(address: str) -> None:
    with pytest.raises(errors.BadSettings, match=r"store|cannot be opened"):
        objects.open_store(address, {})


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.BadSettings, match="Not a directory"):
        objects.open_store(str(tmp_path / "file" / "below"), {})


def test_google_cloud_storage_is_opened_by_its_address(tmp_path: Path) -> None:
    with pytest.raises(errors.BadSettings, match="cannot be opened"):
        objects.open_store("gs://bucket/mesh", {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "missing.json")})
    assert stores.GCSStore is not None
