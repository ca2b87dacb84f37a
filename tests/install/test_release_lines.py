"""The line of a release, typed on bare systems behind a NAT: no DNS, no root, no compiler, and only a mirror of the public index."""

import asyncio
import re
import time
from pathlib import Path

import pytest

from services.inference.models import model_discovery
from tests import capabilities
from tests.install import release_site, roots
from tests.install.roots import Account
from tests.install.test_lines import PYTHONS, serves, ticket
from tests.nat import boxes, topology
from tests.nat.boxes import Box
from tests.nat.topology import House, Internet, Nat
from tests.stacks import until
from tools.packages.install_index import Target

pytestmark = pytest.mark.timeout(3600)

#: pip tries five times, each for 15 seconds, and curl three times.
_GIVE_UP_SECONDS = 300.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    capabilities.require("nat")
    capabilities.require("roots")
    wanted = [Target("worker", "linux", "x86_64", python) for python in sorted(set(PYTHONS.values()))]
    return release_site.make(tmp_path_factory.mktemp("site"), wanted)


def line(user: Account, joins_with: str) -> str:
    release_site.use_mirror(user.home)
    return f"export PIP_CONFIG_FILE=/srv/pip.conf; {release_site.SCRIPT} | sh -s -- {joins_with}"


def count_wheels(asked: Path) -> int:
    return len(re.findall(r"GET \S+\.whl ", asked.read_text(encoding="utf-8")))


async def lose_the_network(at: House, user: Account, joins_with: str, asked: Path) -> None:
    """Cut the link while packages come in: the script says so and leaves nothing, and the ticket is unused."""
    installing = await user.start(line(user, joins_with))

    async def has_begun() -> bool:
        # pip installs nothing before it has them all.
        return count_wheels(asked) >= 3

    await until(has_begun, seconds=120, what="packages come in", clock=time.monotonic)
    await at.link_down()
    try:
        async with asyncio.timeout(_GIVE_UP_SECONDS):
            assert await installing.process.wait() != 0
    finally:
        await at.link_up()
    said = installing.text().splitlines()[-1]
    assert said.startswith("aimesh was not installed: ")
    assert said.endswith("run the same line again")
    assert not any(user.home.glob(".local/share/aimesh/app-*"))


async def refuse_tickets(house: Box, user: Account, tickets: dict[str, str]) -> None:
    """Type the line with tickets that are no good; an unused one stays so."""
    for found, sentence in tickets.items():
        done = await user.run(line(user, found), deadline_seconds=600)
        assert done.status != 0
        assert sentence in done.err.splitlines()[-1], done.err
    listed = (await house.aicli("admin", "tickets", "list", "--json")).json()
    assert [row["used"] for row in listed if row["role"] == "client"] == [0]


@pytest.mark.parametrize("suite", PYTHONS)
async def test_the_line_of_a_release_on_a_bare_system(suite: str, files: Path) -> None:
    root = await asyncio.to_thread(roots.find, suite)
    async with topology.internet() as net:
        await _type_the_line(suite, root, net, files)


async def _type_the_line(suite: str, root: Path, net: Internet, files: Path) -> None:
    at = await net.house("box", Nat.PORT_PRESERVING)
    async with (
        release_site.site(net, files) as asked,
        boxes.house(net.public, INFERENCE_BACKEND="echo") as house,
        roots.account(at, root) as worker,
        roots.account(at, root) as other,
    ):
        # Shorter is not possible; it is used after longer than that.
        expired, made_at = await ticket(house, "--role", "worker", "--ttl", "1m"), time.monotonic()
        model = worker.home / f"{suite}.gguf"
        model.write_bytes(model_discovery.packaged().read_bytes())
        good = await ticket(house, "--role", "worker", "--model", f"/srv/{model.name}")
        await lose_the_network(at, worker, good, asked)
        running = await worker.start(line(worker, good))
        await serves(house, running, suite)
        answer = await house.aicli("infer", "--model", suite, "--max-tokens", "8", "Count to five.")
        assert (answer.status, bool(answer.out.strip())) == (0, True), answer.err
        await asyncio.sleep(max(0.0, made_at + 61 - time.monotonic()))
        of_client = await ticket(house, "--role", "client")
        refused = {expired: "expired", good: "used up", of_client: "this ticket is for a client, not a worker"}
        await refuse_tickets(house, other, refused)
        await running.kill()
