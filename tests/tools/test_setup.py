import contextlib
import json
import os
import platform
import shutil
import signal
import sys
import time
import venv
from pathlib import Path

import psutil
import pytest

from tools import setup, setup_steps

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


def test_machine_with_a_wheel_of_the_engine_needs_no_compiler() -> None:
    machine = setup.SetupMachine((3, 11), True, frozenset(), 10.0)
    assert setup.find_mistakes(machine, has_wheel=True) == []
    assert len(setup.find_mistakes(machine)) == 3


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
    with pytest.raises(setup_steps.SetupFailed, match=r"nvcc is missing.\n  install NVIDIA's CUDA toolkit"):
        setup.choose("cuda")
    assert setup.flavour() == "cpu"


@pytest.mark.parametrize(
    ("log", "shown"),
    [
        pytest.param(b"Collecting cmake\n", ("", ""), id="before the first step"),
        pytest.param(b"  [1/78] cc a.c\n  [39/78] cc b.c\n", ("39 of 78 steps", "about 2 min left"), id="halfway after 100 seconds"),
        pytest.param(b"  [78/78] ld\n", ("78 of 78 steps", "less than a minute left"), id="after the last step"),
    ],
)
def test_position_of_a_build(log: bytes, shown: tuple[str, str]) -> None:
    assert setup.engine_position(log, 100.0) == shown


@pytest.fixture
def engine_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of engines; returns the folder for this machine's engine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(setup, "ENGINE_LOG", tmp_path / "engine-build.log")
    monkeypatch.setattr(setup, "CHOICE", tmp_path / "no choice")
    monkeypatch.delenv("ENGINE_WHEEL", raising=False)
    return setup.wheel_folder()


def _built_by(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(
        setup, "engine_commands", lambda build: [["mkdir", str(build / "out")], ["/bin/sh", "-c", script, "sh", str(build)]]
    )


def test_engine_is_built_once_while_other_steps_run(monkeypatch: pytest.MonkeyPatch, engine_cache: Path) -> None:
    _built_by(monkeypatch, 'while ! test -e "$1/go"; do sleep 0.02; done; echo wheel > "$1/out/engine.whl"')
    with setup.engine_wheel() as wheel:
        (building,) = engine_cache.glob(".building-*")
        # The build waits for this other step.
        (building / "go").touch()
        assert Path(wheel()).read_text() == "wheel\n"
    assert [path.name for path in engine_cache.iterdir()] == ["engine.whl"]
    _built_by(monkeypatch, "exit 1")
    assert setup.ensure_engine_wheel() == str(engine_cache / "engine.whl")


def test_given_wheel_is_taken_by_its_hash(monkeypatch: pytest.MonkeyPatch, engine_cache: Path, tmp_path: Path) -> None:
    _built_by(monkeypatch, "exit 1")
    name, digest = f"llama_cpp_python-{setup.engine_version()}-py3-none-linux_x86_64.whl", f"#sha256={'0' * 64}"
    plain = setup.digest_of("runtime")
    for given, expected in (
        (f"https://ai.example.org/{name}{digest}", f"https://ai.example.org/{name}{digest}"),
        (f"{tmp_path}/{name}{digest}", f"file://{tmp_path}/{name}{digest}"),
    ):
        monkeypatch.setenv("ENGINE_WHEEL", given)
        assert setup.ensure_engine_wheel() == expected
        assert setup.digest_of("runtime") != plain
    # A run without the variable keeps what an earlier one saved, until an engine is chosen.
    monkeypatch.delenv("ENGINE_WHEEL")
    monkeypatch.setattr(setup, "CHOICE", tmp_path / "choice")
    setup.CHOICE.write_text(f"cpu\n{expected}\n")
    assert (setup.flavour(), setup.ensure_engine_wheel()) == ("cpu", expected)
    setup.choose("cpu")
    assert setup.digest_of("runtime") == plain


def test_saved_wheel_of_an_older_release_is_refused(monkeypatch: pytest.MonkeyPatch, engine_cache: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(setup, "CHOICE", tmp_path / "choice")
    setup.CHOICE.write_text(f"cpu\nfile:///x/llama_cpp_python-0.0.1-py3-none-any.whl#sha256={'0' * 64}\n")
    with pytest.raises(setup_steps.SetupFailed, match="this release needs llama_cpp_python-"):
        setup.ensure_engine_wheel()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        pytest.param("/x/llama_cpp_python-{}-py3-none-any.whl", "has no hash: add #sha256=", id="no hash"),
        pytest.param("/x/llama_cpp_python-{}-py3-none-any.whl#sha256=00", "has no hash: add #sha256=", id="a short hash"),
        pytest.param(
            f"/x/llama_cpp_python-0.0.1-py3-none-any.whl#sha256={'0' * 64}", "this release needs llama_cpp_python-", id="another version"
        ),
    ],
)
def test_given_wheel_that_cannot_be_checked_is_refused(given: str, reason: str) -> None:
    with pytest.raises(setup_steps.SetupFailed, match=reason):
        setup.find_wheel(given.format(setup.engine_version()))


