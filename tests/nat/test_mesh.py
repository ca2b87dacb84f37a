"""A stack, a machine behind a NAT that lends its model, and a café behind another NAT: only with the commands that users type."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from services.inference.models import model_discovery
from tests import stopwatch
from tests.nat import boxes
from tests.nat.boxes import Box, Running
from tests.nat.topology import PUBLIC_ADDRESSES, House, Internet, Machine, Nat
from tests.stacks import until

#: Only guards against hanging: a stack on two busy cores, a model to load and the steps of the test take minutes.
pytestmark = pytest.mark.timeout(900)

MODEL = "lent"
#: From the start of the command, on two busy cores: Python, the sidecar, the mesh, and loading the model.
SERVING_SECONDS = 40.0
GONE_SECONDS, BACK_SECONDS, CUT_SECONDS, OUTAGE_SECONDS = 3.5, 5.0, 5.0, 10.0
DRAWN_ADDRESS = "5.5.5.77"
NOTHING_THERE = 5
#: The DNS name of the machine with the DHT nodes, that machine's next address, and when the box is cut off and back after the move.
NAME, NEXT_ADDRESS, CUT_OFF_SECONDS, MOVED_SECONDS = "house.test", "5.5.5.78", 20.0, 60.0


@dataclass(slots=True)
class Mesh:
    house: Box
    box: Box
    cafe: Box

    async def ticket(self, role: str) -> str:
        made = await self.house.aicli("admin", "tickets", "create", "--role", role, "--json")
        return str(made.json()["ticket"])

    async def start_box(self, *arguments: str) -> Running:
        """Start the box's worker as in a separate terminal."""
        return await self.box.start("worker", *arguments, "--model", f"{MODEL}={model_discovery.packaged()}")

    async def used_node(self) -> dict[str, Any] | None:
        """Return the box's row in the stack's `aicli nodes`, if its model is used."""
        rows = (await self.house.aicli("nodes", "--json")).json()
        return next((row for row in rows if MODEL in row["models"] and row["usable"]), None)

    async def serves(self, *, seconds: float = SERVING_SECONDS) -> dict[str, Any]:
        return await until(self.used_node, seconds=seconds, what="the box serves")

    async def serves_no_more(self, *, seconds: float) -> None:
        async def is_gone() -> bool:
            return await self.used_node() is None

        await until(is_gone, seconds=seconds, what="the box is gone")

    async def ask(self) -> str:
        """Ask the box's model from the café."""
        answer = await self.cafe.aicli("infer", "--model", MODEL, "--max-tokens", "16", "Count to five.")
        assert answer.status == 0, answer.err
        assert answer.out.strip()
        return answer.out


@asynccontextmanager
async def mesh(net: Internet, nat: Nat, home: Machine, **settings: str) -> AsyncIterator[Mesh]:
    """Start the stack and connect the café; the box does not join yet."""
    box, cafe = await net.house("box", nat), await net.house("cafe", nat)
    async with boxes.box(box) as at_box, boxes.box(cafe) as at_cafe, boxes.house(home, INFERENCE_BACKEND="echo", **settings) as house:
        made = Mesh(house, at_box, at_cafe)
        key = (await house.aicli("keys", "create", "cafe", "--json")).json()["key"]
        connected = await at_cafe.aicli("mesh", "connect", await made.ticket("client"), "--api-key-stdin", stdin=f"{key}\n")
        assert connected.status == 0, connected.err
        yield made


@asynccontextmanager
async def rented_machine(machine: Machine, host: str = PUBLIC_ADDRESSES[0]) -> AsyncIterator[dict[str, str]]:
    """Run DHT nodes and a relay on a machine with a public address; yield the settings with which a stack uses them."""
    async with boxes.box(machine) as rented:
        settings = {}
        for name, arguments in (
            ("DHT_BOOTSTRAP", ("bootstrap", "--host", host)),
            ("DHT_RELAYS", ("relay", "--host", host)),
        ):
            running = await rented.start("mesh", *arguments)
            await running.says(f"{name}=", seconds=60)
            found = re.search(rf"^{name}=(\S+)$", running.text(), re.MULTILINE)
            assert found is not None, running.text()
            settings[name] = found[1]
        yield settings


