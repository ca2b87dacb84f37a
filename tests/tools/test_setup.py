import contextlib
import json
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import capabilities
from tools import setup

ALL = frozenset({"g++", "cc", "make"})


@pytest.mark.parametrize(
    ("python", "has_venv", "programs", "free_gb", "words"),
    [
        pytest.param((3, 11), True, ALL, 10.0, [], id="a ready machine"),
        pytest.param((3, 14), True, ALL, 3.0, [], id="a newer Python"),
        pytest.param((3, 9), True, ALL, 10.0, ["Python 3.9 is too old", "apt-get install python3.11"], id="an old Python"),
        pytest.param((3, 11), False, ALL, 10.0, ["venv", "apt-get install python3-venv"], id="no venv"),
        pytest.param((3, 11), True, ALL - {"g++"}, 10.0, ["g++ is missing", "apt-get install g++"], id="no compiler"),
        pytest.param((3, 11), True, ALL - {"make"}, 10.0, ["make is missing", "apt-get install make"], id="no make"),
        pytest.param((3, 11), True, ALL, 1.2, ["1.2 GB", "3 GB"], id="a full disk"),
    ],
)
def test_missing_requirement_is_reported_with_a_remedy(
    python: tuple[int, int], has_venv: bool, programs: frozenset[str], free_gb: float, words: list[str]
) -> None:
    found = setup.find_mistakes(setup.SetupMachine(python, has_venv, programs, free_gb))
    assert len(found) == bool(words)
    assert all(word in found[0] for word in words)


def test_everything_missing_is_reported_together() -> None:
    assert len(setup.find_mistakes(setup.SetupMachine((3, 8), False, frozenset(), 0.0))) == 6


def test_engine_has_its_own_lock(tmp_path: Path) -> None:
    engine, others = setup.only("llama-cpp-python", tmp_path).read_text(), setup.others(tmp_path).read_text()
    assert engine.count("==") == 1
    assert "--hash=sha256:" in engine
    assert "numpy==" in others
    assert "diskcache==" in others
    assert "llama-cpp-python==" not in others


def test_another_build_has_another_cache_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    plain = setup.build_key()
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=on")
    assert setup.build_key() != plain
    assert plain.startswith(setup.engine_version())


def test_portable_build_has_the_same_cache_key_on_every_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    def keys(cmake_args: str) -> set[str]:
        monkeypatch.setenv("CMAKE_ARGS", cmake_args)
        found = set()
        for flag in ("-mno-amx-tile", ""):
            monkeypatch.setattr(setup, "compiler_flags", lambda flag=flag: flag)
            found.add(setup.build_key())
        return found

    assert len(keys("-DGGML_NATIVE=OFF")) == 1
    assert len(keys("-DGGML_NATIVE=ON")) == 2
    assert keys("-DGGML_NATIVE=OFF").isdisjoint(keys("-DGGML_NATIVE=off -DGGML_CUDA=on"))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        pytest.param("fpu avx512f amx_bf16 amx_tile amx_int8", "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16", id="a processor with AMX"),
        pytest.param("fpu avx512f", "", id="one without"),
    ],
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other compilers do not know AMX")
def test_engine_is_built_without_amx_tiles(flags: str, expected: str, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"model name\t: X\nflags\t\t: {flags}\n")
    assert setup.compiler_flags(cpuinfo) == expected
    assert setup.compiler_flags(tmp_path / "none, as on macOS") == ""


def test_compiler_flags_of_the_user_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFLAGS", "-pipe")
    monkeypatch.setattr(setup, "compiler_flags", lambda: "-mno-amx-tile")
    environment = setup.build_environment()
    assert (environment["CFLAGS"], environment["CXXFLAGS"]) == ("-pipe -mno-amx-tile", "-mno-amx-tile")


