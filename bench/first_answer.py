"""What a newcomer waits for: `make up` in a fresh clone, then `aicli`.

setup   `make up` with empty caches, and in a second clone with the caches of the first. Needs an index of packages, and 10 minutes
cli     `aicli infer` over HTTPS, from the start of the process to the first byte of the answer, and `aicli --help`
"""

import asyncio
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from bench import report, tenants
from bench.report import Options, Rows
from tests import stacks
from tests.shared.transports.nats.test_tls import make_certificate
from tests.stacks import RunningStack, stack

ROOT = Path(__file__).parent.parent
#: A cold `make up` compiles llama.cpp.
MOST_SETUP_SECONDS = 1200.0


class Spent(NamedTuple):
    """What a command took, with all the processes that it waited for."""

    seconds: float
    processor_seconds: float


def _run(words: list[str], folder: Path, environment: dict[str, str]) -> Spent:
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(
        words,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=MOST_SETUP_SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    took, now = time.perf_counter() - began, os.times()
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stdout}{done.stderr}")
    return Spent(took, now.children_user + now.children_system - before.children_user - before.children_system)


async def _measure_setup(rows: Rows, _shared: None, _options: Options) -> None:
    with tempfile.TemporaryDirectory(prefix="first-answer-") as name:
        caches = {"XDG_CACHE_HOME": f"{name}/cache", "PIP_CACHE_DIR": f"{name}/cache/pip", "npm_config_cache": f"{name}/cache/npm"}
        for clone, heading, seconds, processor in (("first", "cold", 240.0, 420.0), ("second", "with a cached engine", 30.0, None)):
            folder = Path(name, clone)
            await asyncio.to_thread(_run, ["git", "clone", "--quiet", str(ROOT), str(folder)], ROOT, dict(os.environ))
            environment = {**_without_this_environment(), **caches, **stacks.free_ports(), "AIMESH_HOME": str(folder / ".aimesh")}
            try:
                spent = await asyncio.to_thread(_run, ["make", "up"], folder, environment)
            finally:
                await asyncio.to_thread(_run, ["make", "down"], folder, environment)
            rows.alone(f"make up, {heading}", spent.seconds, "s", at_most=seconds)
            rows.alone(f"make up, {heading}: processor", spent.processor_seconds, "s", at_most=processor)


def _without_this_environment() -> dict[str, str]:
    """Return the environment of a shell in which nothing is activated, and without what slows Python down."""
    own = str(Path(sys.prefix, "bin"))
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if part != own)
    left_out = ("VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "MAKEFLAGS", "MAKELEVEL")
    return {**{name: value for name, value in os.environ.items() if name not in left_out}, "PATH": path}


async def _measure_cli(rows: Rows, _shared: None, options: Options) -> None:
    async with stack(AIMESH_ECHO="1") as running, _tls(running) as (url, ca_file):
        remote = {"AIMESH_URL": url, "AIMESH_CA_FILE": ca_file, "AIMESH_API_KEY": running.api_key}
        for claim, words, variables, at_most in (
            ("aicli infer over HTTPS to the first byte", ("infer", "--model", "echo", "--max-tokens", "8", "Say hello"), remote, 0.45),
            ("aicli --help", ("--help",), {}, 0.25),
        ):
            await tenants.first_byte(running, *words, **variables)
            took = [await tenants.first_byte(running, *words, **variables) for _ in range(options.runs)]
            rows.alone(f"{claim}, median of {options.runs}", statistics.median(took), "s", at_most=at_most)


@asynccontextmanager
async def _tls(running: RunningStack) -> AsyncIterator[tuple[str, str]]:
    """Serve the gateway over TLS, as a proxy in front of it does. Yields the URL and the file of its CA."""
    streams = asyncio.TaskGroup()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", int(running.environment["GATEWAY_SERVICE_PORT"]))
        streams.create_task(pass_on(inner_reader, writer))
        await pass_on(reader, inner_writer)

    with tempfile.TemporaryDirectory(prefix="first-answer-") as name:
        make_certificate(Path(name), "127.0.0.1")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(Path(name, "cert.pem"), Path(name, "key.pem"))
        async with streams, await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
            yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", str(Path(name, "cert.pem"))


if __name__ == "__main__":
    parts: dict[str, report.Part] = {"setup": _measure_setup, "cli": _measure_cli}
    report.run(__doc__, parts, limits=(1500.0, 180.0), quick_parts=("cli",), runs=(9, 3))
