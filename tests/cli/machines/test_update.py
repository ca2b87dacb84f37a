"""`aicli update` and the path that services use, in an installation as install.sh makes it, with the mesh's script on a real server."""

import shutil
import ssl
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cli.cli_context import CliContext
from cli.installation import Installation
from cli.machines import update
from shared import errors
from tests.cli.fake_mesh import Shell
from tests.shared.transports.nats.test_tls import make_certificate
from tests.stopwatch import HANG_SECONDS

ROOT = Path(__file__).parents[3]
#: What the mesh's script does at its end.
MOVE = 'cd "$XDG_DATA_HOME/aimesh"; ln -s "$PWD/app-client-2" new; mv -T new current\n'
SCRIPT = "#!/bin/sh\n{{\n{}exit\n}}\n"


@dataclass(slots=True)
class Mesh:
    """Web's answer to /install.sh."""

    url: str = ""
    status: int = 200
    body: bytes = SCRIPT.format("").encode()
    #: As it announces.
    length: int | None = None
    asked: int = 0


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    found = Mesh()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/install.sh"
            assert "Authorization" not in self.headers
            found.asked += 1
            self.send_response(found.status)
            self.send_header("content-length", str(len(found.body) if found.length is None else found.length))
            self.end_headers()
            self.wfile.write(found.body)

        def log_message(self, *_arguments: object) -> None:
            pass

    make_certificate(tmp_path, "127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        found.url = f"https://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


@dataclass(frozen=True, slots=True)
class Machine:
    """Has two versions, and uses the first."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / ".local/share/aimesh"

    @property
    def version(self) -> str:
        return (self.home / "current").readlink().name

    def aicli(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        # Without XDG_RUNTIME_DIR, it would be the developer's own systemd.
        environment = {"HOME": str(self.folder), "PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(self.folder), **more}
        command = (str(self.home / "current/bin/aicli"), *words)
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)


@pytest.fixture
def machine(tmp_path: Path, mesh: Mesh) -> Machine:
    found = Machine(tmp_path / "user")
    ours = (str(ROOT / name) for name in ("", "sdk/python/src", "packages/pyhyperswarm/src"))
    paths = [*ours, *(path for path in sys.path if path.endswith("site-packages"))]
    for version in ("1", "2"):
        app = found.home / f"app-client-{version}"
        venv.create(app, symlinks=True)
        (packages,) = app.glob("lib/python3*/site-packages")
        (packages / "aimesh.pth").write_text("\n".join(paths), encoding="utf-8")
        (app / "bin/aicli").write_text(f"#!{app}/bin/python\nfrom cli.main import main\nmain()\n", encoding="utf-8")
        (app / "bin/aicli").chmod(0o755)
    (found.home / "current").symlink_to(found.home / "app-client-1")
    (found.home / "mesh").write_text(f"{mesh.url}\n", encoding="ascii")
    shutil.copy(tmp_path / "cert.pem", found.home / "mesh.pem")
    return found


def test_an_update_moves_the_link_and_joins_nothing(machine: Machine, mesh: Mesh) -> None:
    mesh.body = SCRIPT.format('[ -z "${AIMESH_TICKET:-}" ] || exit 9\n"$PYTHON" -c "" || exit 8\n' + MOVE).encode()
    done = machine.aicli("update", AIMESH_TICKET="aip_join_secret")
    assert (done.returncode, done.stdout) == (0, "aicli is updated.\n"), done.stderr
    assert machine.version == "app-client-2"
    mesh.body = SCRIPT.format("").encode()
    again = machine.aicli("update")
    assert (again.returncode, again.stdout) == (0, "aicli is already up to date.\n"), again.stderr


def test_a_script_that_ends_early_leaves_the_old_version(machine: Machine, mesh: Mesh) -> None:
    mesh.body = SCRIPT.format('echo "aimesh was not installed: client.txt has another hash" >&2\nexit 1\n').encode()
    done = machine.aicli("update")
    assert done.returncode == 5
    assert "client.txt has another hash" in done.stderr
    assert "aicli is not updated" in done.stderr
    assert "this version stays" in done.stderr
    assert machine.version == "app-client-1"
    assert machine.aicli("--version").returncode == 0


def test_nothing_runs_of_an_answer_that_is_no_script(machine: Machine, mesh: Mesh) -> None:
    touch = f"touch {machine.folder}/ran\n".encode()
    whole = SCRIPT.format(touch.decode()).encode()
    for status, body, length in ((404, whole, None), (200, b"<!DOCTYPE html>\n" + touch, None), (200, b"#!/bin/sh\n" + touch, 9000)):
        mesh.status, mesh.body, mesh.length = status, body, length
        done = machine.aicli("update")
        assert done.returncode in {1, 5}, (done.stdout, done.stderr)
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
    assert mesh.asked == 3
    assert not (machine.folder / "ran").exists()
    assert machine.version == "app-client-1"


def test_another_certificate_is_refused(machine: Machine, mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    make_certificate(tmp_path / "other", "127.0.0.1")
    shutil.copy(tmp_path / "other/cert.pem", machine.home / "mesh.pem")
    mesh.body = SCRIPT.format(MOVE).encode()
    done = machine.aicli("update")
    assert "is not trusted" in done.stderr
    assert (done.returncode, mesh.asked, machine.version) == (2, 0, "app-client-1")


def test_a_mesh_that_is_away_leaves_the_old_version(machine: Machine) -> None:
    (machine.home / "mesh").write_text("https://127.0.0.1:9\n", encoding="ascii")
    done = machine.aicli("update")
    assert done.returncode == 5
    assert "cannot connect to 127.0.0.1:9" in done.stderr
    assert machine.aicli("--version").returncode == 0


def source(machine: Machine, mesh: str, profile: str = "") -> str | None:
    (machine.home / "mesh").write_text(mesh, encoding="ascii")
    file = machine.folder / "p.toml"
    file.write_text(profile, encoding="utf-8")
    file.chmod(0o600)
    return update.source_of(Installation(machine.home), CliContext({"AICLI_PROFILE": str(file)}, machine.folder)).url


def test_an_update_needs_an_encrypted_connection(machine: Machine) -> None:
    with pytest.raises(errors.BadSettings, match=r"http://192\.168\.1\.20:3000 is not encrypted"):
        source(machine, "http://192.168.1.20:3000\n")
    assert source(machine, "http://127.0.0.1:3000\n") == "http://127.0.0.1:3000"


def test_an_aicli_of_a_release_is_updated_by_the_mesh_of_its_profile(machine: Machine) -> None:
    assert source(machine, "\n", 'url = "https://ai.example.org"\n') == "https://ai.example.org"
    with pytest.raises(errors.BadSettings, match="came from a release") as caught:
        source(machine, "\n", 'node_key_file = "client.nk"\n')
    assert "aicli login URL" in caught.value.hint


def test_a_checkout_says_how_to_update_it(shell: Shell) -> None:
    done = shell("update")
    assert done.exit_code == 2
    assert "git pull && make up" in done.stderr


def test_services_use_a_path_that_updates_keep(machine: Machine) -> None:
    state = machine.folder / ".local/state/aimesh/worker"
    state.mkdir(parents=True)
    (state / "node.nk").write_text("x", encoding="ascii")
    done = machine.aicli("worker", "install", "--user")
    assert done.returncode == 0, done.stderr
    assert f"ExecStart={machine.home}/current/bin/aicli worker --state {state}\n" in done.stdout
    assert "your account has no systemd here" in done.stderr
    profile = machine.folder / "my profile.toml"
    profile.write_text('url = "https://ai.example.org"\napi_key = "k"\n', encoding="ascii")
    profile.chmod(0o600)
    served = machine.aicli("--profile", str(profile), "serve", "--port", "11435", "install")
    assert served.returncode == 0, served.stderr
    assert f'ExecStart={machine.home}/current/bin/aicli --profile "{profile}" serve --port 11435\n' in served.stdout
    refused = machine.aicli("serve", "install", AIMESH_URL="https://ai.example.org", AIMESH_API_KEY="k")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "save a profile first" in refused.stderr
