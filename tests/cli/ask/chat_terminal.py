"""A terminal whose user types into `aicli chat`. The program has its own process and session, so that Ctrl-C is a signal."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60.0
ROOT = Path(__file__).parents[3]
#: The end of the greeting.
READY = "Ctrl-D leaves."
CTRL_C, CTRL_D, UP, ALT_ENTER = "\x03", "\x04", "\x1b[A", "\x1b\r"
_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|.)")


@dataclass(slots=True)
class ChatTerminal:
    process: subprocess.Popen[bytes]
    #: The user's end of the terminal.
    descriptor: int
    #: The program's whole output, with escape sequences.
    raw: str = ""
    _seen: int = 0

    def sees(self, text: str, seconds: float = SECONDS) -> str:
        """Wait for ``text`` after what the user has already seen, and return what came before it."""
        until = time.monotonic() + seconds
        while (found := self._text.find(text, self._seen)) < 0:
            assert time.monotonic() < until, f"no {text!r} in {self._text[self._seen :]!r}"
            assert self._read(), f"the program ended without {text!r}: {self._text[self._seen :]!r}"
        before, self._seen = self._text[self._seen : found], found + len(text)
        return before

    def types(self, keys: str) -> None:
        os.write(self.descriptor, keys.encode())

    def sends(self, text: str) -> None:
        self.types(f"{text}\r")

    def ends(self) -> int:
        """Read to the end and return the exit status."""
        until = time.monotonic() + SECONDS
        while self._read():
            assert time.monotonic() < until, "the program does not end"
        return self.process.wait(SECONDS)

    @property
    def _text(self) -> str:
        return _SEQUENCE.sub("", self.raw)

    def _read(self) -> bool:
        """Read what arrives within 50 ms. Returns False at the end."""
        if not select.select([self.descriptor], [], [], 0.05)[0]:
            return True
        try:
            found = os.read(self.descriptor, 65536)
        except OSError:  # EIO: the other side is closed
            return False
        self.raw += found.decode(errors="replace")
        return bool(found)


@contextmanager
def chatting(
    command: Sequence[str], environment: Mapping[str, str], folder: Path = ROOT, python: str = sys.executable
) -> Iterator[ChatTerminal]:
    with running([python, "-m", *command], environment, folder) as terminal:
        yield terminal


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Iterator[ChatTerminal]:
    """Run any program on a terminal."""
    descriptor, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    # No cursor position requests: nothing here answers them.
    variables = {"PATH": os.environ["PATH"], **environment, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "LANG": "C.UTF-8"}
    # Under nohup, the program would inherit that SIGHUP is ignored.
    started = ["env", "--default-signal=HUP", "setsid", "--ctty", "--wait", *command]
    process = subprocess.Popen(started, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=variables)
    os.close(theirs)
    try:
        yield ChatTerminal(process, descriptor)
    finally:
        os.close(descriptor)  # hangs up
        process.kill()
        process.wait()
