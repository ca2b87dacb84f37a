"""The steps of set-up: each runs a program, writes its output to a log, and shows what is being done and for how long."""

from __future__ import annotations  # an older Python must get as far as the message that it is too old

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
#: The interval of progress lines in a log file; a terminal shows the seconds.
PLAIN_PROGRESS_SECONDS = 20


class SetupFailed(Exception):
    """Ends the program with its message."""


class SetupScreen:
    """Shows progress, unless another program has the terminal."""

    def __init__(self) -> None:
        self.program: subprocess.Popen[bytes] | None = None

    def write(self, text: str) -> None:
        if self.program is None or self.program.poll() is not None:
            sys.stderr.write(text)
            sys.stderr.flush()


SCREEN = SetupScreen()


@contextmanager
def progress(what: str, position: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Show the current step, its position and its duration."""
    started = time.monotonic()
    done = threading.Event()
    terminal = sys.stderr.isatty()

    def elapsed() -> str:
        seconds = int(time.monotonic() - started)
        return f"{seconds // 60} min {seconds % 60:02} s" if seconds >= 60 else f"{seconds} s"

    def tick() -> None:
        while not done.wait(1 if terminal else PLAIN_PROGRESS_SECONDS):
            line = f"  {what} … {position()}{elapsed()}"
            # The escape sequence clears the rest of a longer line.
            SCREEN.write(f"\r{line}\x1b[K" if terminal else f"{line}\n")

    SCREEN.write(f"  {what} …" + ("" if terminal else "\n"))
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    outcome = "failed after"
    try:
        yield
        outcome = "done in"
    finally:
        done.set()
        ticker.join()
        SCREEN.write(f"\r  {what}: {outcome} {elapsed()}\x1b[K\n" if terminal else f"  {what}: {outcome} {elapsed()}\n")


def run(what: str, *command: str, environment: dict[str, str] | None = None, folder: Path = ROOT) -> None:
    """Run one step; its output goes to the log, and the end of it is shown if the step fails."""
    with progress(what), LOG.open("ab") as log:
        log.write(f"\n--- {what}\n".encode())
        log.flush()
        code = subprocess.run(  # noqa: S603 - our own commands
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=folder, check=False
        ).returncode
    if code != 0:
        raise failure(what, code, LOG)


def failure(what: str, code: int, log: Path) -> SetupFailed:
    tail = "\n".join("    " + line for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
    return SetupFailed(f"{what} failed (exit status {code}); the end of {log}:\n{tail}\n  Put it right and run the same command again.")
