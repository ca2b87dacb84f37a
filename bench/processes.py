"""Start the other process of a bench, and read what a process uses of processor and memory."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def spent_ms(pid: int) -> float:
    """Return the processor time since the process began, user and kernel together."""
    # proc_pid_stat(5): the fields follow the name, which may contain anything.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int | str = "self") -> int:
    """Return the resident set (RSS)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024


@contextmanager
def serving(bench: str, *arguments: object, environment: Mapping[str, str] | None = None) -> Iterator[int]:
    """Run `python -m bench.NAME --serve ARGUMENTS`, ready when the block begins. Yields its process id."""
    command = [sys.executable, "-m", f"bench.{bench}", "--serve", *map(str, arguments)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **(environment or {})})
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        yield other.pid
    finally:
        other.terminate()
        other.communicate()


async def serve_until_stdin_ends() -> None:
    """Tell `serving` that this process is ready, and wait for its end."""
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
