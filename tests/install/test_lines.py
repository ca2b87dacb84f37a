"""The two lines, typed on bare systems that reach nothing but the mesh: no DNS, no package registries, no root, no compiler."""

import asyncio
import json
import re
import shutil
import sys
import time

import pytest

from services.inference.models import model_discovery
from services.web import install_script
from tests import capabilities
from tests.install import roots
from tests.install.roots import Account
from tests.nat import boxes, topology
from tests.nat.boxes import Box, Running
from tests.nat.topology import Machine
from tests.stacks import until
from tools.packages import install_index
from tools.packages.install_index import Target

pytestmark = pytest.mark.timeout(1800)

MESH = "http://127.0.0.1:3000"
SCRIPT = f"curl -fsS {MESH}/install.sh"
PASSWORD = "correct horse battery staple"
#: Debian 13, Ubuntu 22.04 with Python 3.11 from universe, Debian 12.
PYTHONS = {"trixie": "3.13", "jammy": "3.11", "bookworm": "3.11"}
#: Only guards against hanging, as an installation on two busy cores.
SERVING_SECONDS = 180.0
#: A person's browser: signs in and approves. Arguments: address, name, password, code.
BROWSER = """
import re, sys
import httpx

address, name, password, code = sys.argv[1:]
with httpx.Client(base_url=address, follow_redirects=True, timeout=30, headers={"origin": address}) as browser:
    def send(page, path, **fields):
        token = re.search(r'name="token" value="([^"]+)"', page.text)[1]
        return browser.post(path, data={"token": token, **fields})
    send(browser.get("/login"), "/login", name=name, password=password, then="")
    path = f"/device/{code}"
    print(send(browser.get(path), path, decision="approve").text)
"""


async def ticket(house: Box, *options: str) -> str:
    made = await house.aicli("admin", "tickets", "create", "--json", *options)
    return str(made.json()["ticket"])


async def install_client(user: Account) -> None:
    done = await user.run(f"{SCRIPT} | sh")
    assert done.status == 0, done.err
    assert done.out.startswith("aicli ")
    assert "Next: aicli login\n" in done.err
    again = await user.run(f"{SCRIPT} | sh")
    assert (again.status, "Installing" in again.err) == (0, False), again.err


async def sign_in(user: Account, machine: Machine, name: str) -> None:
    """Log in by the device flow."""
    asking = await user.start("aicli login")
    await asking.says("approve the code", seconds=60)
    code = re.search(r"approve the code (\S+)", asking.text())
    assert code is not None
    done = await machine.start(sys.executable, "-c", BROWSER, MESH, name, PASSWORD, code[1], environment={})
    async with asyncio.timeout(60):
        page, _ = await done.communicate()
        assert b"Approved." in page, page.decode()
        assert await asking.process.wait() == 0, asking.text()
    assert f"Logged in as {name}" in asking.text()


async def serves(house: Box, worker: Running, model: str) -> None:
    """Wait until the mesh uses the model."""

    async def is_used() -> bool:
        assert worker.process.returncode is None, worker.text()
        return any(model in row["models"] and row["usable"] for row in (await house.aicli("nodes", "--json")).json())

    await until(is_used, seconds=SERVING_SECONDS, what=f"{model} is served")


async def use(user: Account, model: str) -> None:
    answer = await user.run(f"aicli infer --model {model} --max-tokens 8 'Count to five.'")
    assert (answer.status, bool(answer.out.strip())) == (0, True), answer.err
    key = (await user.run("aicli keys create api --json")).json()["key"]
    body = json.dumps({"model": model, "input": ["one", "two"]})
    found = await user.run(
        f"curl -fsS {MESH}/v1/embeddings -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{body}'"
    )
    assert len(found.json()["data"]) == 2


async def refuse(user: Account, text: str, sentence: str) -> None:
    """Type a line that ends with a sentence, and leaves nothing."""
    done = await user.run(text)
    assert (done.status, sentence in done.err) == (1, True), done.err
    assert not list(user.home.rglob("app-*"))


async def refuse_tickets(user: Account, tickets: dict[str, str]) -> None:
    """Type a worker's line with invalid tickets."""
    for found, sentence in tickets.items():
        done = await user.run(f"{SCRIPT} | sh -s -- {found}")
        assert done.status != 0
        assert sentence in done.err.splitlines()[-1], done.err


async def refuse_twice(worker: Account, other: Account, line: str) -> None:
    """Type the line of a running worker again, and on another machine."""
    again = await worker.run(line)
    assert "a worker already uses" in again.err.splitlines()[-1]
    used = await other.run(line)
    assert used.status != 0
    assert "used" in used.err.splitlines()[-1]


async def keep_version(house: Box, worker: Account, running: Running) -> None:
    """Update while the mesh is down: the worker continues, and serves when the mesh is back."""
    current = worker.home / ".local/share/aimesh/current"
    before = current.readlink()
    assert (await house.aicli("stack", "down")).status == 0
    done = await worker.run("aicli update")
    assert (done.status, "cannot connect to 127.0.0.1:3000" in done.err) == (5, True), done.err
    assert (current.readlink(), running.process.returncode) == (before, None)
    assert (await house.aicli("stack", "up", deadline_seconds=250)).status == 0


async def test_the_two_lines_on_bare_systems() -> None:
    for capability in ("nat", "roots"):
        capabilities.require(capability)
    found = {suite: await asyncio.to_thread(roots.find, suite) for suite in PYTHONS}
    wanted = [Target.parse(f"worker-linux-x86_64-{python}") for python in sorted(set(PYTHONS.values()))]
    await asyncio.to_thread(install_index.fill, install_script.default_folder(), wanted)
    async with topology.internet() as net, boxes.house(net.public, INFERENCE_BACKEND="echo") as house:
        machine = net.public
        registered = await house.aicli("register", "ann", "--email", "ann@example.org", "--password-stdin", stdin=f"{PASSWORD}\n")
        assert registered.status == 0, registered.err
        async with roots.account(machine, found["jammy"], hidden="/usr/bin/python3.11") as user:
            await refuse(user, f"{SCRIPT} | sh", "As root: apt-get install python3.11")
        async with roots.account(machine, found["bookworm"]) as user:
            (user.home / "ldd").write_text("#!/bin/sh\necho 'musl libc (x86_64)' >&2\nexit 1\n", encoding="ascii")
            (user.home / "ldd").chmod(0o755)
            await refuse(user, f"{SCRIPT} | PATH=~:$PATH sh", "this system has musl")
        # Shorter is not possible; it is used after longer than that.
        expired, made_at = await ticket(house, "--role", "worker", "--ttl", "1m"), time.monotonic()
        for suite, root in found.items():
            async with roots.account(machine, root) as client, roots.account(machine, root) as worker:
                await install_client(client)
                await sign_in(client, machine, "ann")
                if suite == "bookworm":
                    of_client = await ticket(house, "--role", "client")
                    await asyncio.sleep(max(0.0, made_at + 61 - time.monotonic()))
                    await refuse_tickets(worker, {expired: "expired", of_client: "this ticket is for a client, not a worker"})
                shutil.copy(model_discovery.packaged(), worker.home / f"{suite}.gguf")
                one = await ticket(house, "--role", "worker", "--model", f"/srv/{suite}.gguf")
                line = f"{SCRIPT} | sh -s -- {one}"
                running = await worker.start(line)
                await serves(house, running, suite)
                await use(client, suite)
                if suite == "bookworm":
                    await refuse_twice(worker, client, line)
                    await keep_version(house, worker, running)
                    await serves(house, running, suite)
                    await use(client, suite)
                await running.kill()