def test_gpu_build_of_the_engine_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    monkeypatch.setattr(setup, "VENV", tmp_path)
    monkeypatch.setattr(setup, "CHOICE", tmp_path / "engine")
    monkeypatch.setattr(setup.shutil, "which", lambda program: f"/usr/bin/{program}")
    plain = setup.build_key()
    setup.choose("cuda")
    assert setup.flavour() == "cuda"
    assert setup.cmake_args() == "-DGGML_CUDA=on"
    assert setup.build_key() != plain
    setup.choose("cpu")
    assert setup.build_key() == plain


def test_gpu_without_its_compiler_is_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(setup, "CHOICE", tmp_path / "engine")
    monkeypatch.setattr(setup.shutil, "which", lambda program: None)
    with pytest.raises(setup.SetupFailed, match=r"nvcc is missing.\n  install NVIDIA's CUDA toolkit"):
        setup.choose("cuda")
    assert setup.flavour() == "cpu"


def test_package_with_missing_files_is_found(tmp_path: Path) -> None:
    for name in ("whole", "damaged"):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (tmp_path / f"{name}.py").touch()
        # Quoted where the name has a comma; what Python compiles itself may go.
        record = f'{name}.py,sha256=x,0\n"{name}-1.0.dist-info/a,b",,\n__pycache__/{name}.cpython-311.pyc,,\n'
        (info / "RECORD").write_text(record)
        (info / "a,b").touch()
    assert setup.find_damaged(tmp_path) == []
    (tmp_path / "damaged.py").unlink()
    assert [info.name for info in setup.find_damaged(tmp_path)] == ["damaged-1.0.dist-info"]


def _sidecar(folder: Path) -> Path:
    packages = {
        "": {"name": "sidecar"},
        "node_modules/hyperswarm": {"version": "4.0.0"},
        "node_modules/@scope/stranger": {"version": "1.0.0", "dev": True},
        "node_modules/linter-arm64": {"version": "2.0.0", "optional": True, "cpu": ["arm64"]},
    }
    (folder / "package-lock.json").write_text(json.dumps({"packages": packages}))
    for name in ("hyperswarm", "@scope/stranger"):
        (folder / "node_modules" / name).mkdir(parents=True)
        (folder / "node_modules" / name / "package.json").write_text(json.dumps({"version": packages[f"node_modules/{name}"]["version"]}))
    (folder / "node_modules" / ".package-lock.json").touch()
    return folder


def test_missing_outdated_and_incomplete_sidecar_packages_are_found(tmp_path: Path) -> None:
    sidecar = _sidecar(tmp_path)
    packages = sidecar / "node_modules"
    assert setup.find_missing(sidecar, "dev") == []
    shutil.rmtree(packages / "@scope")
    assert setup.find_missing(sidecar, "dev") == ["node_modules/@scope/stranger"]
    assert setup.find_missing(sidecar, "runtime") == []
    (packages / "hyperswarm" / "package.json").write_text('{"version": "3.9.9"}')
    assert setup.find_missing(sidecar, "runtime") == ["node_modules/hyperswarm"]
    (packages / "hyperswarm" / "package.json").write_text("")
    assert setup.find_missing(sidecar, "runtime") == ["node_modules/hyperswarm"]
    shutil.rmtree(packages)
    assert setup.find_missing(sidecar, "runtime") == ["node_modules/hyperswarm"]


def test_interrupted_npm_install_is_found(tmp_path: Path) -> None:
    sidecar = _sidecar(tmp_path)
    (sidecar / "node_modules" / ".package-lock.json").unlink()
    assert setup.find_missing(sidecar, "runtime") == ["node_modules/hyperswarm"]


def test_changed_sidecar_lock_needs_a_new_setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "NPM_FOLDERS", {_sidecar(tmp_path): ("runtime", "the sidecar")})
    before = setup.digest_of("runtime")
    (tmp_path / "package-lock.json").write_text("{}")
    assert setup.digest_of("runtime") != before


