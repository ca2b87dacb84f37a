"""The lines that strangers type, as the mesh prints them, run in an empty home behind a NAT: no root, no DNS, no index but the mesh's."""

import asyncio
import hashlib
import json
import platform
import re
import shlex
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from services.inference.models import model_discovery
from services.web import install_script
from services.web.install_script import PackageIndex
from tests import capabilities
from tests.install import strangers
from tests.install.strangers import Stranger
from tests.nat import boxes, topology
from tests.nat.boxes import Box
from tests.nat.topology import Internet, Nat
from tests.stacks import until
from tools.packages import install_index
from tools.packages.install_index import Target

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

PASSWORD = "correct horse battery staple"
MODEL = "lent"
#: Only guards against hanging.
SERVING_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Town:
    """A mesh on the Internet that others know by its address and the key of its certificate."""

    net: Internet
    house: Box
    #: Its package index.
    index: Path

    async def line_of_ticket(self, *options: str) -> str:
        made = await self.house.aicli("admin", "tickets", "create", "--json", *options)
        return str(made.json()["install"])

    def publish_another_version(self) -> None:
        """Publish lists with other hashes, as of another version."""
        file = self.index / install_script.INDEX_FILE
        known = msgspec.json.decode(file.read_bytes(), type=PackageIndex)
        sha256 = dict(known.sha256)
        for name in ("client.txt", "mesh.txt", "worker.txt"):
            text = (self.index / name).read_bytes() + b"# another version\n"
            (self.index / name).write_bytes(text)
            sha256[name] = hashlib.sha256(text).hexdigest()
        file.write_bytes(msgspec.json.encode(msgspec.structs.replace(known, sha256=sha256)))


def copy_index(into: Path) -> None:
    """Copy the package index of this checkout, with the packages for this machine."""
    place = install_script.default_folder()
    install_index.fill(place, [Target("worker", "linux", platform.machine(), "{}.{}".format(*sys.version_info[:2]))])
    shutil.copytree(place, into)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Town]:
    capabilities.require("nat")
    capabilities.require("systemd")
    index = tmp_path_factory.mktemp("index") / "install"
    async with topology.internet() as net, AsyncExitStack() as opened:
        settings = {"LAN": net.public.address, "WEB_SERVICE_PORT": "443", "INSTALL_FOLDER": str(index)}
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.to_thread(copy_index, index))
            house = await opened.enter_async_context(boxes.house(net.public, INFERENCE_BACKEND="echo", **settings))
        registered = await house.aicli("register", "ann", "--email", "ann@example.org", "--password-stdin", stdin=f"{PASSWORD}\n")
        assert registered.status == 0, registered.err
        yield Town(net, house, index)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ann(town: Town) -> AsyncIterator[Stranger]:
    """Types the line that `make up` prints, and logs in."""
    line = re.search(r"^  other machines +(curl .*\| sh) ", (await town.house.aicli("stack", "up")).out, re.MULTILINE)
    assert line is not None
    async with strangers.stranger(await town.net.house("cafe", Nat.PORT_PRESERVING)) as user:
        done = await user.types(line[1])
        assert (done.status, done.out.startswith("aicli ")) == (0, True), done.err
        assert done.err.splitlines()[-1] == "Next: aicli login"
        login = await user.types(f"echo {shlex.quote(PASSWORD)} | aicli login ann --password-stdin")
        assert (login.status, login.out.startswith("Logged in as ann;")) == (0, True), login.err
        yield user


async def test_client_line(town: Town, ann: Stranger) -> None:
    answer = await ann.types("aicli infer -m echo 'three small words'")
    assert (answer.status, answer.out) == (0, "three small words\n"), answer.err


async def test_a_client_that_is_to_be_a_worker_is_told_the_line(town: Town, ann: Stranger) -> None:
    refused = await ann.types("aicli worker --join aip_join_x")
    assert (refused.status, refused.err.count("\n")) == (2, 1), refused.err
    line = re.search(r"curl .*/install\.sh \| sh -s -- TICKET$", refused.err.strip())
    assert line is not None, refused.err
    # It reaches the script: a ticket that is none ends it.
    done = await ann.types(line[0].replace("TICKET", "nothing"))
    assert done.err == "aimesh was not installed: this is no ticket: it starts with aip_join_\n"


async def connect_a_client(town: Town) -> None:
    """Type the line of a client that connects as workers do."""
    key = (await town.house.aicli("keys", "create", "mesh", "--json")).json()["key"]
    async with strangers.stranger(await town.net.house("hotel", Nat.PORT_PRESERVING)) as user:
        of_worker = await town.line_of_ticket("--role", "worker", "--label", "line=wrong")
        refused = await user.types(of_worker.replace("| sh", "| AIMESH_MESH=1 sh"))
        assert refused.status != 0
        assert "this ticket is for a worker, not a client" in refused.err.splitlines()[-1]
        done = await user.types(await town.line_of_ticket("--role", "client"))
        assert done.status == 0, done.err
        answer = await user.types("aicli infer -m echo 'through the NAT'", AICLI_API_KEY=key)
        assert (answer.status, answer.out) == (0, "through the NAT\n"), answer.err
    listed = (await town.house.aicli("admin", "tickets", "list", "--json")).json()
    assert next(row["used"] for row in listed if row["labels"] == {"line": "wrong"}) == 0


async def answers(user: Stranger) -> bool:
    answer = await user.types(f"aicli infer --no-cache --model {MODEL} --max-tokens 8 'Count to five.'")
    return answer.status == 0 and bool(answer.out.strip())


async def serves(user: Stranger, when: str) -> None:
    async def has_answered() -> bool:
        return await answers(user)

    await until(has_answered, seconds=SERVING_SECONDS, what=f"the worker answers {when}")


async def serve_restart_and_update(town: Town, ann: Stranger) -> None:
    """Type the line of a worker, in a network that lets nothing out but HTTPS."""
    box = await town.net.house("box", Nat.PORT_PRESERVING)
    await box.allow_only(443, town.net.public.address)
    async with strangers.stranger(box, has_systemd=True) as user:
        model = user.home / f"{MODEL}.gguf"
        model.symlink_to(model_discovery.packaged())
        done = await user.types(await town.line_of_ticket("--role", "worker", "--model", str(model)))
        assert done.status == 0, done.err
        await serves(ann, "after the line")
        again = await user.types("aicli worker install")
        assert (again.status, "Unchanged: " in again.err) == (0, True), again.err

        await user.power_off()
        await user.power_on()
        await serves(ann, "after a restart of the machine")

        async def says_so() -> bool:
            # The worker writes its status a moment after it has announced a model.
            told = json.loads((await user.types("aicli worker status --json")).out)
            return bool(told["running"]) and told["status"]["models"] == [MODEL]

        await until(says_so, what="the worker's status names its model")

        current = user.home / ".local/share/aimesh/current"
        before = current.readlink()
        assert "already up to date" in (await user.types("aicli update")).out
        town.publish_another_version()
        updated = await user.types("aicli update")
        assert (updated.status, updated.out.splitlines()[-2:]) == (0, ["aicli is updated.", "aimesh-worker is restarted."]), updated.err
        assert current.readlink() != before
        await serves(ann, "after an update")


async def test_lines_of_a_worker_and_of_a_client_behind_nats(town: Town, ann: Stranger) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve_restart_and_update(town, ann))
        tasks.create_task(connect_a_client(town))
