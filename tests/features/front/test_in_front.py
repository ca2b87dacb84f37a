"""What docs/howto/in-front.md and the README show is so: each story's commands are taken from the page and run.

The boxes have a stand-in for Ollama. `make up` is typed as `aicli stack up`, which it runs.
"""

import asyncio
import re
import shlex
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from features.front.machine import choice
from features.front.rules.local_servers import PROGRAMS
from features.front.worker import look
from tests import capabilities, stacks
from tests.features.front.ollama_standin import OllamaStandIn
from tests.install import strangers, test_typed_lines
from tests.nat import boxes, topology
from tests.nat.boxes import Box
from tests.nat.topology import Machine, Nat
from tests.stacks import REPOSITORY, Outcome, until
from tests.testnet import free_port

PAGE = (REPOSITORY / "docs/howto/in-front.md").read_text(encoding="utf-8")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
MODEL, HELLO = "qwen3:8b", "Say hello"
SERVING_SECONDS, MAKES_UP = 90.0, "make up"
PASSWORD = "correct horse battery staple"


#: A person at a terminal who answers each question with Enter.
_ENTER = """
import os, pty, sys
def read(terminal):
    shown = os.read(terminal, 4096)
    if b"/n] " in shown or b"/N] " in shown:
        os.write(terminal, b"\\n")
    return shown
sys.exit(os.waitstatus_to_exitcode(pty.spawn(["sh", "-c", sys.argv[1]], read)))
"""


