"""Files on a real PostgreSQL, and a folder or S3 whose objects are damaged, exchanged and lost."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from uuid import UUID

import pytest

from features.files.contract import FilePurpose, ListFiles
from features.files.gateway import file_objects
from features.files.gateway.rules.sealed_parts import INLINE_BYTES, PART_BYTES
from features.files.gateway.store import FileOwner, NewFile
from shared import errors
from shared.stores import objects
from shared.stores.objects import ObjectStore
from tests import object_server
from tests.features.files.gateway import file_site
from tests.features.files.gateway.file_site import ADA, EVE, Site
from tests.object_server import ObjectServer
from tests.testnet import until

LARGE = os.urandom(2 * PART_BYTES + 12345)


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectServer]:
    with object_server.running() as server:
        asyncio.run(objects.open_store(server.address, server.credentials).put("first", b""))
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> ObjectStore:
    return objects.open_store(str(tmp_path / "store"), {})


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return objects.open_store(str(tmp_path / "store"), {})
    server: ObjectServer = request.getfixturevalue("s3")
    return objects.open_store(f"{server.address}/{tmp_path.name}", server.credentials)


@pytest.fixture
async def site(plain_url: str, folder: ObjectStore) -> AsyncIterator[Site]:
    async with file_site.running(plain_url, folder) as found:
        yield found


def parts_of(folder: Path) -> list[Path]:
    return sorted((folder / "store" / "files").rglob("*/*"))


async def test_files_of_every_size_are_read_as_they_were_stored(plain_url: str, store: ObjectStore) -> None:
    async with file_site.running(plain_url, store) as site:
        for size in (0, 1, INLINE_BYTES, INLINE_BYTES + 1, PART_BYTES, PART_BYTES + 1):
            data = LARGE[:size]
            made = await site.store(data)
            assert (made.size, await site.read(made.id)) == (size, data)
        made = await site.store(LARGE)
        assert await site.read(made.id) == LARGE
        names = [found.name async for found in store.list("files")]
        assert len(names) == 1 + 1 + 2 + 3
        for start, end in ((0, 1), (PART_BYTES - 1, PART_BYTES + 1), (2 * PART_BYTES, len(LARGE)), (5, len(LARGE) - 5)):
            assert await site.read(made.id, start=start, end=end) == LARGE[start:end]
        assert LARGE[:64] not in b"".join([await store.get(name) for name in names])
        listed = (await site.storage.list_of(ADA.tenant_id, ListFiles())).files
        for file in listed:
            await site.storage.delete_of(ADA, file.id)
        assert [found.name async for found in store.list("files")] == []
        assert (await site.count("files"), await site.count("file_parts")) == (0, 0)


async def test_a_damaged_exchanged_or_missing_part_is_an_error_and_never_another_text(site: Site, tmp_path: Path) -> None:
    made, others = await site.store(LARGE), await site.store(os.urandom(len(LARGE)), EVE)
    parts, strange = [
        sorted((tmp_path / "store" / "files" / str((await site.rows.find(by.tenant_id, file.id)).id)).iterdir())
        for by, file in ((ADA, made), (EVE, others))
    ]
    good = parts[1].read_bytes()
    damages = {
        "a byte flipped": good[:-1] + bytes([good[-1] ^ 1]),
        "another number": parts[0].read_bytes(),
        "another tenant's": strange[1].read_bytes(),
        "cut": good[:1000],
        "empty": b"",
    }
    for name, damaged in damages.items():
        parts[1].write_bytes(damaged)
        with pytest.raises(errors.FileDamaged, match="part 1 of the file isn't what was stored"):
            pytest.fail(f"{name}: {len(await site.read(made.id))} bytes")
        assert await site.read(made.id, start=0, end=PART_BYTES) == LARGE[:PART_BYTES]
    parts[1].unlink()
    with pytest.raises(errors.FileDamaged, match="missing in the store"):
        await site.read(made.id)


async def test_a_file_without_its_end_is_noticed(site: Site) -> None:
    made = await site.store(LARGE)
    async with site.database.transaction() as transaction:
        assert transaction._connection is not None
        await transaction._connection.execute("DELETE FROM file_parts WHERE number = 2")
        await transaction._connection.execute("UPDATE files SET bytes = $1", 2 * PART_BYTES)
    with pytest.raises(errors.FileDamaged, match="part 1 of the file isn't what was stored"):
        await site.read(made.id)
    async with site.database.transaction() as transaction:
        assert transaction._connection is not None
        await transaction._connection.execute("DELETE FROM file_parts")
    with pytest.raises(errors.FileDamaged, match="a part of the file is missing"):
        await site.read(made.id)


async def test_tenants_see_and_delete_only_their_own_files(site: Site) -> None:
    made = await site.store(b"mine")
    assert (await site.storage.list_of(EVE.tenant_id, ListFiles())).files == ()
    for ask in (
        site.read(made.id, EVE),
        site.storage.delete_of(EVE, made.id),
        site.read("file-" + "a" * 26),
        site.read("nonsense"),
    ):
        with pytest.raises(errors.NotFound):
            await ask
    # Even a query that forgets the tenant.
    for tenant, expected in ((ADA.tenant_id, 1), (EVE.tenant_id, 0)):
        async with site.database.bound(tenant) as transaction:
            assert transaction._connection is not None
            for table in ("files", "file_parts"):
                assert await transaction._connection.fetchval(f"SELECT count(*) FROM {table}") == expected
    assert await site.read(made.id) == b"mine"
    await site.storage.delete_of(ADA, made.id)
    with pytest.raises(errors.NotFound):
        await site.read(made.id)
    assert site.acts.reported == [("file.delete", made.id, {})]


async def test_a_full_quota_stores_nothing_and_says_how_much_is_used(site: Site, tmp_path: Path) -> None:
    site.most_bytes = len(LARGE) + 10
    await site.store(LARGE)
    for announced in (0, 11):
        with pytest.raises(
            errors.NotAllowed, match=rf"\({len(LARGE)} bytes\); with 11 more they would exceed the limit of {len(LARGE) + 10}"
        ):
            await site.store(b"x" * 11, announced=announced)
    await site.store(b"x" * 10, EVE)
    # Two at once do not share the rest.
    results = await asyncio.gather(*(site.store(b"x" * 6) for _ in range(5)), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["FileFacts", *["NotAllowed"] * 4]
    assert await site.count("files") == 3
    assert len(parts_of(tmp_path)) == 3


async def test_files_and_batches_have_a_largest_size(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.files.feature.MAX_FILE_BYTES", PART_BYTES + 10)
    monkeypatch.setattr("features.files.feature.MAX_BATCH_BYTES", 100)
    for size, purpose, announced in (
        (PART_BYTES + 11, FilePurpose.VISION, 0),
        (101, FilePurpose.BATCH, 0),
        (5, FilePurpose.VISION, PART_BYTES + 11),
    ):
        with pytest.raises(errors.TooLarge, match="may have at most"):
            await site.store(LARGE[:size], purpose=purpose, announced=announced)
    assert (await site.count("files"), parts_of(tmp_path)) == (0, [])


async def test_a_full_disk_stores_nothing(site: Site, folder: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [file_objects._RESERVE_BYTES + PART_BYTES + 5000]

    async def free_bytes() -> int:
        return free[0]

    monkeypatch.setattr(folder, "free_bytes", free_bytes)
    with pytest.raises(errors.InsufficientStorage, match="the file needs 8"):
        await site.store(LARGE, announced=len(LARGE))
    put = folder.put

    async def fails(name: str, data: bytes) -> None:
        await put(name, data)
        free[0] = 0
        raise objects.StoreUnavailable("the store failed")

    # It fills up meanwhile.
    monkeypatch.setattr(folder, "put", fails)
    with pytest.raises(errors.InsufficientStorage):
        await site.store(LARGE)
    assert (await site.count("files"), parts_of(tmp_path)) == (0, [])


async def test_an_upload_that_breaks_off_leaves_nothing(site: Site, tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield LARGE
        raise errors.Cancelled("the client disconnected")

    with pytest.raises(errors.Cancelled):
        await site.storage.store(FileOwner(ADA.tenant_id, ADA.user_id, None), pieces(), lambda: NewFile("a", FilePurpose.BATCH))
    assert (await site.count("files"), parts_of(tmp_path), site.memory.held_bytes) == (0, [], 0)


async def test_what_a_killed_gateway_leaves_is_cleaned(site: Site, folder: ObjectStore, tmp_path: Path) -> None:
    kept = await site.store(LARGE)
    arrived = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield LARGE
        arrived.set()
        await asyncio.Event().wait()

    new = NewFile("a", FilePurpose.BATCH)
    upload = asyncio.create_task(site.storage.store(FileOwner(ADA.tenant_id, ADA.user_id, None), pieces(), lambda: new))
    await arrived.wait()
    await until(lambda: [path for path in parts_of(tmp_path) if "#" not in path.name][4:])  # obstore is writing none
    upload.cancel()
    await asyncio.wait([upload])
    await site.storage.clean()
    assert (await site.count("files"), len(parts_of(tmp_path))) == (2, 5)
    async with site.database.transaction() as transaction:
        assert transaction._connection is not None
        await transaction._connection.execute("UPDATE files SET expires_at = now() WHERE state = 'uploading'")
    await site.storage.clean()
    assert (await site.count("files"), len(parts_of(tmp_path))) == (1, 3)
    # Objects without a row: of a database that was restored.
    for name in ("files/0190f6a2-0000-7000-8000-000000000000/0", "files/stray"):
        await folder.put(name, b"x")
    await _search(site)
    assert len(parts_of(tmp_path)) == 4
    # What obstore had not finished.
    (tmp_path / "store" / "files" / "0190f6a2-0000-7000-8000-000000000000" / "1#1").write_bytes(b"x")
    for path in (tmp_path / "store" / "files").rglob("*"):
        os.utime(path, (0, 0))
    await site.storage.clean()
    assert len(parts_of(tmp_path)) == 5, "another gateway has looked today"
    await _search(site)
    assert len(parts_of(tmp_path)) == 3
    assert not (tmp_path / "store" / "files" / "stray").exists()
    assert await site.read(kept.id) == LARGE


async def _search(site: Site) -> None:
    async with site.database.transaction() as transaction:
        assert transaction._connection is not None
        await transaction._connection.execute("UPDATE file_store SET searched_at = 'epoch'")
    await site.storage.clean()


async def test_files_expire(site: Site) -> None:
    made, forever = await site.store(b"a", expires_seconds=3600), await site.store(b"b")
    assert made.expires_at is not None
    assert (made.expires_at - made.created_at).total_seconds() == 3600
    async with site.database.transaction() as transaction:
        assert transaction._connection is not None
        await transaction._connection.execute("UPDATE files SET expires_at = now() WHERE expires_at IS NOT NULL")
    with pytest.raises(errors.NotFound):
        await site.read(made.id)
    assert [file.id for file in (await site.storage.list_of(ADA.tenant_id, ListFiles())).files] == [forever.id]
    await site.storage.clean()
    assert await site.count("files") == 1


async def test_another_store_or_an_empty_one_serves_no_files_and_says_so(site: Site, plain_url: str, tmp_path: Path) -> None:
    made = await site.store(LARGE)
    assert [check.ok for check in await site.storage.checks()] == [True]
    empty, others = objects.open_store(str(tmp_path / "empty"), {}), objects.open_store(str(tmp_path / "others"), {})
    await others.put("aimesh-store", b"another")
    for store, said in ((empty, "none"), (others, "another")):
        async with file_site.running(plain_url, store) as other:
            for ask in (other.read(made.id), other.store(b"x"), other.storage.clean(), other.storage.delete_of(ADA, made.id)):
                with pytest.raises(file_objects.OtherStore, match=f"has the id {said}"):
                    await ask
            (check,) = await other.storage.checks()
            assert (check.name, check.ok, check.needed) == ("files", False, False)
    assert await site.read(made.id) == LARGE


async def test_gateways_that_start_at_once_use_one_store_and_one_with_another_folder_none(plain_url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        places = ("a", "a", "b", "a", "b")
        sites = [
            await stack.enter_async_context(file_site.running(plain_url, objects.open_store(str(tmp_path / place), {}))) for place in places
        ]
        results = await asyncio.gather(*(site.store(LARGE) for site in sites), return_exceptions=True)
        good = {place for place, result in zip(places, results, strict=True) if not isinstance(result, BaseException)}
        assert len(good) == 1
        assert {type(result) for place, result in zip(places, results, strict=True) if place not in good} == {file_objects.OtherStore}


async def test_a_gateway_that_died_before_its_store_had_the_id_holds_nobody_up(site: Site, folder: ObjectStore) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "put_if_absent", _dies)
        with pytest.raises(objects.StoreUnavailable):
            await site.store(b"x")
    made = await site.store(b"x")
    assert await site.read(made.id) == b"x"


async def _dies(*_args: object) -> None:
    raise objects.StoreUnavailable("it dies")


async def test_a_store_that_is_away_is_503_and_a_file_is_deleted_later(
    site: Site, folder: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await site.store(LARGE)

    async def away(*_args: object, **_more: object) -> None:
        raise objects.StoreUnavailable("the store is away")

    with monkeypatch.context() as patch:
        for name in ("get", "put", "delete"):
            patch.setattr(folder, name, away)
        for ask in (site.read(made.id), site.store(LARGE)):
            with pytest.raises(errors.Unavailable, match="away"):
                await ask
        await site.storage.delete_of(ADA, made.id)
        with pytest.raises(errors.NotFound):
            await site.read(made.id)
        assert await site.count("files") == 2
    await site.storage.clean()
    assert await site.count("files") == 0


async def test_failures_of_the_store_are_counted_also_while_no_file_is_needed(
    site: Site, folder: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failures() -> float:
        return site.objects._errors.labels("file")._value.get()

    async def away(*_args: object, **_more: object) -> None:
        raise objects.StoreUnavailable("the store is away")

    async def silent(*_args: object, **_more: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(file_objects, "_TRY_SECONDS", 0.01)
    monkeypatch.setattr(file_objects, "_ANSWER_SECONDS", 0.01)
    await site.store(LARGE)
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(site.objects.watch())
        for way in (away, silent):
            before = failures()
            with monkeypatch.context() as patch:
                patch.setattr(folder, "get", way)
                await until(lambda before=before: failures() > before + 2)  # type: ignore[misc]
        watching.cancel()


async def test_bytes_are_measured_by_store(site: Site) -> None:
    for data in (b"abc", LARGE):
        await site.store(data)
    await site.storage.clean()
    assert len(LARGE) == 8_400_953
    text = site.metrics.render()
    assert 'ai_platform_files_bytes{store="database"} 3.0' in text
    assert 'ai_platform_files_bytes{store="file"} 8.400953e+06' in text


async def test_an_s3_server_that_dies_in_mid_upload_leaves_no_file(plain_url: str) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(object_server.running())

        async def pieces() -> AsyncIterator[bytes]:
            yield LARGE
            stack.close()
            yield LARGE

        async with file_site.running(plain_url, objects.open_store(server.address, server.credentials)) as site:
            owner, new = FileOwner(ADA.tenant_id, ADA.user_id, 4 * len(LARGE)), NewFile("a", FilePurpose.BATCH)
            with pytest.raises(errors.Unavailable, match="the store failed at files/"):
                await site.storage.store(owner, pieces(), lambda: new)
            assert (await site.storage.list_of(ADA.tenant_id, ListFiles())).files == ()
            # Its objects go when the store is back, and count no more.
            assert len(await site.rows.list_dead()) == 1
            await site.rows.begin(owner, UUID(int=1), 4 * len(LARGE))


async def test_erasure_deletes_all_files_of_a_tenant(site: Site, tmp_path: Path) -> None:
    for data in (b"small", LARGE):
        await site.store(data)
    others = await site.store(b"others", EVE)
    await site.rows.erase(ADA.tenant_id)
    assert (await site.storage.list_of(ADA.tenant_id, ListFiles())).files == ()
    await site.storage.clean()
    assert (await site.count("files"), parts_of(tmp_path), await site.read(others.id, EVE)) == (1, [], b"others")


async def test_memory_for_uploads_and_downloads_is_bounded(site: Site) -> None:
    made, memory = await site.store(LARGE), site.memory
    found = await site.storage.find(ADA.tenant_id, made.id)
    reading = [site.storage.read(found, 0, len(LARGE)) for _ in range(9)]
    with pytest.raises(errors.Limited):
        for each in reading:
            await anext(each)
    assert 0 < memory.held_bytes <= 64 << 20
    for each in reading:
        await each.aclose()
    assert memory.held_bytes == 0
