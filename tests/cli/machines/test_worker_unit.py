"""`aicli worker install`: the unit that it writes, a second install, and refusals."""

import subprocess
from pathlib import Path

import pytest

from cli import user_folders
from cli.machines.units import text_of
from cli.machines.worker_unit import unit_of
from cli.output.exit_codes import ExitCode
from shared import errors
from tests import capabilities
from tests.cli.fake_mesh import Shell

ROOT = Path(__file__).parents[3]
PROGRAM = "/opt/aimesh/.venv/bin/aicli"
COMMAND = (PROGRAM, "worker", "--state", "/var/lib/aimesh-worker", "--models", "/srv/models")
SETTINGS = "/etc/aimesh-worker.env"
SYSTEM = unit_of(COMMAND, SETTINGS, is_system=True)


@pytest.fixture
def joined(shell: Shell) -> Shell:
    """A machine whose worker has joined a mesh."""
    state = Path(shell.environment["HOME"]) / ".local/state/aimesh/worker"
    state.mkdir(parents=True)
    (state / "node.nk").write_text("SECRETSEED", encoding="ascii")
    # Without it, the developer's own systemd would start a worker.
    shell.environment["XDG_RUNTIME_DIR"] = str(shell.folder)
    return shell


def settings(text: str) -> set[str]:
    return {line for line in text.splitlines() if line and not line.startswith("#")}


def test_system_unit_equals_the_one_in_deploy() -> None:
    written = (ROOT / "deploy/worker.service").read_text(encoding="utf-8").replace("%S", "/var/lib")
    assert settings(text_of(SYSTEM)) == settings(written)


def test_the_worker_cannot_write_the_settings_that_systemd_reads_as_root() -> None:
    text = text_of(SYSTEM)
    (file,) = [line.removeprefix("EnvironmentFile=-") for line in text.splitlines() if line.startswith("EnvironmentFile=")]
    assert "ProtectSystem=strict\n" in text
    assert not Path(file).is_relative_to(user_folders.SYSTEM_WORKER)


def test_revoked_worker_is_not_restarted() -> None:
    assert f"RestartPreventExitStatus=2 {ExitCode.REVOKED}\n" in text_of(SYSTEM)


def test_a_gpu_is_reachable() -> None:
    text = text_of(unit_of(COMMAND, SETTINGS, is_system=True, gpu_groups=("render",)))
    assert "PrivateDevices=no\nSupplementaryGroups=render\n" in text
    assert "PrivateDevices=yes" not in text


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("/srv/models", "/srv/models"),
        ("/srv/my models", '"/srv/my models"'),
        ("/srv/100%/$HOME", "/srv/100%%/$$HOME"),
        ('/srv/a"b\\c', '"/srv/a\\"b\\\\c"'),
        ("/srv/モデル", "/srv/モデル"),
        ("", '""'),
    ],
)
def test_paths_are_quoted(path: str, written: str) -> None:
    text = text_of(unit_of((PROGRAM, "--models", path), "/s", is_system=False))
    assert f"ExecStart={PROGRAM} --models {written}\n" in text


def test_a_path_cannot_add_a_setting() -> None:
    with pytest.raises(errors.BadSettings, match="can't be in a systemd unit"):
        text_of(unit_of((PROGRAM, "--models", "/a\nUser=root"), "/s", is_system=False))


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    capabilities.require("systemd")
    analyze = capabilities.find_program("systemd-analyze")
    assert analyze is not None
    command = ("/bin/true", 'a b"c', "100%", "$HOME")
    for unit in (unit_of(command, SETTINGS, is_system=True, gpu_groups=("video",)), unit_of(command, "/tmp/a b", is_system=False)):
        path = tmp_path / "aimesh-worker.service"
        path.write_text(text_of(unit), encoding="utf-8")
        done = subprocess.run(
            [analyze, "verify", "--man=no", str(path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert path.name not in done.stderr, done.stderr


def test_install_is_idempotent_and_can_be_removed(joined: Shell) -> None:
    path = Path(joined.environment["HOME"]) / ".config/systemd/user/aimesh-worker.service"
    first = joined("worker", "install", "--user", "--models", "models")
    assert first.exit_code == 0, first.stderr
    assert first.stdout == path.read_text(encoding="utf-8")
    assert f"--models {joined.folder}/models\n" in first.stdout
    config = Path(joined.environment["HOME"]) / ".config"
    assert f"EnvironmentFile=-{config}/aimesh-worker.env\n" in first.stdout
    assert f"{config}/aimesh-worker.env" in first.stderr
    assert "SECRETSEED" not in first.stdout + first.stderr
    assert "your account has no systemd here, so nothing starts it. To run it now: " in first.stderr
    assert f"aicli worker --state {joined.environment['HOME']}/.local/state/aimesh/worker --models" in first.stderr
    before = path.stat()
    again = joined("worker", "install", "--user", "--models", "models")
    assert (again.stdout, path.stat().st_ino) == (first.stdout, before.st_ino)
    assert f"\nUnchanged: {path}\n" in again.stderr
    changed = joined("worker", "install", "--user")
    assert changed.stdout == path.read_text(encoding="utf-8") != first.stdout
    assert f"\nWrote {path}\n" in changed.stderr
    assert [file.name for file in path.parent.iterdir()] == [path.name]

    wants = path.parent / "default.target.wants" / path.name
    wants.parent.mkdir()
    wants.symlink_to(path)
    assert joined("worker", "install", "--user", "--remove").stdout == f"Removed {path}.\n"
    assert not path.exists()
    assert not wants.is_symlink()
    assert joined("worker", "install", "--user", "--remove").stdout == f"There is no {path}.\n"


def test_the_service_uses_the_proxy_of_this_terminal_unless_its_settings_name_one(joined: Shell) -> None:
    file = Path(joined.environment["HOME"]) / ".config/aimesh-worker.env"
    joined.environment["NO_PROXY"] = "10.0.0.0/8"
    assert joined("worker", "install", "--user").exit_code == 0
    assert not file.exists(), "no proxy, no exceptions"
    file.write_text("OLLAMA_URL=http://127.0.0.1:11434", encoding="utf-8")
    joined.environment["https_proxy"] = "http://ann:secret@proxy.test:3128"
    expected = "OLLAMA_URL=http://127.0.0.1:11434\nNO_PROXY=10.0.0.0/8\nHTTPS_PROXY=http://ann:secret@proxy.test:3128\n"
    for _ in range(2):
        result = joined("worker", "install", "--user")
        assert (file.read_text(encoding="utf-8"), file.stat().st_mode & 0o077) == (expected, 0)
        assert "secret" not in result.stdout + result.stderr
        joined.environment["https_proxy"] = "http://another.test:3128"


def test_a_machine_that_has_not_joined_is_refused(shell: Shell) -> None:
    result = shell("worker", "install", "--user")
    assert result.exit_code == 2
    assert "no worker has joined a mesh" in result.stderr
    assert "aicli worker --join TICKET --no-serve" in result.stderr


def test_a_system_service_needs_its_own_state_folder(joined: Shell) -> None:
    result = joined("worker", "install", "--system", "--state", str(Path(joined.environment["HOME"]) / ".local/state/aimesh/worker"))
    assert result.exit_code == 2
    assert "a service of the machine has its state in /var/lib/aimesh-worker" in result.stderr


def test_a_folder_that_cannot_be_written_is_named(joined: Shell) -> None:
    config = Path(joined.environment["HOME"]) / ".config"
    config.write_text("a file where the folder should be", encoding="utf-8")
    result = joined("worker", "install", "--user")
    assert result.exit_code == 2
    assert "cannot change" in result.stderr
