"""Starts and ends child processes of the worker, which get none of its secrets."""

import asyncio
import os
import signal
import socket
from contextlib import AsyncExitStack, suppress
from pathlib import Path

#: The variables that the engine's libraries and GPU drivers read. No URL, key or token.
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
KEPT_PREFIXES = ("CUDA_", "NVIDIA_", "HIP_", "ROCR_", "VK_", "GGML_", "OMP_")
#: How often llama.cpp's threads look for the next batch before they sleep: 0.1 ms, not 5 ms, on cores that draw tokens and serve callers.
SPIN_COUNT = "10000"
#: After its socket closes, a process ends when its current step is done.
EXIT_SECONDS = 2.0


def inherited(*more: str) -> dict[str, str]:
    """Return the environment for a child process: what an engine needs, and ``more`` variables in upper or lower case."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES) or name.upper() in more
    }
    # When it aborts, ggml would start a debugger to print a backtrace. Landlock must come before a second thread, and NumPy starts some
    # that nobody uses.
    fixed = {"GGML_NO_BACKTRACE": "1", "GOMP_SPINCOUNT": SPIN_COUNT, "OPENBLAS_NUM_THREADS": "1"}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[2]), **fixed}


async def start(program: tuple[str, ...]) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader, asyncio.StreamWriter]:
    """Start a program with a socket to this process. Its last arguments are the socket's number and this process's id. Raises OSError."""
    ours, theirs = socket.socketpair()
    async with AsyncExitStack() as unconnected:
        unconnected.callback(ours.close)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(*program, str(theirs.fileno()), str(os.getpid())),
                stdin=asyncio.subprocess.DEVNULL,
                env=inherited(),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        unconnected.push_async_callback(process.wait)
        unconnected.callback(kill, process)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        unconnected.pop_all()
    return process, reader, writer


async def end(process: asyncio.subprocess.Process, writer: asyncio.StreamWriter) -> None:
    """Close the socket, which ends a process that isn't stuck; kill it if it is, or if the wait is canceled."""
    writer.close()
    try:
        async with asyncio.timeout(EXIT_SECONDS):
            await process.wait()
    except (TimeoutError, asyncio.CancelledError) as error:
        kill(process)
        await process.wait()
        if isinstance(error, asyncio.CancelledError):
            raise


def kill(process: asyncio.subprocess.Process) -> None:
    """Not process.kill(), which may reap the process, so that asyncio never learns its exit code."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def reason_of_end(code: int | None) -> str:
    if code is None:
        return "ended"
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
