"""A house, a box behind a NAT that lends its model, and a café behind another NAT: with the commands alone, as people would."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from services.inference import models
from tests.nat import boxes
from tests.nat.boxes import Box, Running
from tests.nat.topology import Internet, Nat
from tests.stacks import until

#: Enough for a stack on two cores, a model to load, and what follows.
pytestmark = pytest.mark.timeout(300)

MODEL = "lent"
SERVING_SECONDS = 40.0
CUT_SECONDS = 5.0
BACK_SECONDS = 5.0


@dataclass(slots=True)
class Mesh:
    house: Box
    box: Box
    cafe: Box

    async def ticket(self, role: str) -> str:
        made = await self.house.aicli("admin", "tickets", "create", "--role", role, "--json")
        ticket = made.json()["ticket"]
        assert isinstance(ticket, str)
        return ticket

    async def join_box(self, *arguments: str) -> Running:
        """The box's worker, in the foreground of its own terminal."""
        return await self.box.start("worker", *arguments, "--model", f"{MODEL}={models.packaged()}")

    async def node(self) -> dict[str, Any] | None:
        """The box's node as the gateway sees it; None while it does not."""
        rows = (await self.house.aicli("nodes", "--json")).json()
        return next((row for row in rows if MODEL in row["models"]), None)

    async def usable_node(self) -> dict[str, Any] | None:
        found = await self.node()
        return found if found is not None and found["usable"] else None

    async def ask(self) -> str:
        """The café asks the box's model, as a person would."""
        answer = await self.cafe.aicli("infer", "--model", MODEL, "--max-tokens", "16", "--temperature", "0", "Count to five.")
        assert answer.status == 0, answer.err
        return answer.out


@asynccontextmanager
async def mesh(net: Internet, nat: Nat) -> AsyncIterator[Mesh]:
    """The house is up, and the café has a profile; the box has not joined yet."""
    box, cafe = await net.house("box", nat), await net.house("cafe", nat)
    async with boxes.box(box) as at_box, boxes.box(cafe) as at_cafe, boxes.house(net.public, INFERENCE_BACKEND="echo") as house:
        made = Mesh(house, at_box, at_cafe)
        key = (await house.aicli("keys", "create", "cafe", "--json")).json()["key"]
        connected = await at_cafe.aicli("mesh", "connect", await made.ticket("client"), "--api-key-stdin", stdin=f"{key}\n")
        assert connected.status == 0, connected.err
        yield made


@pytest.mark.parametrize(("nat", "path"), [(Nat.PORT_PRESERVING, "punched"), (Nat.SYMMETRIC, "direct")], ids=str)
async def test_a_box_behind_nat_serves_a_cafe_behind_another_until_it_is_revoked(net: Internet, nat: Nat, path: str) -> None:
    async with mesh(net, nat) as people:
        worker = await people.join_box("--join", await people.ticket("worker"))
        node = await until(people.usable_node, seconds=SERVING_SECONDS, what="the box serves")
        # The house has a public address: only between two NATs that give every machine another port, a relay is needed.
        assert node["path"] == path
        assert await people.ask()

        await worker.kill()
        killed_at = time.monotonic()
        await people.join_box()
        await until(people.usable_node, seconds=SERVING_SECONDS, what="the box serves again")
        print("back after", time.monotonic() - killed_at)
        assert await people.ask()

        revoked = await people.house.aicli("admin", "nodes", "revoke", node["id"], "--yes")
        assert revoked.status == 0, revoked.err
        revoked_at = time.monotonic()

        async def is_gone() -> bool:
            return await people.usable_node() is None

        await until(is_gone, seconds=30, what="the box is gone")
        assert time.monotonic() - revoked_at < CUT_SECONDS
        refused = await people.cafe.aicli("infer", "--model", MODEL, "Hello?")
        assert refused.status == 5
