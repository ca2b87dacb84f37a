import json
import tomllib
from pathlib import Path

import pytest

from tools import deploy_tools, setup_steps, system_packages


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(deploy_tools, "TOOLS", tmp_path)
    (tmp_path / "bin").mkdir()
    return tmp_path


def test_nothing_is_installed_again_until_a_lock_changes(tools: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[str] = []

    def pretend(what: str) -> None:
        calls.append(what)
        for name in deploy_tools.programs():
            (tools / "bin" / name).touch()

    monkeypatch.setattr(deploy_tools, "install_python", lambda: pretend("python"))
    monkeypatch.setattr(deploy_tools, "install_npm", lambda: pretend("npm"))
    deploy_tools.install()
    deploy_tools.install()
    assert calls == ["python", "npm"]
    # A removed program is installed again, and so is everything when the lock changes.
    (tools / "bin" / "helm").unlink()
    deploy_tools.install()
    assert calls == ["python", "npm"] * 2
    changed = tmp_path / "deploy.lock"
    changed.write_text("checkov==1.0.0\n", encoding="utf-8")
    monkeypatch.setattr(deploy_tools, "LOCK", changed)
    deploy_tools.install()
    assert calls == ["python", "npm"] * 3


def test_a_package_without_its_program_is_named(tools: Path) -> None:
    with pytest.raises(setup_steps.SetupFailed, match="helm is missing"):
        deploy_tools.link("helm", tools / "layer" / "helm")


def test_only_root_can_install_engines_and_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(system_packages, "SBIN", tmp_path)
    monkeypatch.setattr(system_packages.shutil, "which", lambda program: program if program in ("apt-get", "nginx") else None)
    monkeypatch.setattr(system_packages.os, "geteuid", lambda: 1000)
    lacking = " ".join(name for name in deploy_tools.DEBIAN if name != "nginx")
    with pytest.raises(system_packages.SystemNotReady, match=f"(?m)^  sudo apt-get install -y --no-install-recommends {lacking}$"):
        system_packages.ensure_system(deploy_tools.DEBIAN, deploy_tools.DEBIAN_SERVERS)


def test_every_program_comes_from_a_package_of_a_lock() -> None:
    lock = deploy_tools.LOCK.read_text(encoding="utf-8")
    groups = tomllib.loads((setup_steps.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    for name in set(deploy_tools.PYTHON_PROGRAMS) - {"python"}:
        assert any(entry.startswith(name) for entry in groups["deploy"]), name
        assert f"\n{name}" in lock
    packages = json.loads((deploy_tools.NPM / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert f"node_modules/{deploy_tools.LAYER.rpartition('/lib/')[0]}" in packages
    # The frameworks would be installed as peer dependencies, which take hundreds of megabytes.
    assert "node_modules/aws-cdk-lib" not in packages
