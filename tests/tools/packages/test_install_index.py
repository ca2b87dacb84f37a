"""What a mesh's package index has after a first run, an unchanged one and a new version. Stand-ins write files in place of pip and npm."""

import fcntl
import hashlib
import os
import re
import time
from pathlib import Path

import pytest

from tools import engine_libraries, setup_steps
from tools.packages import install_index, role_packages
from tools.packages.install_index import IndexFolder, Target

CLIENT = Target.parse("client-linux-x86_64-3.11")


class Makers:
    """Write empty packages, and count how often the index is published."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.version = "0.2.0"
        self.published = 0
        self.is_offline = False
        publish = IndexFolder.publish

        def count(folder: IndexFolder) -> None:
            self.published += 1
            publish(folder)

        patch.setattr(IndexFolder, "publish", count)
        patch.setattr(setup_steps, "pip", self._download)
        patch.setattr(role_packages, "build_ours", self._build)
        patch.setattr(role_packages, "build_nkeys", lambda into: _write(into / "nkeys-0.2.1-py3-none-any.whl"))
        patch.setattr(role_packages, "pack_javascript", lambda into: _write(into / "aimesh-client-0.tgz"))
        patch.setattr(install_index, "_state_of_code", lambda: self.version)

    def _build(self, into: Path, _projects: object) -> None:
        for name in ("aimesh_client", "aimesh_hyperswarm", "aimesh_hyperswarm_python", "aimesh_server"):
            _write(into / f"{name}-{self.version}-py3-none-any.whl")

    def _download(self, what: str, *arguments: str) -> None:
        if self.is_offline:
            raise setup_steps.SetupFailed(f"{what} failed: no network")
        option = "--dest" if "--dest" in arguments else "-d"
        name = "click-8.5.1" if option == "--dest" else f"pip-{role_packages.locked_versions()['pip']}"
        _write(Path(arguments[arguments.index(option) + 1]) / f"{name}-py3-none-any.whl")


def _write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(path.name.encode())


def test_a_new_version_replaces_the_former_one_and_nothing_else_is_published_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    makers = Makers(monkeypatch)
    install_index.fill(tmp_path, [CLIENT])
    install_index.fill(tmp_path, [CLIENT])
    assert makers.published == 1
    assert (tmp_path / "client.txt").read_text(encoding="utf-8").startswith("aimesh-client==0.2.0 --hash=sha256:")
    makers.version = "0.3.0"
    install_index.fill(tmp_path, [CLIENT])
    assert makers.published == 2
    [line] = [each for each in (tmp_path / "client.txt").read_text(encoding="utf-8").splitlines() if each.startswith("aimesh-client==")]
    assert (line.split()[0], line.count("--hash")) == ("aimesh-client==0.3.0", 1)
    assert [path.name for path in tmp_path.glob("pip-*.whl")] == [f"pip-{role_packages.locked_versions()['pip']}-py3-none-any.whl"]


def test_the_index_of_a_mesh_without_internet_follows_its_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    makers = Makers(monkeypatch)
    install_index.fill(tmp_path, [CLIENT])
    makers.version, makers.is_offline = "0.3.0", True
    install_index.fill(tmp_path, [CLIENT])
    assert (tmp_path / "client.txt").read_text(encoding="utf-8").startswith("aimesh-client==0.3.0 --hash=sha256:")
    assert '"ready":["client-linux-x86_64-3.11"]' in (tmp_path / install_index.INDEX_FILE).read_text(encoding="utf-8")


def test_without_internet_a_machine_is_not_ready_if_the_new_version_needs_other_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    makers = Makers(monkeypatch)
    install_index.fill(tmp_path, [CLIENT])
    makers.version, makers.is_offline = "0.3.0", True
    record = tmp_path / "fetched" / f"{CLIENT}.json"
    record.write_text(record.read_text(encoding="utf-8").replace('"digest": "', '"digest": "former'), encoding="utf-8")
    with pytest.raises(setup_steps.SetupFailed, match=f"fetching packages for {re.escape(str(CLIENT))} failed"):
        install_index.fill(tmp_path, [CLIENT])
    # The lists name wheels that are there.
    assert (tmp_path / "client.txt").read_text(encoding="utf-8").startswith("aimesh-client==0.3.0 --hash=sha256:")
    assert '"ready":[]' in (tmp_path / install_index.INDEX_FILE).read_text(encoding="utf-8")


def test_the_packages_of_others_can_come_before_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An image gets them in a step that a change of our code doesn't repeat."""
    makers = Makers(monkeypatch)
    install_index.fill(tmp_path, [CLIENT], without_ours=True)
    assert {path.name.partition("-")[0] for path in (tmp_path / "files").iterdir()} == {"click", "nkeys"}
    assert makers.published == 0
    fetched = (tmp_path / "fetched" / f"{CLIENT}.json").stat().st_mtime_ns
    install_index.fill(tmp_path, [CLIENT])
    assert (tmp_path / "fetched" / f"{CLIENT}.json").stat().st_mtime_ns == fetched
    assert '"ready":["client-linux-x86_64-3.11"]' in (tmp_path / install_index.INDEX_FILE).read_text(encoding="utf-8")


