"""`aicli models pull`'s program against curl: one file from a local server, into the same folder.

The speed is megabytes a second, in pairs, from the start of the process to its end; the pull hashes, syncs and checks the file. The memory
is the most that the pull has resident, with the interpreter.
"""

import asyncio
import os
import shutil
import socketserver
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench import processes, report
from bench.report import Options, Rows
from shared.api.inference import StoreLine, StoreRequest
from tests.services.inference.models.ranged_server import model_bytes

PIECE = os.urandom(1024 * 1024)
MOST_SECONDS = 300.0


class FileServer(NamedTuple):
    folder: Path
    url: str


@asynccontextmanager
async def _serving(megabytes: int) -> AsyncIterator[FileServer]:
    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        with (folder / "served.gguf").open("wb") as file:
            file.write(model_bytes())
            for _ in range(megabytes):
                file.write(PIECE)
        async with processes.serving("pulling", folder / "served.gguf") as server:
            yield FileServer(folder, f"http://127.0.0.1:{server.ready['port']}/model.gguf")


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
        threading.Thread(target=server.serve_forever).start()
        await processes.serve_until_stdin_ends(port=server.server_address[1])
        server.shutdown()


async def _run(body: bytes, *program: str) -> tuple[float, bytes, float]:
    """Return the seconds that the program took, its output, and the most memory in MB that it was seen to use."""
    pipe, began, peak = asyncio.subprocess.PIPE, time.perf_counter(), 0.0
    process = await asyncio.create_subprocess_exec(*program, stdin=pipe, stdout=pipe)
    async with asyncio.timeout(MOST_SECONDS), asyncio.TaskGroup() as tasks:
        talking = tasks.create_task(process.communicate(body))
        while not (await asyncio.wait({talking}, timeout=0.05))[0]:
            peak = max(peak, processes.peak_mb(process.pid))
    if process.returncode:
        raise RuntimeError(f"{program[0]} ended with status {process.returncode}")
    return time.perf_counter() - began, talking.result()[0], peak


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


async def _curl(server: FileServer) -> tuple[float, float]:
    file = server.folder / "curled.gguf"
    seconds, _, peak = await _run(b"", "curl", "--silent", "--fail", "--output", str(file), server.url)
    file.unlink()
    return seconds, peak


async def _measure(rows: Rows, _shared: None, options: Options) -> None:
    async with _serving(options.megabytes) as server:
        found = await report.take_turns({"pull": partial(_pull, server), "curl": partial(_curl, server)}, 1 + options.runs)
    # The first round warms up.
    rates = {name: [options.megabytes * 1.048576 / seconds for seconds, _ in each[1:]] for name, each in found.items()}
    rows.paired("pull a model", rates["pull"], "MB/s", "curl", rates["curl"], at_least=0.9)
    rows.alone("pull a model: peak memory", max(peak for _, peak in found["pull"]), "MB", at_most=64)


if __name__ == "__main__":
    report.run(__doc__, {"pulling": _measure}, limits=(600.0, 120.0), serve=_serve, runs=(10, 3), megabytes=(1024, 512))
