"""install.sh with a real Python, a real pip and a small package index that fails in some way: the same line works afterwards."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pip
import pytest

from services.web import install_script
from services.web.install_script import LISTS, PackageIndex
from tests import capabilities, tiers
from tests.stopwatch import HANG_SECONDS
from tools.packages import wheel_archive

PIP = f"pip-{pip.__version__}-py3-none-any.whl"
PROJECT = "aimesh_client"
#: Stands in for aicli.
PROGRAM = """
import sys

def main():
    print("aimesh {version}" if "--version" in sys.argv else " ".join(sys.argv[1:]))
    if "-" in sys.argv:
        print("has the ticket", sys.stdin.read().strip())
"""


@cache
def pip_wheel() -> bytes:
    """Return the installed pip as a wheel."""
    (package,) = pip.__path__
    found, packages = BytesIO(), Path(package).parent
    with zipfile.ZipFile(found, "w") as archive:
        for path in sorted(Path(package).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                archive.write(path, path.relative_to(packages))
    return found.getvalue()


def program_wheel(version: str, folder: Path) -> bytes:
    info = f"{PROJECT}-{version}.dist-info"
    texts = {
        "stand_in.py": PROGRAM.format(version=version),
        "services/inference/gpus.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {PROJECT}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\naicli = stand_in:main\n",
    }
    wheel_archive.write({name: text.encode() for name, text in texts.items()}, info, folder / "made.whl")
    return (folder / "made.whl").read_bytes()


@dataclass
class Mesh:
    """A web service whose index has one package of a few bytes."""

    folder: Path
    url: str = ""
    script: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    #: What it closes the connection in the middle of.
    cut: str = ""
    #: Holds the answer to the package until it is set.
    goes_on: threading.Event = field(default_factory=threading.Event)
    is_asked: threading.Event = field(default_factory=threading.Event)

    def publish(self, version: str) -> str:
        """Publish a version, and return the name of its wheel."""
        body, name = program_wheel(version, self.folder), f"{PROJECT}-{version}-py3-none-any.whl"
        sha256 = hashlib.sha256(body).hexdigest()
        page = f'<!DOCTYPE html>\n<a href="/install/files/{name}#sha256={sha256}">{name}</a>\n'
        needs = f"{PROJECT}=={version} --hash=sha256:{sha256}\n"
        texts = {**{f"{each}.txt": needs for each in LISTS}, "vulkan.txt": "", f"simple/{PROJECT.replace('_', '-')}/": page}
        self.files = {**{each: text.encode() for each, text in texts.items()}, f"files/{name}": body, PIP: pip_wheel()}
        hashes = {each: hashlib.sha256(self.files[each]).hexdigest() for each in (PIP, *(f"{each}.txt" for each in LISTS))}
        self.script = install_script.render(PackageIndex(pip=PIP, sha256=hashes, ready=()), self.url)
        return f"files/{name}"


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    found = Mesh(tmp_path)
    found.goes_on.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/install/")
            if name.endswith(".whl"):
                found.is_asked.set()
                found.goes_on.wait(HANG_SECONDS)
            body = found.files.get(name)
            self.send_response(404 if body is None else 200)
            self.send_header("content-type", "text/html" if name.endswith("/") else "application/octet-stream")
            self.send_header("content-length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write((body or b"")[: len(body or b"") // 2 if name == found.cut else None])
            self.close_connection = True

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        found.goes_on.set()
        server.shutdown()
        thread.join()


@dataclass(frozen=True, slots=True)
class Account:
    """The home folder of a user."""

    home: Path

    def start(self, script: str, *arguments: str) -> "subprocess.Popen[str]":
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "PYTHON": sys.executable, "TMPDIR": str(self.home)}
        file = self.home.with_name("install.sh")
        file.write_text(script, encoding="utf-8")
        pipe = subprocess.PIPE
        with file.open("rb") as text:
            # In a group, as a terminal's.
            return subprocess.Popen(
                ("sh", "-s", "--", *arguments), stdin=text, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True
            )

    def run(self, script: str, *arguments: str) -> tuple[int, str]:
        """Return the status, and what it said."""
        return end(self.start(script, *arguments))

    def is_untouched(self) -> bool:
        return not [*self.home.rglob("app-*"), *self.home.rglob("aicli"), *self.home.glob("tmp.*")]

    def version(self) -> str:
        program = str(self.home / ".local/bin/aicli")
        return subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=HANG_SECONDS).stdout


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    out, said = process.communicate(timeout=3 * HANG_SECONDS)
    return process.returncode, out + said


@pytest.fixture
def account(tmp_path: Path) -> Account:
    (tmp_path / "home").mkdir()
    return Account(tmp_path / "home")


def lose(mesh: Mesh, path: str) -> None:
    del mesh.files[path]


def shorten(mesh: Mesh, path: str) -> None:
    mesh.files[path] = mesh.files[path][:-100]


def cut(mesh: Mesh, path: str) -> None:
    mesh.cut = path


#: What happens to what, and what install.sh says.
Fault = tuple[Callable[[Mesh, str], None], str, str]
_TRUNCATED: Fault = (shorten, "wheel", "pip failed, as it says above; run the same line again")
_FAULTS: tuple[Fault, ...] = (
    _TRUNCATED,
    (cut, "wheel", "pip failed"),
    (lose, "wheel", "pip failed"),
    (lose, "simple/aimesh-client/", "pip failed"),
    (cut, "client.txt", "cannot download"),
    (shorten, PIP, "has another hash than this script says; take the line from the mesh again"),
)


@pytest.mark.parametrize("found", tiers.by_day(_FAULTS, _TRUNCATED, group="install"), ids=lambda found: f"{found[0].__name__}-{found[1]}")
def test_the_same_line_works_after_a_package_did_not_arrive(mesh: Mesh, account: Account, found: Fault) -> None:
    fault, what, sentence = found
    wheel = mesh.publish("1")
    whole = dict(mesh.files)
    fault(mesh, wheel if what == "wheel" else what)
    status, said = account.run(mesh.script)
    assert status == 1, said
    last = said.splitlines()[-1]
    assert last.startswith("aimesh was not installed: "), said
    assert sentence in last
    assert account.is_untouched()
    mesh.files, mesh.cut = whole, ""
    status, said = account.run(mesh.script)
    assert (status, account.version()) == (0, "aimesh 1\n"), said
    assert "To remove it later: aicli uninstall\n" in said
    assert "aicli uninstall" not in account.run(mesh.script)[1], "only the first time"


@pytest.mark.nightly("install")
def test_a_failed_update_leaves_the_version_before(mesh: Mesh, account: Account) -> None:
    mesh.publish("1")
    assert account.run(mesh.script)[0] == 0
    shorten(mesh, mesh.publish("2"))
    status, said = account.run(mesh.script)
    assert (status, account.version()) == (1, "aimesh 1\n"), said
    mesh.publish("2")
    assert account.run(mesh.script)[0] == 0
    assert account.version() == "aimesh 2\n"


def test_two_terminals_at_once_take_turns(mesh: Mesh, account: Account) -> None:
    mesh.publish("1")
    mesh.goes_on.clear()
    first = account.start(mesh.script)
    assert mesh.is_asked.wait(HANG_SECONDS)
    second = account.start(mesh.script, "aip_join_x")
    mesh.goes_on.set()
    outcomes = [end(process) for process in (first, second)]
    assert [(status, "aimesh 1" in said) for status, said in outcomes] == [(0, True)] * 2, outcomes
    assert "has the ticket aip_join_x" in outcomes[1][1]
    # The worker stays: it has the packages of both.
    assert "app-worker-" in str((account.home / ".local/share/aimesh/current").readlink())


@pytest.mark.parametrize("number", tiers.by_day([signal.SIGINT, signal.SIGTERM, signal.SIGKILL], signal.SIGINT, group="install"))
def test_the_same_line_works_after_the_terminal_ended_it(mesh: Mesh, account: Account, number: signal.Signals) -> None:
    mesh.publish("1")
    mesh.goes_on.clear()
    process = account.start(mesh.script)
    assert mesh.is_asked.wait(HANG_SECONDS)
    os.killpg(process.pid, number)
    status, said = end(process)
    assert status != 0, said
    assert "aimesh was not installed: it was interrupted" in said or number is signal.SIGKILL
    assert number is signal.SIGKILL or account.is_untouched()
    assert not list(account.home.rglob("complete"))
    mesh.goes_on.set()
    status, said = account.run(mesh.script)
    assert (status, account.version()) == (0, "aimesh 1\n"), said


#: A disk of a few blocks, that grows afterwards.
SMALL_DISK = """
mount -t tmpfs -o size=$SIZE none "$HOME" && mkdir "$HOME/bin"
printf '#!/bin/sh\\necho; echo d 9 9 5000000 9\\n' >"$HOME/bin/df" && chmod 755 "$HOME/bin/df"
sh install.sh; echo "status $?"; find "$HOME" -name 'app-*' -o -name aicli -o -name 'tmp.*'; echo "--"
mount -o remount,size=300M "$HOME" && sh install.sh
"""


#: What is left of the disk when pip has arrived: too little for the environment, and for the package.
@pytest.mark.parametrize("rest", [-1_000_000, 50_000, 80_000])
@pytest.mark.nightly("install")
def test_a_disk_that_fills_up_ends_with_a_sentence(mesh: Mesh, account: Account, rest: int) -> None:
    capabilities.require("root")
    size = str(len(pip_wheel()) + rest)
    mesh.publish("1")
    file = account.home.with_name("install.sh")
    file.write_text(mesh.script, encoding="utf-8")
    environment = {"PATH": f"{account.home}/bin:{os.environ['PATH']}", "HOME": str(account.home), "SIZE": size, "PYTHON": sys.executable}
    command = ("unshare", "--mount", "sh", "-c", SMALL_DISK)
    process = subprocess.Popen(
        command,
        cwd=file.parent,
        env={**environment, "TMPDIR": str(account.home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    out, _ = process.communicate(timeout=3 * HANG_SECONDS)
    before, _, after = out.partition("status 1\n")
    assert before.splitlines()[-1].startswith("aimesh was not installed: "), out
    left, _, after = after.partition("--\n")
    assert (left, "aimesh 1" in after) == ("", True), out


#: A machine of root, of which only these folders are the test's own.
OF_ROOT = """
mount -t tmpfs none /opt
cp -a /usr/local/bin "$HOME/own" && mount --bind "$HOME/own" /usr/local/bin
sh install.sh aip_join_x; echo "status $?"
XDG_DATA_HOME=/opt sh install.sh; echo "status $?"
readlink /usr/local/bin/aicli; find "$HOME" -name 'aicli' -not -path "$HOME/own/*"; find /opt/aimesh ! -perm -o=r ! -name .lock
"""


@pytest.mark.parametrize("has_systemd", [True, False])
def test_root_makes_the_worker_a_service_of_the_machine(mesh: Mesh, account: Account, *, has_systemd: bool) -> None:
    """In root's home, the service could read nothing, so `worker install` refused what the line had installed."""
    capabilities.require("root")
    mesh.publish("1")
    file, systemctl = account.home.with_name("install.sh"), account.home / "bin" / "systemctl"
    file.write_text(mesh.script, encoding="utf-8")
    systemctl.parent.mkdir()
    systemctl.write_text(f"#!/bin/sh\n[ {has_systemd:d} = 1 ] && [ $1 != --user ]\n", encoding="ascii")
    systemctl.chmod(0o755)
    environment = {"PATH": f"{systemctl.parent}:{os.environ['PATH']}", "HOME": str(account.home), "PYTHON": sys.executable}
    done = subprocess.run(
        ("unshare", "--mount", "sh", "-c", OF_ROOT),
        cwd=file.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * HANG_SECONDS,
    )
    first, _, updated = done.stdout.partition("status 0\n")
    state = " --state /var/lib/aimesh-worker" if has_systemd else ""
    joined = ["aimesh 1", f"worker --join - --no-serve{state}", "has the ticket aip_join_x"]
    assert first.splitlines() == [*joined, "worker install --system" if has_systemd else "worker"], done.stderr
    if has_systemd:
        assert updated.splitlines() == ["aimesh 1", "status 0", "/opt/aimesh/current/bin/aicli"], done.stderr
    else:
        assert str(account.home / ".local/bin/aicli") in updated
