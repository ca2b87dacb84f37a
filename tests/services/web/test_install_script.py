"""install.sh on machines that can't have aimesh, and its download cut off anywhere. Its programs are stand-ins in a folder."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from services.web import install_script
from services.web.install_script import LISTS, PackageIndex
from shared.identity import node_keys, tickets
from shared.types import MeshName
from tests import tiers

MESH = "http://127.0.0.1:1"
TICKET = "aip_join_x"
INDEX = PackageIndex(
    pip="pip-1-py3-none-any.whl",
    sha256={"pip-1-py3-none-any.whl": "0" * 64, **{f"{name}.txt": "1" * 64 for name in LISTS}},
    ready=("client-linux-x86_64-3.11",),
)
#: What every system has.
_COMMON = ("awk", "cat", "cut", "df", "grep", "head", "id", "mkdir", "mktemp", "readlink", "rm", "sed", "sh", "tr", "touch", "cp", "chmod")
_PROGRAMS = {
    "uname": 'echo "Linux x86_64"',
    "ldd": 'echo "ldd (Debian GLIBC 2.36-9) 2.36"',
    "python3": 'case "$*" in --version) echo "Python 3.11.2" ;; *hashlib*) echo 2222 ;; '
    f'*base64*) exec {sys.executable} "$@" ;; *) echo 3.11 ;; esac',
    "curl": 'while [ "$1" != -o ]; do shift; done; : >"$2"',
}


WANT = f'for each; do :; done; echo "the mesh is fetching ${{each#{MESH}}}"'
OLD_PYTHON = 'case "$*" in --version) echo "Python 3.10.12" ;; *) exit 1 ;; esac'
OLD_GLIBC = 'echo "ldd (Debian GLIBC 2.31-13) 2.31"'
#: Of `uname -s` and `uname -sm`.
MAC = '[ "$1" = -s ] && echo Darwin || echo "Darwin arm64"'
MUSL = 'echo "musl libc (x86_64)" >&2; exit 1'


@dataclass
class Machine:
    """A home folder and a folder of programs."""

    home: Path
    programs: Path

    def has(self, name: str, script: str) -> None:
        file = self.programs / name
        # It may be a link to the system's own.
        file.unlink(missing_ok=True)
        file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        file.chmod(0o755)

    def run(self, script: str, *arguments: str, **variables: str) -> tuple[int, str]:
        """Return the status, and what it printed."""
        environment = {"PATH": str(self.programs), "HOME": str(self.home), **variables}
        shell = (str(self.programs / "sh"), "-s", "--", *arguments)
        done = subprocess.run(shell, input=script, env=environment, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    found = Machine(tmp_path / "home", tmp_path / "programs")
    found.home.mkdir()
    found.programs.mkdir()
    for name in _COMMON:
        (found.programs / name).symlink_to(shutil.which(name) or name)
    for name, script in _PROGRAMS.items():
        found.has(name, script)
    return found


def _remove_pythons(machine: Machine) -> None:
    (machine.programs / "python3").unlink()


@pytest.mark.parametrize(
    ("arguments", "change", "sentence"),
    [
        (("key",), lambda _: None, "this is no ticket: it starts with aip_join_"),
        ((), _remove_pythons, "it needs Python 3.11 or later, and here is no Python. As root: apt-get install python3.11"),
        ((), lambda each: each.has("python3", OLD_PYTHON), "here is Python 3.10.12"),
        ((), lambda each: each.has("ldd", MUSL), "this system has musl"),
        ((TICKET,), lambda each: each.has("ldd", OLD_GLIBC), "the engine needs glibc 2.34 or later, and here is 231"),
        ((), lambda each: each.has("uname", 'echo "FreeBSD amd64"'), "there are no packages for freebsd-amd64"),
        ((TICKET,), lambda each: each.has("uname", MAC), "the mesh has no packages for a front on darwin-arm64 with Python 3.11"),
        ((), lambda each: each.has("df", 'echo x; echo "d 9 9 5000 9"'), "has 4 MB of free space, and 120 MB are needed"),
        ((), lambda each: each.has("curl", "exit 7"), f"cannot download {MESH}/install/client.txt"),
        ((), lambda _: None, "client.txt has another hash than this script says; take the line from the mesh again"),
        ((TICKET,), lambda _: None, "the mesh has no packages for a worker on linux-x86_64 with Python 3.11; take another machine"),
        ((TICKET,), lambda each: each.has("curl", WANT), "the mesh is fetching /install/want/worker-linux-x86_64-3.11"),
    ],
)  # fmt: skip
def test_what_prevents_an_installation_is_said_and_nothing_is_left(
    machine: Machine, arguments: tuple[str, ...], change: Callable[[Machine], None], sentence: str
) -> None:
    change(machine)
    status, said = machine.run(install_script.render(INDEX, MESH), *arguments)
    assert (status, said.startswith("aimesh was not installed: "), sentence in said) == (1, True, True), said
    assert not list(machine.home.rglob("app-*"))
    assert not (machine.home / ".local" / "bin" / "aicli").exists()


@pytest.mark.parametrize("from_file", [False, True])
def test_the_mesh_is_shown_the_part_of_the_ticket_that_is_no_secret(machine: Machine, from_file: bool) -> None:
    ticket = tickets.new(node_keys.authority_of(b"\1" * 32), MeshName("m"))
    text, file = tickets.render(ticket), machine.home / "ticket"
    file.write_text(f"{text}\n", encoding="ascii")
    machine.has("curl", WANT)
    status, said = machine.run(install_script.render(INDEX, MESH), f"@{file}" if from_file else text)
    assert (status, f"fetching /install/want/worker-linux-x86_64-3.11?ticket={ticket.id}\n" in said) == (1, True), said


def test_a_script_that_is_cut_off_anywhere_runs_nothing(machine: Machine) -> None:
    witness = machine.home / "ran"
    for name in _PROGRAMS:
        machine.has(name, f"echo {name} >>{witness}; exit 1")
    script = install_script.render(INDEX, MESH)
    body = script.index("\n{\n")
    # A cut before the block leaves only comments.
    for end in range(body, len(script) - len("\n}\n"), 1 if tiers.is_nightly() else 97):
        machine.run(script[:end])
        assert not witness.exists(), script[:end][-80:]
        assert not list(machine.home.iterdir())


@pytest.mark.parametrize(
    ("installed", "ticket", "variables", "role"),
    [
        ("", "", {}, "client"),
        ("", TICKET, {}, "worker"),
        ("", TICKET, {"AIMESH_FRONT": "1"}, "front"),
        ("front", "", {}, "front"),
        ("front", TICKET, {}, "worker"),
        ("worker", TICKET, {"AIMESH_FRONT": "1"}, "worker"),
        ("", TICKET, {"AIMESH_MESH": "1"}, "mesh"),
        ("mesh", "", {}, "mesh"),
        ("mesh", TICKET, {}, "worker"),
        ("worker", "", {}, "worker"),
        ("worker", TICKET, {"AIMESH_MESH": "1"}, "worker"),
    ],
)
def test_the_ticket_the_setting_and_what_is_installed_decide_the_packages(
    machine: Machine, installed: str, ticket: str, variables: dict[str, str], role: str
) -> None:
    home = machine.home / ".local" / "share" / "aimesh"
    home.mkdir(parents=True)
    if installed:
        (home / "current").symlink_to(home / f"app-{installed}-111111111111-3.11")
    index = msgspec.structs.replace(INDEX, ready=("none",))
    status, said = machine.run(install_script.render(index, MESH), *filter(None, [ticket]), **variables)
    assert (status, f"no packages for a {role} on linux-x86_64" in said) == (1, True), said


@pytest.mark.parametrize("index", [None, msgspec.structs.replace(INDEX, sha256={INDEX.pip: "0" * 64, "client.txt": "1" * 64})])
def test_a_mesh_that_still_fetches_its_packages_says_so(machine: Machine, index: PackageIndex | None) -> None:
    status, said = machine.run(install_script.render(index, MESH))
    assert (status, "this mesh is not ready, it is still fetching its packages" in said) == (1, True)


def test_a_value_that_could_end_a_quoted_text_is_refused() -> None:
    with pytest.raises(ValueError, match="MESH, BASE, INDEX has a quote"):
        install_script.render(INDEX, "http://x'; rm -rf ~; '")


def test_a_script_of_a_release_takes_its_packages_from_there() -> None:
    text = install_script.render(INDEX, "", base="https://example.org/v1")
    assert "BASE='https://example.org/v1'" in text
    assert "INDEX=''" in text
    assert os.linesep + "MESH=''" in text