def test_a_machine_is_ready_once_all_its_packages_are_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Makers(monkeypatch)
    install_index.fill(tmp_path, [CLIENT])
    index = (tmp_path / install_index.INDEX_FILE).read_text(encoding="utf-8")
    assert '"ready":["client-linux-x86_64-3.11"]' in index
    (tmp_path / "files" / "click-8.5.1-py3-none-any.whl").unlink()
    install_index.fill(tmp_path, [CLIENT])
    assert (tmp_path / "files" / "click-8.5.1-py3-none-any.whl").exists()


def test_pip_gets_no_markers_because_it_would_judge_them_for_its_own_python() -> None:
    [old, new] = re.findall(r"^numpy==(\S+) ; ", (setup_steps.LOCKS / "engine-needs.lock").read_text(encoding="utf-8"), re.MULTILINE)
    for python, numpy in (("3.11", old), ("3.13", new)):
        text = Target.parse(f"worker-linux-x86_64-{python}").text
        assert ";" not in text
        assert [line for line in text.splitlines() if line.startswith("numpy==")] == [f"numpy=={numpy} \\"]


def test_a_target_that_two_roles_make_ready_is_named_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    makers = Makers(monkeypatch)
    monkeypatch.setattr(role_packages, "distributions", lambda _role: ("aimesh-client",))
    install_index.fill(tmp_path, [CLIENT])
    folder = IndexFolder(tmp_path)
    folder.fetch(Target.parse("worker-linux-x86_64-3.11"))
    folder.publish()
    assert makers.published == 2
    assert '"ready":["client-linux-x86_64-3.11","front-linux-x86_64-3.11","mesh-linux-x86_64-3.11","worker-linux-x86_64-3.11"]' in (
        tmp_path / install_index.INDEX_FILE
    ).read_text(encoding="utf-8")


def test_workers_get_the_libraries_of_their_machine_once_these_are_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker from the line lacked them for ever. Other kinds of machines, whose libraries come later, must not need them."""
    makers = Makers(monkeypatch)
    monkeypatch.setattr(IndexFolder, "build_others", lambda *_: None)
    install_index.fill(tmp_path, [Target.parse(f"worker-linux-{machine}-3.11") for machine in ("x86_64", "aarch64")])
    before = (tmp_path / "worker.txt").read_text(encoding="utf-8")
    assert "aimesh-engine-libraries" not in before
    lines: list[list[str]] = []

    def ensure_wheel(machine: str) -> Path:
        install_index.fill(tmp_path, [CLIENT])
        lines.append(_libraries(tmp_path))
        made = tmp_path / f"aimesh_engine_libraries-0.3.36-py3-none-manylinux_2_29_{machine}.whl"
        _write(made)
        return made

    monkeypatch.setattr(engine_libraries, "ensure_wheel", ensure_wheel)
    published = makers.published
    install_index.add_libraries(tmp_path)
    assert [len(each) for each in lines] == [0, 1], "each is published once it is built, and the index is free meanwhile"
    assert [re.sub("[0-9a-f]{64}", "", line) for line in _libraries(tmp_path)] == [
        f"aimesh-engine-libraries==0.3.36 ; platform_machine == '{machine}' --hash=sha256:" for machine in ("aarch64", "x86_64")
    ]
    index = (tmp_path / install_index.INDEX_FILE).read_text(encoding="utf-8")
    worker = (tmp_path / "worker.txt").read_bytes()
    assert hashlib.sha256(worker).hexdigest() in index, "install.sh of the mesh installs another version now, so aicli update does"
    install_index.add_libraries(tmp_path)
    assert makers.published == published + 3, "that of the client in between, and one of each machine"
    old = time.time() - 2 * install_index._KEEP_SECONDS
    for path in (tmp_path / "files").iterdir():
        os.utime(path, (old, old))
    IndexFolder(tmp_path).publish()
    assert len(_libraries(tmp_path)) == 2


def _libraries(folder: Path) -> list[str]:
    text = (folder / "worker.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.startswith("aimesh-engine-libraries")]


def test_one_run_builds_the_libraries_and_the_others_leave_it_to_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `make up` begins a run; they used to wait for the first, with 55 MB each."""
    built: list[str] = []
    monkeypatch.setattr(install_index, "_add_libraries", lambda _into, **_: built.append("built"))
    with (tmp_path / ".building").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        install_index.add_libraries(tmp_path)
        assert built == []
    install_index.add_libraries(tmp_path)
    assert built == ["built"]
