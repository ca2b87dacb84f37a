import json
import shutil
import sys
from pathlib import Path

import pytest

from tools import setup, setup_steps

ALL = frozenset({"g++", "cc", "make"})
HERE, CACHE = Path("/srv/aimesh"), setup_steps.cache_folder()
ROOMY = (setup.Disk(3.0, {HERE: 2, CACHE: 1}),)


@pytest.mark.parametrize(
    ("python", "has_venv", "programs", "disks", "words"),
    [
        pytest.param((3, 11), True, ALL, ROOMY, [], id="a ready machine"),
        pytest.param((3, 14), True, ALL, ROOMY, [], id="a newer Python"),
        pytest.param((3, 9), True, ALL, ROOMY, ["Python 3.9 is too old", "apt-get install python3.11"], id="an old Python"),
        pytest.param((3, 11), False, ALL, ROOMY, ["venv", "apt-get install python3-venv"], id="no venv"),
        pytest.param((3, 11), True, ALL - {"g++"}, ROOMY, ["g++ is missing", "apt-get install g++"], id="no compiler"),
        pytest.param((3, 11), True, ALL - {"make"}, ROOMY, ["make is missing", "apt-get install make"], id="no make"),
        pytest.param(
            *((3, 11), True, ALL, (setup.Disk(2.9, {HERE: 2, CACHE: 1}),)),
            [f"setup needs 2 GB in {HERE} and 1 GB in {CACHE}, but only 2.9 GB are free there", "XDG_CACHE_HOME"],
            id="a full disk of both folders",
        ),
        pytest.param(
            *((3, 11), True, ALL, (setup.Disk(40.0, {HERE: 2}), setup.Disk(0.5, {CACHE: 1}))),
            [f"setup needs 1 GB in {CACHE}, but only 0.5 GB are free there", "XDG_CACHE_HOME"],
            id="a full disk of the cache",
        ),
    ],
)
def test_missing_requirement_is_reported_with_a_remedy(
    python: tuple[int, int], has_venv: bool, programs: frozenset[str], disks: tuple[setup.Disk, ...], words: list[str]
) -> None:
    found = setup.find_mistakes(setup.SetupMachine(python, has_venv, programs, disks), compiles=True)
    assert len(found) == bool(words)
    assert all(word in found[0] for word in words)


def test_everything_missing_is_reported_together() -> None:
    assert len(setup.find_mistakes(setup.SetupMachine((3, 8), False, frozenset(), (setup.Disk(0.0, {HERE: 2}),)), compiles=True)) == 6


def test_only_the_disk_of_the_checkout_is_full() -> None:
    """No setting moves it."""
    (found,) = setup.find_mistakes(setup.SetupMachine((3, 11), True, ALL, (setup.Disk(1.9, {HERE: 2}), setup.Disk(40.0, {CACHE: 1}))))
    assert f"2 GB in {HERE}" in found
    assert "XDG_CACHE_HOME" not in found


def test_folders_on_one_disk_are_counted_together(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (disk,) = setup.find_disks({tmp_path: 2, folder: 1})
    assert disk.needed_gb == {tmp_path: 2, folder: 1}
    assert disk.free_gb > 0


def test_full_tmp_does_not_stop_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", "/dev/full")
    monkeypatch.setattr(setup_steps, "LOG", tmp_path / "setup.log")
    told = "import pathlib, sys, tempfile; pathlib.Path(sys.argv[1]).write_text(tempfile.gettempdir())"
    setup_steps.run("a step", sys.executable, "-c", told, str(tmp_path / "told"))
    assert (tmp_path / "told").read_text() == str(tmp_path / "aimesh" / "wheels")


def test_prebuilt_engine_needs_no_compiler() -> None:
    machine = setup.SetupMachine((3, 11), True, frozenset(), ROOMY)
    assert setup.find_mistakes(machine) == []
    assert len(setup.find_mistakes(machine, compiles=True)) == 3


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
    for lock in setup_steps.LOCKS.glob("*.lock"):
        assert "://" not in lock.read_text(), lock


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        pytest.param(None, 0, "", id="nothing"),
        pytest.param(setup_steps.SetupFailed("no disk"), 1, "no disk\n", id="a step"),
        pytest.param(
            FileNotFoundError(2, "No such file or directory", "uv"), 1, "[Errno 2] No such file or directory: 'uv'\n", id="a file"
        ),
        pytest.param(ZeroDivisionError("what else may fail"), 1, "what else may fail\n", id="what the program names"),
        pytest.param(KeyboardInterrupt(), 130, "\nInterrupted; run the same command again to continue.\n", id="Ctrl-C"),
    ],
)
def test_a_program_ends_with_a_message(failure: BaseException | None, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        if failure is not None:
            raise failure

    assert setup_steps.exit_code(work, ZeroDivisionError) == code
    assert capsys.readouterr().err == said
