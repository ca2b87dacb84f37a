"""Asks the person at the terminal. `install.sh` joins with stdin from a pipe, so the question goes to /dev/tty."""

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager

#: Without an answer by then, nobody is there.
ANSWER_SECONDS = 180.0


@contextmanager
def terminal() -> Iterator[int | None]:
    """Yield the terminal's descriptor; None without one."""
    try:
        opened = os.open("/dev/tty", os.O_RDWR | getattr(os, "O_NOCTTY", 0))
    except OSError:  # also on Windows
        yield None
        return
    try:
        # The terminal would stop a job in the background that asks.
        yield opened if os.tcgetpgrp(opened) == os.getpgrp() else None
    finally:
        os.close(opened)


def ask(terminal: int, question: str, *, default: bool) -> bool | None:
    """Return None without an answer. Enter alone means ``default``."""
    import termios

    # An Enter that was typed before the question is no answer.
    termios.tcflush(terminal, termios.TCIFLUSH)
    os.write(terminal, question.encode())
    if not select.select([terminal], [], [], ANSWER_SECONDS)[0]:
        return None
    # Ctrl-D gives no byte.
    line = os.read(terminal, 1024)
    return (line.strip().lower() or (b"y" if default else b"n")) in (b"y", b"yes") if line else None
