"""`aicli uninstall`: what it revokes, deletes and leaves. None of these tests is root, who has the machine's services too."""

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from cli import user_folders
from cli.machines import join, uninstall, units
from shared.api import auth
from shared.identity import node_keys, private_file, tickets
from shared.node import membership_file
from shared.node.membership_file import MembershipFile
from shared.types import MeshName, Role, UserId
from tests.cli.fake_mesh import Shell
from tests.cli.machines.test_join import Machine as JoiningMachine
from tests.cli.machines.test_join import machine, net, open_door  # noqa: F401 - fixtures
from tests.cli.machines.test_update import Machine as UpdatedMachine
from tests.stopwatch import HANG_SECONDS
from tests.swarmnet import SwarmNet

KEY = "aik_live_0123456789abcdef0123456789abcdef"
#: Runs aicli as if it were not root, whose own services must stay.
AICLI = """
import sys
from cli.machines import uninstall
uninstall.is_root = lambda: False
from cli.main import main
main()
"""


@pytest.fixture
def home(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a profile, a worker whose mesh is gone, and a model."""
    monkeypatch.setattr(uninstall, "is_root", lambda: False)
    monkeypatch.setattr(uninstall, "_FIND_SECONDS", 0.2)
    shell.environment["XDG_RUNTIME_DIR"] = str(shell.folder)
    home = Path(shell.environment["HOME"])
    folder = join.Folder(home / ".local/state/aimesh/worker")
    join.prepare(folder)
    private_file.create(folder.key, node_keys.new_seed)
    ca = node_keys.Authority(node_keys.new_authority_seed())
    kept = MembershipFile(MeshName("home"), Role.WORKER, b"c", authorities=(ca.id,), nats=("nats://127.0.0.1:9",))
    membership_file.save(folder.membership, kept)
    (folder.root / "models").mkdir()
    (folder.root / "models/a.gguf").write_text("weights", encoding="ascii")
    config = home / ".config"
    (config / "aimesh/profiles").mkdir(parents=True)
    profile = config / "aimesh/profiles/ai.toml"
    profile.write_text(f'url = "https://ai.example.org"\napi_key = "{KEY}"\nusername = "ann"\n', encoding="ascii")
    profile.chmod(0o600)
    preview = f"{KEY[:12]}…{KEY[-4:]}"
    key = auth.ApiKey(auth.KeyId(UUID(int=2)), UserId(UUID(int=1)), "laptop", preview, is_active=True, created_at=datetime.now(UTC))
    shell.mesh.answer(auth.list_api_keys, auth.ApiKeys((key,)))
    shell.mesh.answer(auth.revoke_api_key, key)
    (config / "aimesh-worker.env").write_text("OPENAI_API_KEY=secret", encoding="ascii")
    (config / "other").write_text("of another program", encoding="ascii")
    return home


def left(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}


@pytest.mark.parametrize("models", [False, True])
def test_keys_are_revoked_and_everything_goes_but_the_models(shell: Shell, home: Path, *, models: bool) -> None:
    node = node_keys.load(home / ".local/state/aimesh/worker/node.nk").id
    done = shell("uninstall", "--yes", *(["--models"] if models else []))
    assert [call.method for call in shell.mesh.calls] == ["auth.listApiKeys", "auth.revokeApiKey"]
    assert left(home) - {str(path.relative_to(home)) for path in [home / ".config/other"]} == (
        set() if models else {".local/state/aimesh/worker/models/a.gguf"}
    )
    assert (home / ".config/other").exists()
    # The mesh is gone, so only an administrator can revoke the node.
    assert (done.exit_code, f"aicli admin nodes revoke {node}" in done.stderr) == (1, True), done.stderr
    assert done.stdout.endswith("aimesh is removed from this machine.\n")
    again = shell("uninstall", "--yes")
    assert (again.exit_code, again.stdout) == (0, "There is nothing to remove.\n")


@pytest.mark.parametrize("models", [False, True])
def test_root_removes_the_worker_of_the_machine(
    shell: Shell, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, models: bool
) -> None:
    """systemd moves the folder of a service with its own user, and leaves a link to it."""
    monkeypatch.setattr(uninstall, "is_root", lambda: True)
    # Not those of the machine that runs the test.
    monkeypatch.setattr(units, "NAMES", ())
    state, moved, settings = tmp_path / "aimesh-worker", tmp_path / "private/aimesh-worker", tmp_path / "aimesh-worker.env"
    monkeypatch.setattr(user_folders, "SYSTEM_WORKER", state)
    monkeypatch.setattr(units, "SYSTEM_SETTINGS", settings)
    moved.parent.mkdir()
    (home / ".local/state/aimesh/worker").rename(moved)
    state.symlink_to(moved)
    settings.touch()
    done = shell("uninstall", "--yes", *(["--models"] if models else []))
    assert "aicli admin nodes revoke" in done.stderr
    assert not settings.exists()
    assert left(moved) == (set() if models else {"models/a.gguf"})
    assert (moved.exists(), state.is_symlink()) == (not models, not models)


def test_without_a_yes_nothing_is_removed(shell: Shell, home: Path) -> None:
    before = left(home)
    done = shell("uninstall")
    assert (done.exit_code, "use --yes" in done.stderr) == (2, True)
    assert str(home / ".config/aimesh") in done.stdout
    assert left(home) == before


def test_a_running_worker_is_not_removed(shell: Shell, home: Path) -> None:
    folder = join.Folder(home / ".local/state/aimesh/worker")
    lock = join.claim(folder)
    done = shell("uninstall", "--yes")
    os.close(lock)
    assert (done.exit_code, "a worker still uses" in done.stderr) == (2, True)
    assert folder.key.exists()


async def test_the_mesh_revokes_the_machine(net: SwarmNet, machine: JoiningMachine) -> None:  # noqa: F811
    door = await open_door(net)
    code, _, err = await machine.run("worker", "--join", tickets.render(door.ticket(Role.WORKER)), "--no-serve")
    assert code == 0, err
    node = node_keys.load(machine.state / "node.nk").id
    code, out, err = await machine.run("uninstall", "--yes", program=("-c", AICLI))
    assert (code, "aimesh is removed from this machine." in out) == (0, True), err
    assert door.revoked == {node}
    assert not machine.state.exists()


def test_an_installed_aicli_removes_itself(tmp_path: Path) -> None:
    found = UpdatedMachine(tmp_path / "user")
    app = found.home / "app-client-1"
    app.parent.mkdir(parents=True)
    shutil.copytree(Path(sys.prefix), app, symlinks=True, ignore=lambda _folder, names: [name for name in names if name == "site-packages"])
    (found.home / "current").symlink_to(app)
    (found.home / "mesh").write_text("https://127.0.0.1:9\n", encoding="ascii")
    link = found.folder / ".local/bin/aicli"
    link.parent.mkdir(parents=True)
    link.symlink_to(found.home / "current/bin/aicli")
    path = os.pathsep.join(each for each in sys.path if each)
    environment = {"HOME": str(found.folder), "PATH": "/usr/bin:/bin", "PYTHONPATH": path, "XDG_RUNTIME_DIR": str(found.folder)}
    command = (str(app / "bin/python"), "-c", AICLI, "uninstall", "--yes")
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert str(found.home) in done.stdout
    assert not found.home.exists()
    assert not link.is_symlink()
