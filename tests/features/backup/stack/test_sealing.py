"""Only the recipients can read objects in the store, and a changed object is detected."""

import asyncio
import io
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from features.backup.stack import sealing
from features.backup.stack.sealing import CountedDigest, DamagedObject, WrongIdentity
from shared import errors
from shared.identity.node_keys import NodeKey, new_seed
from shared.types import MeshName
from tests.cases import case

MESH = MeshName("home")
KEY = NodeKey(new_seed())
OPERATOR, STACK, STRANGER = (sealing.new_identity() for _ in range(3))
RECIPIENTS = [sealing.recipient_of(OPERATOR), sealing.recipient_of(STACK)]
#: Rows that compress well, and bytes that don't.
PLAIN = b"".join(os.urandom(1 << 18) + b"a row of a table\n" * 20_000 for _ in range(12))


async def seal(plain: bytes) -> tuple[list[bytes], CountedDigest]:
    digest = CountedDigest()
    async with sealing.sealed(io.BytesIO(plain), RECIPIENTS) as pieces:
        return [piece async for piece in digest.over(pieces)], digest


async def feed(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def unseal(pieces: list[bytes], identity: str = STACK, most_bytes: int = len(PLAIN)) -> bytes:
    async with sealing.unsealed(feed(pieces), [identity], most_bytes) as file:
        return await asyncio.to_thread(file.read)


def test_a_stream_is_read_by_each_recipient_and_by_nobody_else() -> None:
    async def check() -> None:
        pieces, digest = await seal(PLAIN)
        body = b"".join(pieces)
        assert digest.size == len(body) < len(PLAIN)
        assert b"a row of a table" not in body
        assert await unseal(pieces) == await unseal(pieces, OPERATOR) == PLAIN
        with pytest.raises(WrongIdentity, match="does not open"):
            await unseal(pieces, STRANGER)

    asyncio.run(check())


def damages(body: bytes) -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "no age file", b"rubbish" * 100
    yield "cut off", body[:-1]
    yield "half", body[: len(body) // 2]
    yield "one bit", body[:-100] + bytes([body[-100] ^ 1]) + body[-99:]
    yield "appended", body + b"x"


def test_a_damaged_stream_is_an_error_at_its_end() -> None:
    async def check() -> None:
        pieces, _ = await seal(PLAIN)
        for name, body in damages(b"".join(pieces)):
            with case(name), pytest.raises(DamagedObject, match=r"truncated|decompressed|another|more than"):
                await unseal([body])

    asyncio.run(check())


def test_more_than_the_manifest_says_is_not_unpacked() -> None:
    async def check() -> None:
        pieces, _ = await seal(bytes(64 << 20))
        with pytest.raises(DamagedObject, match="more than its manifest says"):
            await unseal(pieces, most_bytes=1 << 20)

    asyncio.run(check())


def test_a_reader_that_leaves_early_stops_the_rest() -> None:
    async def check() -> None:
        pieces, _ = await seal(PLAIN)
        async with sealing.unsealed(feed(pieces), [STACK], len(PLAIN)) as file:
            assert await asyncio.to_thread(file.read, 10) == PLAIN[:10]
        with pytest.raises(ZeroDivisionError):
            async with sealing.sealed(io.BytesIO(PLAIN), RECIPIENTS):
                raise ZeroDivisionError

    before = psutil.Process().num_fds()
    asyncio.run(asyncio.wait_for(check(), 30))
    assert psutil.Process().num_fds() == before


def test_a_source_that_breaks_makes_no_object() -> None:
    class Broken(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, _: object) -> int:
            raise OSError(5, "the disk is broken")

    async def check() -> None:
        with pytest.raises(OSError, match="the disk is broken"):
            async with sealing.sealed(io.BufferedReader(Broken()), RECIPIENTS) as pieces:
                [piece async for piece in pieces]

    asyncio.run(asyncio.wait_for(check(), 30))


def test_a_small_object_counts_only_under_its_name_in_its_mesh_and_signed_by_it() -> None:
    body = sealing.seal_bytes("wal/1", b"segment", KEY, MESH, RECIPIENTS)
    assert sealing.open_bytes("wal/1", body, [STACK], {KEY.id}, MESH) == b"segment"
    for name, keys, mesh in (("wal/2", {KEY.id}, MESH), ("wal/1", {NodeKey(new_seed()).id}, MESH), ("wal/1", {KEY.id}, MeshName("other"))):
        with case((name, mesh)), pytest.raises(DamagedObject, match=f"{name} was not written by this mesh"):
            sealing.open_bytes(name, body, [STACK], keys, mesh)
    with pytest.raises(WrongIdentity, match="does not open"):
        sealing.open_bytes("wal/1", body, [STRANGER], {KEY.id}, MESH)
    for name, damaged in damages(body):
        with case(name), pytest.raises(DamagedObject, match="wal/1"):
            sealing.open_bytes("wal/1", damaged, [STACK], {KEY.id}, MESH)


def test_identities_that_are_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "identity"
    file.write_text(f"# made today\n\n{OPERATOR}\n")
    assert sealing.read_identities(file) == (OPERATOR,)
    for text, why in (
        ("", "no identity"),
        ("# only this", "no identity"),
        ("AGE-SECRET-KEY-1XYZ", "no age identity"),
        ("\xff", "identity"),
    ):
        file.write_bytes(text.encode("latin-1"))
        with case(text), pytest.raises(errors.BadSettings, match=why) as refused:
            sealing.read_identities(file)
        assert "XYZ" not in refused.value.message
    with pytest.raises(errors.BadSettings, match="cannot be read"):
        sealing.read_identities(tmp_path / "missing")


class StoreFails(errors.Unavailable):
    pass


async def failing() -> AsyncIterator[bytes]:
    raise StoreFails("the store is away")
    yield b""


async def test_a_reader_ends_though_no_thread_was_free_to_open_the_stream() -> None:
    """The store fails at once, and the reader uses the only thread."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    async with asyncio.timeout(10):
        with pytest.raises(StoreFails, match="the store is away"):
            async with sealing.unsealed(failing(), (sealing.new_identity(),), 10) as file:
                await asyncio.to_thread(file.read)


async def test_the_error_of_the_reader_is_the_one_that_is_raised() -> None:
    pieces, _ = await seal(PLAIN)
    with pytest.raises(ZeroDivisionError):
        async with sealing.unsealed(feed(pieces), [STACK], len(PLAIN)) as file:
            await asyncio.to_thread(file.read, 10)
            raise ZeroDivisionError
