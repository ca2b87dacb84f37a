"""A machine that has only the package and a ticket: `aicli worker --join` as its own process, on a real Hyperswarm."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from cli import main, user_folders
from cli.machines import join
from shared import errors
from shared.api.membership import TopicSecret
from shared.identity import certificates, node_keys, private_file, tickets
from shared.identity.certificates import Subject
from shared.node import membership_file
from shared.node.enrollment import EnrollingNode
from shared.node.membership_file import MembershipFile
from shared.types import MeshName, Role
from tests import capabilities
from tests.cli.fake_mesh import Shell
from tests.front_door import FrontDoor
from tests.swarmnet import SwarmNet, swarmnet
from tests.testnet import IdleService, until

ROOT = Path(main.__file__).parent.parent
#: Bounds a hang: Python and Node.js start while other tests run.
SECONDS = 120.0


class Gateway(IdleService):
    """A gateway that serves nothing and records its peers."""

    role: ClassVar[Role] = Role.GATEWAY


@dataclass
class Machine:
    """Another computer: its own home, no stack, no settings."""

    home: Path
    processes: list[Process] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.home / "no-stack/worker"

    async def start(self, *arguments: str, program: tuple[str, ...] = ("-m", "cli.main")) -> Process:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
            "AIMESH_HOME": str(self.home / "no-stack"),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, *program, *arguments, cwd=self.home, env=environment, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        self.processes.append(process)
        return process

    async def run(self, *arguments: str, stdin: str = "", program: tuple[str, ...] = ("-m", "cli.main")) -> tuple[int | None, str, str]:
        process = await self.start(*arguments, program=program)
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate(stdin.encode())
        return process.returncode, out.decode(), err.decode()


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    for process in machine.processes:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.fixture
async def net() -> AsyncIterator[SwarmNet]:
    async with swarmnet() as net:
        yield net


async def open_door(net: SwarmNet) -> FrontDoor:
    running = await net.start(FrontDoor)
    assert isinstance(running.service, FrontDoor)
    running.service.ca = net.ca
    running.service.bootstrap = tuple(str(address) for address in net.bootstrap)
    return running.service


async def lines_with(process: Process, *each: str) -> str:
    """Read stdout until all of these words have appeared, in any order; return the last line."""
    assert process.stdout is not None
    seen = ""
    async with asyncio.timeout(SECONDS):
        while line := (await process.stdout.readline()).decode():
            seen += line
            if all(words in seen for words in each):
                return line
    assert process.stderr is not None
    raise AssertionError(f"no {each!r} in {seen!r}: {(await process.stderr.read()).decode()}")


def kept_files(folder: Path) -> list[Path]:
    """Return the files of a running worker, without those that it is writing and will rename."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