async def revoke(people: Mesh, node: dict[str, Any]) -> None:
    """Revoke the node: it is cut off everywhere within seconds."""
    revoked = await people.house.aicli("admin", "nodes", "revoke", node["id"], "--yes")
    assert revoked.status == 0, revoked.err
    await people.serves_no_more(seconds=CUT_SECONDS)
    refused = await people.cafe.aicli("infer", "--model", MODEL, "Hello?")
    assert refused.status == NOTHING_THERE
    assert "revoked" in refused.err


async def test_a_box_at_home_serves_a_cafe_is_killed_moves_house_and_is_revoked(net: Internet) -> None:
    async with mesh(net, Nat.PORT_PRESERVING, net.public, MESH_RELAY="true") as people:
        worker = await people.start_box("--join", await people.ticket("worker"))
        node = await people.serves()
        assert node["path"] == "punched"
        await people.ask()

        await worker.kill()
        await people.serves_no_more(seconds=GONE_SECONDS)
        started_at = stopwatch.now()
        worker = await people.start_box()
        await people.serves()
        assert stopwatch.now() - started_at < BACK_SECONDS
        await people.ask()

        home = people.box.machine
        assert isinstance(home, House)
        await home.link_down()
        await asyncio.sleep(OUTAGE_SECONDS)
        await home.change_public_address(DRAWN_ADDRESS)
        await home.link_up()
        up_at = stopwatch.now()
        node = await people.serves()
        assert stopwatch.now() - up_at < BACK_SECONDS
        await people.ask()

        await revoke(people, node)


async def test_nobody_has_a_public_address_and_all_nats_are_symmetric(net: Internet) -> None:
    home = await net.house("home", Nat.SYMMETRIC)
    async with rented_machine(net.public) as settings, mesh(net, Nat.SYMMETRIC, home, **settings) as people:
        await people.start_box("--join", await people.ticket("worker"))
        node = await people.serves()
        assert node["path"] == "relayed"
        await people.ask()
        await revoke(people, node)


async def test_a_box_is_back_when_the_name_of_the_house_points_to_its_new_address(net: Internet) -> None:
    net.point(NAME, PUBLIC_ADDRESSES[0])
    async with mesh(net, Nat.PORT_PRESERVING, net.public, DHT_HOST=NAME) as people:
        await people.start_box("--join", await people.ticket("worker"))
        await people.serves()
        await net.move_public(NEXT_ADDRESS)
        await people.serves_no_more(seconds=CUT_OFF_SECONDS)
        await back_behind_the_name(net, people)


async def test_a_box_is_back_when_the_rented_machine_with_dht_and_relay_has_moved(net: Internet) -> None:
    net.point(NAME, PUBLIC_ADDRESSES[0])
    home = await net.house("home", Nat.SYMMETRIC)
    async with rented_machine(net.public, NAME) as settings, mesh(net, Nat.SYMMETRIC, home, **settings) as people:
        await people.start_box("--join", await people.ticket("worker"))
        assert (await people.serves())["path"] == "relayed"
        await net.move_public(NEXT_ADDRESS)
        await people.serves_no_more(seconds=CUT_OFF_SECONDS)
        await back_behind_the_name(net, people)


async def back_behind_the_name(net: Internet, people: Mesh) -> None:
    net.point(NAME, NEXT_ADDRESS)
    # Timers decide how long this takes, not the machine's speed, so a busy machine must make it, too.
    await until(people.used_node, seconds=MOVED_SECONDS, what="the box serves again", clock=time.monotonic)
    await people.ask()
