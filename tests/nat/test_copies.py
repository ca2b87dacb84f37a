"""Workers behind two NATs that copy a file which only one of them has."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.nat.dht import BOOTSTRAP
from tests.nat.topology import Internet, Nat
from tests.services.inference.models.copying import make_source

pytestmark = pytest.mark.usefixtures("nodes")


async def test_workers_behind_two_nats_copy_from_each_other(net: Internet, tmp_path: Path) -> None:
    source = make_source(tmp_path, 8)
    houses = [await net.house("box", Nat.PORT_PRESERVING), await net.house("cafe", Nat.PORT_PRESERVING)]
    names = ("holder", "near", "far", "farther")
    processes = []
    try:
        for number, name in enumerate(names):
            processes.append(await houses[number // 2].start(sys.executable, "-m", "tests.nat.copier", name, str(tmp_path), *BOOTSTRAP))
        async with asyncio.timeout(60):
            lines = [await each.stdout.readline() for each in processes if each.stdout is not None]
            for each in processes:
                assert each.stdin is not None
                each.stdin.write(b" ".join(line.strip() for line in lines) + b"\n")
            copied = [int(await each.stdout.readline()) for each in processes[1:] if each.stdout is not None]
        assert copied == [len(source.body)] * 3
        assert all((tmp_path / name / "partial").read_bytes() == source.body for name in names[1:])
    finally:
        for each in processes:
            each.kill()
            await each.wait()
