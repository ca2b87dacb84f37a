"""The script of a release, with the mesh, a worker and a client each behind a NAT: a ticket alone finds the mesh, which no HTTP reaches.

A machine on the Internet has the files of a release, made of this checkout, and a mirror of a public package index. Only the two machines
that install use it.
"""

import asyncio
import platform
import re
import sys
from pathlib import Path

import pytest

from services.inference.models import model_discovery
from tests.install import release_site
from tests.nat import boxes
from tests.nat.boxes import Box, Running
from tests.nat.test_mesh import SERVING_SECONDS, rented_machine
from tests.nat.topology import Internet, Nat
from tests.stacks import until
from tools.packages.install_index import Target

pytestmark = pytest.mark.timeout(1800)

_INSTALL_SECONDS = 300.0
_PYTHON = "{}.{}".format(*sys.version_info[:2])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release_site.make(tmp_path_factory.mktemp("site"), [Target("worker", "linux", platform.machine(), _PYTHON)])


async def install(box: Box, *variables: str, ticket: str) -> Running:
    """Type the line of a release."""
    output = box.home / "installing"
    line = f"{release_site.SCRIPT} | {' '.join(variables)} sh -s -- {ticket}"
    mirror = str(release_site.use_mirror(box.home))
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(box.home), "PIP_CONFIG_FILE": mirror}
    with output.open("wb") as file:
        process = await box.machine.start(
            "sh",
            "-c",
            line,
            environment={**environment, "PYTHON": sys.executable},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    return Running(process, output)


async def test_the_script_of_a_release_makes_a_worker_and_a_client_with_tickets_alone(net: Internet, files: Path) -> None:
    home, box, cafe = [await net.house(name, Nat.PORT_PRESERVING) for name in ("home", "box", "cafe")]
    model = model_discovery.packaged()
    async with (
        release_site.site(net, files) as asked,
        rented_machine(net.public) as settings,
        boxes.box(box) as at_box,
        boxes.box(cafe) as at_cafe,
        boxes.house(home, INFERENCE_BACKEND="echo", **settings) as house,
    ):

        async def ticket(*arguments: str) -> str:
            return str((await house.aicli("admin", "tickets", "create", "--json", *arguments)).json()["ticket"])

        worker = await install(at_box, ticket=await ticket("--role", "worker", "--model", str(model)))
        client = await install(at_cafe, "AIMESH_MESH=1", ticket=await ticket("--role", "client"))
        async with asyncio.timeout(_INSTALL_SECONDS):
            assert await client.process.wait() == 0, client.text()
        await worker.says("the worker runs in this terminal", seconds=_INSTALL_SECONDS)

        async def served() -> list[str]:
            rows = (await house.aicli("nodes", "--json")).json()
            return next((row["models"] for row in rows if row["usable"] and row["path"] == "punched"), [])

        (name,) = await until(served, seconds=SERVING_SECONDS, what="the worker serves")
        key = (await house.aicli("keys", "create", "cafe", "--json")).json()["key"]
        asking = (str(at_cafe.home / ".local" / "bin" / "aicli"), "infer", "--model", name, "--max-tokens", "16", "Count to five.")
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(at_cafe.home), "AICLI_API_KEY": key}
        process = await cafe.start(*asking, environment=environment, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.STDOUT)
        async with asyncio.timeout(boxes.COMMAND_SECONDS):
            answer, _ = await process.communicate()
        assert (process.returncode, bool(answer.strip())) == (0, True), answer.decode() + worker.text()
        # These names are anyone's on a public index.
        assert "GET /install/simple/psutil/" in asked.read_text(encoding="utf-8")
        assert not re.findall(r"GET /install/simple/(?:aimesh|llama|nkeys|nodejs)\S*", asked.read_text(encoding="utf-8"))