def test_failed_build_shows_the_end_of_its_log(monkeypatch: pytest.MonkeyPatch, engine_cache: Path) -> None:
    _built_by(monkeypatch, "echo no room on the disk; exit 3")
    with pytest.raises(setup_steps.SetupFailed, match=r"from source, once failed \(exit status 3\)(.|\n)*no room on the disk"):
        setup.ensure_engine_wheel()
    assert list(engine_cache.iterdir()) == []


def test_build_ends_with_its_set_up(monkeypatch: pytest.MonkeyPatch, engine_cache: Path, tmp_path: Path) -> None:
    # The compiler is a grandchild process.
    _built_by(monkeypatch, f"sleep 1000 & echo $! > {tmp_path}/compiler; wait")
    with pytest.raises(KeyboardInterrupt), setup.engine_wheel():
        while not (tmp_path / "compiler").exists() or not (compiler := (tmp_path / "compiler").read_text()):
            time.sleep(0.02)
        raise KeyboardInterrupt
    with contextlib.suppress(psutil.NoSuchProcess):
        # Raises TimeoutExpired if the compiler keeps running.
        psutil.Process(int(compiler)).wait(timeout=30)
    assert list(engine_cache.iterdir()) == []


def test_package_with_missing_files_is_found(tmp_path: Path) -> None:
    for name in ("whole", "damaged"):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (tmp_path / f"{name}.py").touch()
        # Names with a comma are quoted; files that Python compiles may be missing.
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
    # npm refuses a lock without a package's optional dependencies, but a mirror may lack those for other systems.
    wanted = {f"node_modules/{name}" for each in packages.values() for name in each.get("optionalDependencies", {})}
    assert wanted <= packages.keys()


def test_locks_name_no_index() -> None:
    for lock in setup.LOCKS.glob("*.lock"):
        assert "://" not in lock.read_text(), lock


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(setup, "ENGINE_LEFT", tmp_path / "engine-build.left")
    monkeypatch.setattr(setup_steps, "SCREEN", setup_steps.SetupScreen())
    return tmp_path / "engine-build.left"


def test_program_has_the_terminal_while_the_engine_is_built(capfd: pytest.CaptureFixture[str], left: Path, tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    os.mkfifo(go_on)
    with setup.program_beside(["sh", "-c", f"echo started; cat '{go_on}'; exit 3"]):
        with setup_steps.progress("building"):
            assert left.read_text() == "a few minutes left"
        go_on.write_text("")
        assert setup_steps.SCREEN.program is not None
        assert setup_steps.SCREEN.program.wait(60) == 3
        with setup_steps.progress("installing"):
            pass
    assert not left.exists()
    shown = capfd.readouterr()
    assert shown.out == "started\n"
    # The end of the program frees the terminal.
    assert "building" not in shown.err
    assert "installing: done in 0 s" in shown.err


#: Reports that it is ready, waits for the given signal, and ignores the others.
WAITS = """
import signal, sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
open(sys.argv[1], "w").close()
sys.exit(signal.sigwait({signal.Signals[sys.argv[2]]}))
"""


@pytest.mark.parametrize("awaited", ["SIGINT", "SIGUSR1"])
def test_program_is_ended_if_the_engine_cannot_be_built(left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, awaited: str) -> None:
    """A program that ignores the interrupt is killed."""
    monkeypatch.setattr(setup, "END_SECONDS", 300 if awaited == "SIGINT" else 0.05)
    ready = tmp_path / "ready"
    os.mkfifo(ready)

    def fail() -> None:
        with setup.program_beside([sys.executable, "-c", WAITS, str(ready), awaited]):
            ready.read_text()
            raise setup_steps.SetupFailed("no compiler")

    with pytest.raises(setup_steps.SetupFailed, match="no compiler"):
        fail()
    assert setup_steps.SCREEN.program is not None
    assert setup_steps.SCREEN.program.returncode == (signal.SIGINT if awaited == "SIGINT" else -signal.SIGKILL)
    assert not left.exists()


def test_without_a_program_no_worker_waits(left: Path) -> None:
    with setup.program_beside([]):
        assert not left.exists()


def test_the_package_that_aicli_was_in_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Otherwise its metadata would stay, and its removal later would take the program of the new one."""
    monkeypatch.setattr(setup, "VENV", tmp_path)
    monkeypatch.setattr(setup_steps, "LOG", tmp_path / "setup.log")
    venv.create(tmp_path, with_pip=True)
    info = setup.packages_folder() / "aimesh-0.2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: aimesh\nVersion: 0.2.0\n", encoding="utf-8")
    (info / "RECORD").write_text(
        "../../../bin/aicli,,\naimesh-0.2.0.dist-info/METADATA,,\naimesh-0.2.0.dist-info/RECORD,,\n", encoding="utf-8"
    )
    (tmp_path / "bin" / "aicli").touch()
    setup.remove_former_project()
    assert not info.exists()
    assert not (tmp_path / "bin" / "aicli").exists()
