"""When a worker gives up copying what another one pulls. ``test_version_exchange`` has the rest."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.inference import running_pull
from services.inference.models.model_store import ModelStore
from services.inference.running_pull import RunningCopy
from services.inference.version_copy import Exchange
from shared import errors
from shared.api.model_copies import RunningPull
from shared.models.block_list import BLOCK_BYTES
from shared.models.manifest import VersionFile
from shared.types import ModelName, NodeId


class NoOrigin:
    def __init__(self, file: VersionFile) -> None:
        self.file = file

    async def find_peers(self) -> list[Any]:
        return []

    async def read(self, block: int, size: int) -> bytes:
        raise errors.Unavailable("nobody has it")

    def report(self, key: bytes, why: str) -> None: ...


async def test_who_copies_much_slower_than_the_puller_gets_it_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = RunningCopy(ModelStore(tmp_path), Exchange(), ModelName("public"), NoOrigin)  # type: ignore[arg-type]
    running = RunningPull("sha256:" + "ab" * 32, 100 * BLOCK_BYTES, 0, bytes(32 * 50), NodeId("a"))
    try:
        await copy.follow(running)
        assert copy.known == 50
        monkeypatch.setattr(running_pull, "LAG_SECONDS", 0.0)
        await copy.follow(msgspec.structs.replace(running, start=50, blocks=b""))
        with pytest.raises(errors.Unavailable):
            await copy.follow(msgspec.structs.replace(running, start=50, blocks=bytes(32)))
    finally:
        await copy.stop()


async def test_what_another_worker_pulls_is_copied_anew(tmp_path: Path) -> None:
    copy = RunningCopy(ModelStore(tmp_path), Exchange(), ModelName("public"), NoOrigin)  # type: ignore[arg-type]
    running = RunningPull("sha256:" + "ab" * 32, 100 * BLOCK_BYTES, 0, bytes(32 * 50), NodeId("a"))
    try:
        await copy.follow(running)
        await copy.follow(msgspec.structs.replace(running, start=50, blocks=bytes(32), puller=NodeId("b")))
        assert copy.known == 0
        await copy.follow(msgspec.structs.replace(running, blocks=b"b" * 32, puller=NodeId("b")))
        assert copy.known == 1
        (blocks,) = (tmp_path / "partial").glob("*.blocks")
        assert blocks.read_bytes() == b"b" * 32 + bytes(32 * 99)
    finally:
        await copy.stop()