@pytest.mark.parametrize("folder", setup.NPM_FOLDERS, ids=lambda folder: folder.name)
def test_npm_lock_names_no_registry_and_has_every_hash(folder: Path) -> None:
    text = (folder / "package-lock.json").read_text(encoding="utf-8")
    packages = json.loads(text)["packages"]
    assert '"resolved"' not in text
    assert all(each["integrity"].startswith("sha512-") for name, each in packages.items() if name)
    # Packages are installed with --ignore-scripts; a package that needs its script would be installed but not work.
    assert not [name for name, each in packages.items() if each.get("hasInstallScript")]
    # npm refuses a lock that lacks what a package may want, and a mirror need not have what is for other systems.
    wanted = {f"node_modules/{name}" for each in packages.values() for name in each.get("optionalDependencies", {})}
    assert wanted <= packages.keys()


ALL_PACKAGES = "chromium chromium-sandbox fonts-liberation iproute2 iptables conntrack prometheus prometheus-alertmanager pgbouncer"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """The programs that the machine has, which is a bare Debian."""
    programs = {"apt-get"}
    monkeypatch.setattr(setup, "SBIN", tmp_path)
    monkeypatch.setattr(setup.shutil, "which", lambda program: program if program in programs else None)
    monkeypatch.setattr(setup.os, "geteuid", lambda: 1000)
    return programs


def test_installed_browser_is_the_one_the_tests_use() -> None:
    assert setup.BROWSERS == capabilities.BROWSERS


def test_ordinary_user_gets_one_command_for_system_packages(installed: set[str]) -> None:
    with pytest.raises(setup.SetupFailed, match=f"(?m)^  sudo apt-get install -y --no-install-recommends {ALL_PACKAGES}$"):
        setup.ensure_system()
    installed |= {"chromium-browser", "ip", "iptables", "conntrack", "promtool", "amtool"}
    with pytest.raises(setup.SetupFailed, match=r"(?m)^  sudo apt-get install -y --no-install-recommends pgbouncer$"):
        setup.ensure_system()


def test_systems_other_than_debian_get_the_list_of_programs(installed: set[str]) -> None:
    installed.remove("apt-get")
    with pytest.raises(setup.SetupFailed, match=r"skipped here.*Debian's names: chromium, "):
        setup.ensure_system()


def test_root_installs_only_missing_system_packages(installed: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(setup.os, "geteuid", lambda: 0)
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(setup, "apt_get", lambda *command: ran.append(command))
    monkeypatch.setattr(setup, "without_services", lambda *_: contextlib.nullcontext())
    installed |= {"chromium", "ip", "iptables", "conntrack"}
    setup.ensure_system()
    assert ran == [("apt-get", "update"), (*setup.INSTALL, "prometheus", "prometheus-alertmanager", "pgbouncer")]
    installed |= {"promtool", "amtool"}
    (tmp_path / "pgbouncer").touch()
    ran.clear()
    setup.ensure_system()
    assert not ran


def test_packages_installed_for_tests_start_no_service(tmp_path: Path) -> None:
    policy, units = tmp_path / "policy-rc.d", tmp_path / "units"
    units.mkdir()
    (units / "mine.service").write_text("[Unit]")
    with pytest.raises(ZeroDivisionError), setup.without_services(policy, units, ["prometheus", "mine"]):
        assert subprocess.run([policy, "prometheus", "start"], check=False).returncode == 101
        raise ZeroDivisionError
    assert not policy.exists()
    assert (units / "prometheus.service").readlink() == Path("/dev/null")
    assert (units / "mine.service").read_text() == "[Unit]"
    policy.write_text("#!/bin/sh")
    with setup.without_services(policy, tmp_path / "no systemd", ["prometheus"]):
        pass
    assert policy.read_text() == "#!/bin/sh"


def test_locks_name_no_index() -> None:
    for lock in setup.LOCKS.glob("*.lock"):
        assert "://" not in lock.read_text(), lock