def lines_of(heading: str) -> Iterator[str]:
    """Yield the commands of one story."""
    (story,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    for block in re.findall(r"^```bash\n(.*?)^```", story, re.MULTILINE | re.DOTALL):
        yield from re.sub(r"\\\n\s*", "", block).splitlines()


def settings_of(line: str) -> dict[str, str]:
    assert line.endswith(MAKES_UP), line
    return dict(word.split("=", 1) for word in shlex.split(line.removesuffix(MAKES_UP)))


@asynccontextmanager
async def ollama(machine: Machine | None, port: int = 11434, host: str = "127.0.0.1") -> AsyncIterator[None]:
    """Run the stand-in on a machine of the made-up Internet, or here."""
    words, pipe = (sys.executable, "-m", "tests.features.front.ollama_standin", str(port), host), asyncio.subprocess.PIPE
    if machine is None:
        process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe)
    else:
        process = await machine.start(*words)
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"listening\n"
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def test_the_readme_shows_what_a_person_reads() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), OllamaStandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = await look.look([PROGRAMS[0]._replace(port=server.server_address[1])], "")
    finally:
        server.shutdown()
        server.server_close()
    shown = re.search(r"^```text\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert shown is not None
    read = [line for line in choice.text_of(found) if not line.startswith("Not shared")]
    assert [*read, "Share these 4 models with the mesh? [Y/n]"] == shown[1].splitlines()[1:-2]


async def test_one_box_in_your_network() -> None:
    """Its address is one of this machine."""
    up, *rest = lines_of("One box in your network")
    port = free_port()

    def here(text: str) -> str:
        return text.replace("10.0.0.5:11434", f"127.0.0.1:{port}").replace("10.0.0.5", "127.0.0.1")

    async with ollama(None, port), stacks.stack(INFERENCE_BACKEND="echo", **settings_of(here(up))) as stack:
        add, key, ask = map(here, rest)
        await _adds(stack, add)
        made = await _types(stack, key)
        assert "aip_live_" in made.out
        await _answers(stack, ask)


async def _types(place: stacks.RunningStack | Box, line: str) -> Outcome:
    program, *words = shlex.split(line)
    assert program == "aicli", line
    done = await place.aicli(*words)
    assert done.status == 0, f"{line}\n{done.out}{done.err}"
    return done


async def _adds(place: stacks.RunningStack | Box, line: str) -> None:
    """Type it until a worker takes it: `make up` ends some seconds before the gateway knows of that worker on a busy machine."""

    async def is_added() -> bool:
        done = await place.aicli(*shlex.split(line)[1:])
        assert done.status == 0 or "no worker takes servers" in done.err, f"{line}\n{done.err}"
        return done.status == 0

    await until(is_added, seconds=SERVING_SECONDS, what=line)


async def _answers(place: stacks.RunningStack | Box, line: str) -> None:
    """Type it until the model is served: the page's reader sees it a few seconds later, too."""

    async def has_answered() -> bool:
        done = await place.aicli(*shlex.split(line)[1:])
        return done.status == 0 and done.out.strip() == HELLO

    await until(has_answered, seconds=SERVING_SECONDS, what=f"{line} is answered")


@pytest.mark.nightly("nat")
@pytest.mark.timeout(600)
async def test_four_boxes_behind_nats() -> None:
    capabilities.require("nat")
    up, create, join, nodes, ask = lines_of("Four boxes behind NATs")
    async with topology.internet() as net, AsyncExitStack() as opened:
        house = await opened.enter_async_context(_house(net.public, up.replace("203.0.113.5", net.public.address)))
        ticket = re.search(r"aip_join_[\w-]+", (await _types(house, create)).out)
        assert ticket is not None
        for number in range(4):
            machine = await net.house(f"box{number}", (Nat.PORT_PRESERVING, Nat.SYMMETRIC)[number % 2])
            await opened.enter_async_context(ollama(machine))
            at_box = await opened.enter_async_context(boxes.box(machine))
            await at_box.start(*shlex.split(join.replace("aip_join_…", ticket[0]))[1:])

        async def all_serve() -> bool:
            rows = (await _types(house, f"{nodes} --json")).json()
            return sum(MODEL in row["models"] and row["usable"] for row in rows) == 4

        await until(all_serve, seconds=SERVING_SECONDS, what="four boxes serve")
        await _answers(house, ask)


@pytest.mark.nightly("stacks")
async def test_open_webui_for_a_family() -> None:
    """Open WebUI itself: tests/agents/test_newest_agents.py."""
    *invites, budget, create, ask = lines_of("Open WebUI for a family")
    port = free_port()
    settings = {"INFERENCE_BACKEND": "echo", "OLLAMA_URL": f"http://127.0.0.1:{port}"}
    async with ollama(None, port), stacks.stack(**settings) as stack:
        for invite in invites:
            email = shlex.split(invite)[-1]
            code = (await _types(stack, f"{invite} --json")).json()["token"]
            words = ("register", email.partition("@")[0], "--email", email, "--invitation", code, "--password-stdin")
            registered = await stack.aicli(*words, stdin=f"{PASSWORD}\n")
            assert registered.status == 0, registered.err
        await _types(stack, budget)
        made = re.search(r"aip_live_\w+", (await _types(stack, create)).out)
        assert made is not None
        typed = ask.replace("http://127.0.0.1:3000", stack.url("gateway")).replace("aip_live_…", made[0])

        async def is_answered(email: str) -> bool:
            return HELLO in await topology.command(*shlex.split(typed.replace("ann@example.org", email)))

        for invite in invites:
            await until(lambda: is_answered(shlex.split(invite)[-1]), seconds=SERVING_SECONDS, what=f"answered: {invite}")  # noqa: B023
        refused = await topology.command(*shlex.split(typed.replace("ann@example.org", "nobody@example.org")))
        assert "person_refused" in refused
        for name in ("ann", "ben"):
            async with stack.database("auth") as database:
                user_id = await database.fetchval("SELECT id FROM users WHERE username = $1", name)
            await stack.recorded(user_id, 1)


@pytest.mark.nightly("nat")
async def test_i_have_tailscale() -> None:
    """A second link between both machines stands for Tailscale's."""
    capabilities.require("nat")
    up, add, key, ask = lines_of("I have Tailscale")
    async with topology.internet() as net, AsyncExitStack() as opened:
        desk = await net.house("desk", Nat.SYMMETRIC)
        await topology.command(
            "ip", "link", "add", "ts0", "netns", net.public.place, "type", "veth", "peer", "name", "ts0", "netns", desk.place
        )
        for place, address in ((net.public.place, "100.64.0.1"), (desk.place, "100.64.0.2")):
            await topology.command("ip", "-n", place, "addr", "add", f"{address}/10", "dev", "ts0")
            await topology.command("ip", "-n", place, "link", "set", "ts0", "up")
        await opened.enter_async_context(ollama(desk, host="100.64.0.2"))
        house = await opened.enter_async_context(_house(net.public, up))
        await _adds(house, add)
        await _types(house, key)
        await _answers(house, ask)
        assert await desk.run("curl", "-fsSk", "https://100.64.0.1:3000/openapi.json")
        assert len((await topology.command("ip", "netns", "pids", desk.place)).split()) == 1, "more than the server runs there"


@pytest.mark.nightly("install")
@pytest.mark.timeout(600)
async def test_the_first_example_of_the_readme(tmp_path: Path) -> None:
    """A stranger with an empty home types it behind a NAT, and answers with Enter."""
    capabilities.require("nat")
    capabilities.require("systemd")
    await asyncio.to_thread(test_typed_lines.copy_index, tmp_path / "index")
    shown = re.search(r"^```text\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert shown is not None
    key, ask = (line.removeprefix("you$ ") for line in shown[1].splitlines()[-2:])
    async with topology.internet() as net, AsyncExitStack() as opened:
        settings = {"LAN": net.public.address, "WEB_SERVICE_PORT": "443", "INSTALL_FOLDER": str(tmp_path / "index")}
        house = await opened.enter_async_context(boxes.house(net.public, INFERENCE_BACKEND="echo", **settings))
        line = (await _types(house, "aicli admin tickets create --role worker --json")).json()["install"]
        machine = await net.house("box", Nat.PORT_PRESERVING)
        await opened.enter_async_context(ollama(machine))
        user = await opened.enter_async_context(strangers.stranger(machine, has_systemd=True))
        done = await user.types(f"python3 -c {shlex.quote(_ENTER)} {shlex.quote(line)}", deadline_seconds=240)
        assert done.status == 0, done.out + done.err
        printed = done.out.replace("\r\n", "\n")
        assert not [text for text in shown[1].splitlines()[1:-2] if text not in printed], printed
        await _types(house, key)
        await _answers(house, ask)


def _house(machine: Machine, line: str) -> AbstractAsyncContextManager[Box]:
    return boxes.house(machine, INFERENCE_BACKEND="echo", **settings_of(line))
