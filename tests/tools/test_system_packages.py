import contextlib
import subprocess
from pathlib import Path

import pytest

from tests import capabilities
from tools import system_packages

ALL_PACKAGES = (
    "chromium-headless-shell chromium-sandbox fonts-liberation iproute2 iptables conntrack curl systemd "
    "prometheus prometheus-alertmanager pgbouncer docker-registry etcd-server skopeo"
)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """The programs on the machine, which is a bare Debian."""
    programs = {"apt-get"}
    monkeypatch.setattr(system_packages, "SBIN", tmp_path)
    monkeypatch.setattr(system_packages.shutil, "which", lambda program: program if program in programs else None)
    monkeypatch.setattr(system_packages.os, "geteuid", lambda: 1000)
    return programs


def test_installed_browser_is_the_one_the_tests_use() -> None:
    assert system_packages.BROWSERS == capabilities.BROWSERS


def test_ordinary_user_gets_one_command_for_system_packages(installed: set[str]) -> None:
    with pytest.raises(system_packages.SystemNotReady, match=f"(?m)^  sudo apt-get install -y --no-install-recommends {ALL_PACKAGES}$"):
        system_packages.ensure_system()
    installed |= {"chromium-browser", "ip", "iptables", "conntrack", "curl", "systemd-analyze", "promtool", "amtool"}
    with pytest.raises(
        system_packages.SystemNotReady,
        match=r"(?m)^  sudo apt-get install -y --no-install-recommends pgbouncer docker-registry etcd-server skopeo$",
    ):
        system_packages.ensure_system()


def test_systems_other_than_debian_get_the_list_of_programs(installed: set[str]) -> None:
    installed.remove("apt-get")
    with pytest.raises(system_packages.SystemNotReady, match=r"skipped here.*Debian's names: chromium-headless-shell, "):
        system_packages.ensure_system()


def test_root_installs_only_missing_system_packages(installed: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(system_packages.os, "geteuid", lambda: 0)
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(system_packages, "apt_get", lambda *command: ran.append(command))
    monkeypatch.setattr(system_packages, "without_services", lambda *_: contextlib.nullcontext())
    installed |= {"chromium", "ip", "iptables", "conntrack", "curl", "systemd-analyze"}
    system_packages.ensure_system()
    assert ran == [
        ("apt-get", "update"),
        (*system_packages.INSTALL, "prometheus", "prometheus-alertmanager", "pgbouncer", "docker-registry", "etcd-server", "skopeo"),
    ]
    installed |= {"promtool", "amtool", "docker-registry", "etcd", "skopeo"}
    (tmp_path / "pgbouncer").touch()
    ran.clear()
    system_packages.ensure_system()
    assert not ran


def test_packages_installed_for_tests_start_no_service(tmp_path: Path) -> None:
    policy, units = tmp_path / "policy-rc.d", tmp_path / "units"
    units.mkdir()
    (units / "mine.service").write_text("[Unit]")
    with pytest.raises(ZeroDivisionError), system_packages.without_services(policy, units, ["prometheus", "mine"]):
        assert subprocess.run([policy, "prometheus", "start"], check=False).returncode == 101
        raise ZeroDivisionError
    assert not policy.exists()
    assert (units / "prometheus.service").readlink() == Path("/dev/null")
    assert (units / "mine.service").read_text() == "[Unit]"
    policy.write_text("#!/bin/sh")
    with system_packages.without_services(policy, tmp_path / "no systemd", ["prometheus"]):
        pass
    assert policy.read_text() == "#!/bin/sh"


def test_ctrl_c_ends_the_installation_without_a_traceback(
    installed: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*command: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(system_packages.os, "geteuid", lambda: 0)
    monkeypatch.setattr(system_packages, "without_services", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(system_packages, "apt_get", interrupted)
    assert system_packages.main() == 130
    assert capsys.readouterr().err == "\nInterrupted; run the same command again to continue.\n"
