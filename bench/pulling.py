"""`aicli models pull`'s program against curl: one file from a local server, into the same folder.

speed   megabytes a second, in pairs, from the start of the process to its end; the pull hashes, syncs and checks the file
memory  the most resident memory of the pull, with the interpreter
"""

import asyncio
import os
import shutil
import socketserver
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench import report
from bench.report import Options, Rows
from shared.api.inference import StoreLine, StoreRequest


def _number(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little")


def _text(value: bytes) -> bytes:
    return _number(len(value)) + value


#: The smallest header that passes for a model: version 3, no tensors, two pairs.
HEADER = b"".join((
    *(b"GGUF", _number(3, 4), _number(0), _number(2)),
    *(_text(b"general.architecture"), _number(8, 4), _text(b"llama")),
    *(_text(b"llama.context_length"), _number(4, 4), _number(64, 4)),
))  # fmt: skip
PIECE = os.urandom(1024 * 1024)
MOST_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class FileServer:
    folder: Path
    url: str


@asynccontextmanager
async def _serving(options: Options) -> AsyncIterator[FileServer]:
    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        with (folder / "served.gguf").open("wb") as file:
            file.write(HEADER)
            for _ in range(options.megabytes):
                file.write(PIECE)
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.pulling", "--serve", str(folder / "served.gguf")), stdout=asyncio.subprocess.PIPE
        )
        try:
            assert server.stdout is not None
            async with asyncio.timeout(MOST_SECONDS):
                port = int(await server.stdout.readline())
            yield FileServer(folder, f"http://127.0.0.1:{port}/model.gguf")
        finally:
            server.kill()
            await server.wait()


async def _serve(name: str) -> None:
    """Send the file to every connection, without copying it."""

    class Sender(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            with Path(name).open("rb") as file, suppress(ConnectionError):
                size = os.fstat(file.fileno()).st_size
                self.request.sendall(f'HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nETag: "x"\r\nConnection: close\r\n\r\n'.encode())
                self.request.sendfile(file)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Sender) as server:
        print(server.server_address[1], flush=True)
        await asyncio.to_thread(server.serve_forever)


async def _run(body: bytes, *program: str) -> tuple[float, bytes, float]:
    """Return the seconds that the program took, its output, and the most memory in MB that it was seen to use."""
    pipe, began, peak = asyncio.subprocess.PIPE, time.perf_counter(), 0.0
    process = await asyncio.create_subprocess_exec(*program, stdin=pipe, stdout=pipe)
    async with asyncio.timeout(MOST_SECONDS):
        async with asyncio.TaskGroup() as tasks:
            talking = tasks.create_task(process.communicate(body))
            while not (await asyncio.wait({talking}, timeout=0.05))[0]:
                peak = max(peak, _peak_mb(process.pid))
    output, _ = talking.result()
    if process.returncode:
        raise RuntimeError(f"{program[0]} ended with status {process.returncode}")
    return time.perf_counter() - began, output, peak


def _peak_mb(pid: int) -> float:
    """Return 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), 0.0)


async def _pull(server: FileServer) -> tuple[float, float]:
    """Return the seconds and the peak memory of a pull into a fresh store."""
    store = server.folder / "store"
    request = msgspec.json.encode(StoreRequest(command="pull", folder=str(store), target=server.url))
    seconds, output, peak = await _run(request, sys.executable, "-m", "services.inference.models.store_program")
    result = msgspec.json.decode(output.splitlines()[-1], type=StoreLine).result
    if result is None or result.problem is not None:
        raise RuntimeError(f"the pull failed: {result}")
    shutil.rmtree(store)
    return seconds, peak


async def _curl(server: FileServer) -> float:
    file = server.folder / "curled.gguf"
    seconds, _, _ = await _run(b"", "curl", "--silent", "--fail", "--output", str(file), server.url)
    file.unlink()
    return seconds


async def _measure_speed(rows: Rows, server: FileServer, options: Options) -> None:
    pairs = []
    for number in range(-1, options.runs):
        ours, theirs = 0.0, 0.0
        for contender in report.in_turn(("pull", "curl"), number):
            if contender == "pull":
                ours, _ = await _pull(server)
            else:
                theirs = await _curl(server)
        if number >= 0:  # the first one warms up
            pairs.append((options.megabytes * 1.048576 / ours, options.megabytes * 1.048576 / theirs))
    rows.paired("pull a model", [pair[0] for pair in pairs], "MB/s", "curl", [pair[1] for pair in pairs], at_least=0.9)


async def _measure_memory(rows: Rows, server: FileServer, _options: Options) -> None:
    _, peak = await _pull(server)
    rows.alone("pull a model: peak memory", peak, "MB", at_most=64)


if __name__ == "__main__":
    parts = {"speed": _measure_speed, "memory": _measure_memory}
    report.run(__doc__, parts, limits=(600.0, 120.0), setting=_serving, serve=_serve, runs=(10, 3), megabytes=(1024, 512))