async def test_worker_joins_serves_pauses_and_needs_no_ticket_again(net: SwarmNet, machine: Machine) -> None:
    door = await open_door(net)
    gateway = (await net.start(Gateway)).node
    text = tickets.render(door.ticket(Role.WORKER))
    process = await machine.start("worker", "--join", text, "--backend", "echo", "--label", "gpu=none")
    await lines_with(process, "certified as worker until")
    await lines_with(process, "serving 1 model: echo", "connected to gateway")
    await until(lambda: gateway.directory.usable(Role.WORKER), seconds=15)
    (worker,) = gateway.directory.usable(Role.WORKER)
    assert [offer.name for offer in worker.announcement.models] == ["echo"]

    # The process is the worker now, and its command line and environment no longer contain the ticket.
    of_process = Path(f"/proc/{process.pid}")
    shown = (of_process / "cmdline").read_bytes()
    with contextlib.suppress(PermissionError):  # only root may read a worker's environment
        shown += (of_process / "environ").read_bytes()
    assert b"services.inference" in shown
    files = kept_files(machine.state)
    kept = b"".join(path.read_bytes() for path in files)
    for secret in (text.encode(), tickets.parse(text).seed):
        assert secret not in shown
        assert secret not in kept
    assert machine.state.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o077 for path in files}.items() >= {"node.nk": 0, "node.mesh": 0}.items()

    # The owner needs the machine for a while, then resumes serving.
    code, out, _ = await machine.run("worker", "pause")
    assert (code, out.startswith("Paused. Running requests finish")) == (0, True)
    await lines_with(process, "paused by its owner")
    await until(lambda: not gateway.directory.usable(Role.WORKER))
    (entry,) = gateway.directory.entries(Role.WORKER)
    assert entry.why_not == "paused by its owner"
    code, out, _ = await machine.run("worker", "status", "--json")
    status = json.loads(out)
    assert (code, status["running"], status["paused"], status["status"]["models"]) == (0, True, True, ["echo"])
    assert (await machine.run("worker", "resume"))[1] == "Resumed.\n"
    await until(lambda: gateway.directory.usable(Role.WORKER))

    # Two workers with one key would push each other out.
    code, _, err = await machine.run("worker", "--backend", "echo")
    assert (code, "a worker already uses" in err) == (5, True)

    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(SECONDS):
        assert await process.wait() == 0
    code, out, _ = await machine.run("worker", "status")
    assert (code, out) == (1, "not running. To start it: aicli worker\n")
    await until(lambda: not gateway.directory.usable(Role.WORKER))
    again = await machine.start("worker", "--backend", "echo")
    await lines_with(again, "connected to gateway")
    await until(lambda: gateway.directory.usable(Role.WORKER))
    assert door.asked.count("enrollNode") == 1


# In `make test`, tests/shared/node/test_enrollment.py renews the certificate of a node that was offline too long.
@pytest.mark.nightly("stacks")
async def test_machine_offline_for_a_week_serves_again(net: SwarmNet, machine: Machine) -> None:
    door = await open_door(net)
    gateway = (await net.start(Gateway)).node
    code, out, err = await machine.run("worker", "--join", tickets.render(door.ticket(Role.WORKER)), "--no-serve")
    assert (code, err) == (0, "")
    assert "certified as worker until" in out
    folder = join.Folder(machine.state)
    kept = folder.kept()
    assert kept is not None
    week = 7 * 24 * 3600
    old = certificates.issue(net.ca, Subject(node_keys.load(folder.key).id, Role.WORKER), time.time() - week)
    secrets = (TopicSecret(0, bytes(32)),)
    membership_file.save(folder.membership, MembershipFile(kept.mesh, kept.role, old, b"", kept.authorities, secrets, kept.bootstrap))
    worker = await machine.start("worker", "--backend", "echo")
    await lines_with(worker, "connected to gateway")
    await until(lambda: gateway.directory.usable(Role.WORKER), seconds=10)
    assert door.asked == ["enrollNode", "renewCertificate"]


@pytest.mark.nightly("stacks")
async def test_revoked_machine_joins_again_as_a_new_node(net: SwarmNet, machine: Machine) -> None:
    door = await open_door(net)
    first = tickets.render(door.ticket(Role.WORKER))
    assert (await machine.run("worker", "--join", first, "--no-serve"))[0] == 0
    folder = join.Folder(machine.state)
    old = node_keys.load(folder.key).id
    # Another machine's used-up ticket is refused, and does no harm.
    other = door.ticket(Role.WORKER)
    door.offers[other.id].uses = 0
    code, out, _ = await machine.run("worker", "--join", tickets.render(other), "--no-serve")
    assert (code, "the ticket is used up; continuing, because this machine is already a member of mesh test" in out) == (0, True)
    assert node_keys.load(folder.key).id == old
    # Auth never answers a revoked node.
    door.revoked.add(old)
    net.revoke(old, net.nodes[0])
    code, out, _ = await machine.run("doctor", "--worker")
    assert code == 1
    assert "auth answers others, but not this machine's key: it was revoked" in out
    code, out, _ = await machine.run("worker", "--join", tickets.render(door.ticket(Role.WORKER)), "--no-serve")
    assert (code, "certified as worker" in out) == (0, True)
    assert node_keys.load(folder.key).id not in (old, "")
    assert not folder.new_key.exists()


