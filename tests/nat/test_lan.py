"""`make up LAN=…` on a machine that others know by its address alone."""

import re
import sys

import pytest

from services.inference.models import model_discovery
from tests.nat import boxes
from tests.nat.topology import CommandFailed, Internet, Machine, Nat
from tests.stacks import REPOSITORY, until

pytestmark = pytest.mark.timeout(600)
#: Prints what `make up LAN=1` would use.
FIND_ADDRESS = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from stack.network import lan; print(lan.find_address('1'))"
WRONG_PIN = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="


async def test_other_machines_trust_the_pinned_key_and_join(net: Internet) -> None:
    guest = await net.house("guest", Nat.PORT_PRESERVING)
    stack = boxes.house(net.public, INFERENCE_BACKEND="echo", LAN=net.public.address)
    async with boxes.box(guest) as at_guest, stack as house:
        line = re.search(r"curl -fsSk --pinnedpubkey (\S+) (https://\S+)/install\.sh", (await house.aicli("stack", "up")).out)
        assert line is not None
        pin, address = line.groups()
        assert address == f"https://{net.public.address}:3000"
        # web forwards it to the gateway.
        assert "openapi" in await guest.run("curl", "-fsSk", "--pinnedpubkey", pin, f"{address}/openapi.json")
        with pytest.raises(CommandFailed, match="public key does not match pinned public key"):
            await guest.run("curl", "-fsSk", "--pinnedpubkey", f"sha256//{WRONG_PIN}", f"{address}/openapi.json")

        ticket = (await house.aicli("admin", "tickets", "create", "--role", "worker", "--json")).json()["ticket"]
        await at_guest.start("worker", "--join", ticket, "--model", f"lent={model_discovery.packaged()}")

        async def serves() -> bool:
            return any("lent" in row["models"] and row["usable"] for row in (await house.aicli("nodes", "--json")).json())

        await until(serves, seconds=60, what="the guest serves")


async def test_lan_1_takes_the_private_address_of_the_default_route(net: Internet) -> None:
    home = await net.house("home", Nat.PORT_PRESERVING)

    async def find(machine: Machine) -> str:
        return await machine.run(sys.executable, "-c", FIND_ADDRESS)

    assert (await find(home)).strip() == home.address
    with pytest.raises(CommandFailed, match="this machine has no default route"):
        await find(net.public)
    await net.public.run("ip", "route", "add", "default", "via", "5.5.5.254")
    with pytest.raises(CommandFailed, match="is in the internet, not in a LAN"):
        await find(net.public)
