"""Whom a call goes to, and how long it waits for somebody."""

import asyncio
import random
import time

import pytest

from shared import errors
from shared.directory import Directory
from shared.rpc import Pool
from shared.rpc.connection import Connection
from shared.types import Peer, Role


async def nobody(peer: Peer, transport: str) -> Connection:
    raise AssertionError("there is nobody to be reached")


async def test_who_learns_while_it_waits_that_it_was_revoked_waits_no_longer() -> None:
    refusal: errors.AimeshError | None = None
    nodes = Directory(asyncio.get_running_loop().time)
    pool = Pool(nodes, nobody, random.Random(1), patience_seconds=20, refusal=lambda: refusal)
    began = time.monotonic()
    waiting = asyncio.create_task(pool.connection(Role.GATEWAY, None, began + 20))
    await asyncio.sleep(0)
    refusal = errors.NodeRevoked("this machine was revoked")
    with pytest.raises(errors.NodeRevoked):
        await waiting
    assert time.monotonic() - began < 5


async def test_nobody_is_waited_for_no_longer_than_patience_lasts() -> None:
    pool = Pool(Directory(asyncio.get_running_loop().time), nobody, random.Random(1), patience_seconds=0.02)
    with pytest.raises(errors.NotReachable):
        await pool.connection(Role.GATEWAY, None, time.monotonic() + 20)