async def test_bad_ticket_says_what_to_do_and_leaves_nothing_running(net: SwarmNet, machine: Machine) -> None:
    door = await open_door(net)
    ticket = door.ticket(Role.CLIENT)
    # From stdin, with a line break as an email inserts it.
    text = tickets.render(ticket)
    code, out, err = await machine.run("worker", "--join", "-", "--backend", "echo", stdin=f"{text[:40]}\n{text[40:]}\n")
    assert code == 1
    assert "found auth of mesh test" in out
    assert "this ticket is for a client, not a worker – ask for a worker ticket" in err
    assert {path.name for path in machine.state.iterdir()} == {"lock"}
    door.offers.clear()
    code, _, err = await machine.run("worker", "--join", text, "--backend", "echo")
    assert (code, "the ticket is unknown – ask for a new one" in err) == (1, True)


async def test_connect_creates_a_profile(net: SwarmNet, machine: Machine) -> None:
    door = await open_door(net)
    (machine.home / "ticket").write_text(tickets.render(door.ticket(Role.CLIENT)))
    code, out, err = await machine.run("mesh", "connect", "@ticket", "--name", "cafe")
    assert (code, "found auth of mesh test" in err) == (0, True)
    assert "aicli --profile cafe login" in out
    folder = machine.home / ".config/aimesh/profiles"
    assert sorted(path.name for path in folder.iterdir()) == ["cafe.mesh", "cafe.nk", "cafe.toml"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
    code, _, err = await machine.run("mesh", "connect", "@ticket", "--name", "cafe")
    assert (code, "profile 'cafe' already exists" in err) == (2, True)
    # Once a gateway is up, the profile works.
    await net.start(Gateway)
    code, _, err = await machine.run("--profile", "cafe", "models")
    assert "gateway.listModels" in err


# --- without a mesh ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> join.Folder:
    """A folder as `aicli worker --join` left it."""
    folder = join.Folder(tmp_path / "state")
    join.prepare(folder)
    private_file.create(folder.key, node_keys.new_seed)
    ca = node_keys.Authority(node_keys.new_authority_seed())
    membership_file.save(folder.membership, MembershipFile(MeshName("home"), Role.WORKER, b"c", authorities=(ca.id,)))
    return folder


def some_ticket(ca: node_keys.Authority | None = None) -> tickets.Ticket:
    authority = ca or node_keys.Authority(node_keys.new_authority_seed())
    return tickets.Ticket(1, "t1", bytes(32), node_keys.raw_of(authority.id), MeshName("home"))


def test_ticket_comes_from_the_argument_a_file_or_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    ticket = some_ticket()
    text = tickets.render(ticket)
    (tmp_path / "t").write_text(f"{text}\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"  {text}\n"))
    assert [join.read_ticket(each, tmp_path) for each in (text, "@t", "-")] == [ticket] * 3
    with pytest.raises(errors.BadTicket, match="the ticket is incomplete"):
        join.read_ticket(text[:-5], tmp_path)
    with pytest.raises(errors.BadSettings, match="cannot read the ticket in"):
        join.read_ticket("@nowhere", tmp_path)


@pytest.mark.parametrize(("user", "found"), [(0, "machine"), (1000, "own")])
def test_root_finds_the_worker_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int, found: str) -> None:
    """Root's line makes one, and `aicli worker pause` looked into root's home."""
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(user_folders, "SYSTEM_WORKER", tmp_path / "machine")
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    folders = {"machine": join.Folder(tmp_path / "machine"), "own": join.Folder(tmp_path / "aimesh/worker")}
    assert join.locate(environment, None, tmp_path) == folders["own"]
    for name in ("machine", "own"):
        folders[name].root.mkdir(parents=True)
        folders[name].key.touch()
        assert join.locate(environment, None, tmp_path) == folders[found if name == "machine" else "own"]


async def test_folder_of_another_mesh_is_left_alone(folder: join.Folder) -> None:
    before = folder.membership.read_bytes()
    with pytest.raises(errors.BadSettings, match="belongs to another mesh") as caught:
        await join.join(folder, some_ticket(), EnrollingNode(Role.WORKER), lambda line: None)
    assert "--state" in caught.value.hint
    assert folder.membership.read_bytes() == before


async def test_known_ticket_makes_no_call(folder: join.Folder) -> None:
    ca = node_keys.Authority(node_keys.new_authority_seed())
    kept = MembershipFile(MeshName("home"), Role.WORKER, b"c", authorities=(ca.id,))
    membership_file.save(folder.membership, kept)
    folder.ticket_id.write_text("t1")
    messages: list[str] = []
    assert await join.join(folder, some_ticket(ca), EnrollingNode(Role.WORKER), messages.append) == kept
    assert messages == ["this machine already joined mesh home with this ticket"]


def test_folder_is_locked_by_one_process(folder: join.Folder) -> None:
    assert not join.is_running(folder)
    lock = join.claim(folder)
    assert os.get_inheritable(lock)
    assert join.is_running(folder)
    with pytest.raises(errors.Overloaded, match="a worker already uses"):
        join.claim(folder)
    os.close(lock)
    assert not join.is_running(folder)


@pytest.mark.parametrize(
    ("environment", "chosen", "expected"),
    [
        ({"XDG_STATE_HOME": "/s", "HOME": "/h"}, None, "/s/aimesh/worker"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, None, "/h/.local/state/aimesh/worker"),
        ({"HOME": "/h"}, "mine", "/here/mine"),
        ({"HOME": "/h", "AIMESH_HOME": "/w1"}, None, "/w1/worker"),
        ({"HOME": "/h", "AIMESH_HOME": "w1"}, None, "/here/w1/worker"),
        ({"HOME": "/h", "AIMESH_HOME": "/w1"}, "/elsewhere", "/elsewhere"),
        ({"HOME": "/h"}, "/elsewhere", "/elsewhere"),
    ],
)
def test_location_of_the_folder(environment: dict[str, str], chosen: str | None, expected: str) -> None:
    assert join.locate(environment, chosen, Path("/here")).root == Path(expected)


def test_pausing_a_machine_that_never_joined_is_an_error(shell: Shell) -> None:
    result = shell("worker", "pause", "--state", "nowhere")
    assert result.exit_code == 2
    assert "no worker has joined a mesh using" in result.stderr


def test_pause_survives_a_restart(shell: Shell, folder: join.Folder) -> None:
    paused = shell("worker", "--state", str(folder.root), "pause")
    assert paused.stdout.startswith("Paused. The worker isn't running")
    assert shell("worker", "status", "--state", str(folder.root)).stdout == "not running, and paused. To start it: aicli worker\n"
    assert shell("worker", "resume", "--state", str(folder.root)).stdout == "Resumed.\n"
    assert shell("worker", "resume", "--state", str(folder.root)).stdout == "The worker isn't paused.\n"
    assert folder.paused.exists() is False


def test_what_root_writes_belongs_to_the_user_of_the_service(tmp_path: Path) -> None:
    """The service of the machine could not read what `sudo aicli worker --share` had written."""
    capabilities.require("root")
    folder = join.Folder(tmp_path / "worker")
    join.prepare(folder)
    secret, link = tmp_path / "secret", folder.root / "link"
    secret.touch()
    link.symlink_to(secret)
    own = folder.companion("vllm")
    own.root.mkdir(parents=True)
    own.key.touch()
    join.give_to_owner(folder)
    assert own.key.stat().st_uid == 0, "nobody else has the folder yet"
    os.chown(folder.root, 65534, 65534)
    join.give_to_owner(folder)
    assert {path.lstat().st_uid for path in (own.root, own.key, link)} == {65534}
    assert secret.stat().st_uid == 0
