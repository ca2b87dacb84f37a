"""What a command says that needs packages which this installation lacks."""

import sys
from pathlib import Path

import pytest

from cli import missing_packages
from shared.telemetry import version

MESH = "https://192.168.1.20:3000"
RELEASE = "https://github.com/OWNER/aimesh/releases/download/v0.4.0"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an aicli that install.sh has installed for a client, without the mesh that it came from."""
    app = tmp_path / "app-client-1"
    app.mkdir()
    (tmp_path / "current").symlink_to(app)
    monkeypatch.setattr(sys, "prefix", str(app))
    monkeypatch.setattr(sys, "platform", "linux")
    return tmp_path


def hint_of(module: str) -> str:
    found = missing_packages.explain(ImportError(name=module))
    assert found is not None
    return found.hint


def test_an_aicli_from_a_mesh_names_the_line_of_that_mesh(home: Path) -> None:
    """It has no pip, and no folder of a release."""
    (home / "mesh").write_text(f"{MESH}\n", encoding="ascii")
    (home / "mesh.pem").touch()
    line = f"curl -fsS --cacert {home}/mesh.pem {MESH}/install.sh"
    assert hint_of("cli.machines.worker") == f"with a worker's ticket, this line installs them and joins: {line} | sh -s -- TICKET"
    connect = f"connect over HTTPS (aicli login), or with a client's ticket: {line} | AIMESH_MESH=1 sh -s -- TICKET"
    assert hint_of("nats.aio") == connect
    assert hint_of("cryptography.hazmat") == f"{line} | AIMESH_MESH=1 sh"
    assert {hint_of(module) for module in ("stack", "services.settings_check", "asyncpg")} == {
        "a mesh runs in a checkout of aimesh: make up"
    }


def test_an_aicli_from_a_release_names_the_line_of_that_release(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mesh").write_text("\n", encoding="ascii")
    monkeypatch.setattr(version, "release_url", lambda: RELEASE)
    assert hint_of("cli.machines.worker").endswith(f": curl -fsSL {RELEASE}/install.sh | sh -s -- TICKET")


def test_on_macos_the_script_makes_a_worker_and_no_client_of_the_mesh(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mesh").write_text(f"{MESH}\n", encoding="ascii")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "curl" in hint_of("cli.machines.worker")
    assert "curl" not in hint_of("nats") + hint_of("cryptography")


def test_without_a_script_it_names_the_requirements_of_a_release() -> None:
    assert "-m pip install --require-hashes -r requirements-server.txt" in hint_of("cli.machines.worker")
    assert "-m pip install --require-hashes -r requirements-mesh.txt" in hint_of("cryptography")


def test_a_strangers_module_is_a_bug() -> None:
    assert missing_packages.explain(ImportError(name="numpy")) is None
    assert missing_packages.explain(ImportError()) is None
