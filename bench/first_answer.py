"""What a newcomer waits for: `make up` in a fresh clone, then `aicli`; and the memory of an idle stack.

setup   `make up` with empty caches, and in a second clone with the caches of the first. Needs an index of packages, and 10 minutes
cli     `aicli infer` over HTTPS and over NATS, from the start of the process to the first byte on its standard output, interpreter
        included, and `aicli --help`; then each service's resident set (RSS)
swarm   a fresh `aicli infer` over Hyperswarm alone
"""

import asyncio
import os
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median

from bench import processes, report
from bench.processes import MIB
from bench.report import Options, Rows
from tests import stacks
from tests.sdk.python import cutting_proxy
from tests.shared.transports.nats.test_tls import make_certificate
from tests.stacks import RunningStack, stack

ROOT = Path(__file__).parent.parent
#: A cold `make up` compiles llama.cpp.
MAX_SETUP_SECONDS = 1200.0
#: The real one answers, too.
MODELS = ("smollm2", "echo")
SERVICES = ("auth", "gateway", "metrics", "web")
FRESH_PROCESSES = 5
#: Its input has the process group of `make up`, and ends when we do.
_CARETAKER = 'read -r group; read -r _; kill -s KILL -- "-$group"; make down; rm -rf "$0"'


@asynccontextmanager
async def made_up(clone: Path, environment: Mapping[str, str]) -> AsyncIterator[tuple[float, float]]:
    """Run `make up` in a clone; stack and clone are gone after the block, also when we are killed.

    Yields the seconds that it took, and the processor seconds with all the processes that it waited for.
    """
    pipe, quiet = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    start = partial(asyncio.create_subprocess_exec, cwd=clone, env=environment, start_new_session=True)
    its_input, input_end = os.pipe()
    caretaker = await start("/bin/sh", "-c", _CARETAKER, str(clone), stdin=its_input, stdout=quiet, stderr=quiet)
    os.close(its_input)

    def name_group() -> None:
        os.write(input_end, b"%d\n" % os.getpid())

    try:
        before, began = os.times(), time.perf_counter()
        # Between its start and a line of ours, we could be killed.
        process = await start("make", "up", stdin=quiet, stdout=pipe, stderr=asyncio.subprocess.STDOUT, preexec_fn=name_group)
        async with asyncio.timeout(MAX_SETUP_SECONDS):
            said, _ = await process.communicate()
        took, now = time.perf_counter() - began, os.times()
        assert process.returncode == 0, said.decode()
        yield took, now.children_user + now.children_system - before.children_user - before.children_system
    finally:
        os.close(input_end)
        await caretaker.wait()


async def _measure_setup(rows: Rows, _shared: None, _options: Options) -> None:
    with tempfile.TemporaryDirectory(prefix="first-answer-") as name:
        caches = {"XDG_CACHE_HOME": f"{name}/cache", "PIP_CACHE_DIR": f"{name}/cache/pip", "npm_config_cache": f"{name}/cache/npm"}
        for clone, heading, seconds, processor in (("first", "cold", 240.0, 420.0), ("second", "with a cached engine", 30.0, None)):
            folder = Path(name, clone)
            async with processes.started("git", "clone", "--quiet", ROOT, folder) as cloning:
                assert await cloning.wait() == 0
            environment = {**_without_this_environment(), **caches, **stacks.free_ports(), "AIMESH_HOME": str(folder / ".aimesh")}
            async with made_up(folder, environment) as (took, spent):
                rows.alone(f"make up, {heading}", took, "s", at_most=seconds)
                rows.alone(f"make up, {heading}: processor", spent, "s", at_most=processor)


def _without_this_environment() -> dict[str, str]:
    """Return the environment of a shell in which nothing is activated, and without what slows Python down."""
    own = str(Path(sys.prefix, "bin"))
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if part != own)
    left_out = ("VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "MAKEFLAGS", "MAKELEVEL")
    return {**{name: value for name, value in os.environ.items() if name not in left_out}, "PATH": path}


async def _first_byte(running: RunningStack, runs: int, *words: str, **variables: str) -> float:
    """Run `aicli` some times, and once before. Return the median of the seconds from its start to the first byte of its answer."""
    took = []
    for _ in range(1 + runs):
        start = time.perf_counter()
        process = await running.start_aicli(*words, has_input=False, **variables)
        assert process.stdout is not None
        first = await process.stdout.read(1)
        took.append(time.perf_counter() - start)
        _, errors = await process.communicate()
        assert first, errors.decode()
    return median(took[1:])


async def _measure_cli(rows: Rows, _shared: None, options: Options) -> None:
    hello = ("--max-tokens", "8", "Say hello")
    with tempfile.TemporaryDirectory(prefix="first-answer-") as name:
        make_certificate(Path(name), "127.0.0.1")
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(Path(name, "cert.pem"), Path(name, "key.pem"))
        async with stack(AIMESH_ECHO="1") as running, cutting_proxy.before(running.url("gateway"), [], tls) as front:
            remote = {"AIMESH_URL": front.url, "AIMESH_CA_FILE": str(Path(name, "cert.pem")), "AIMESH_API_KEY": running.api_key}
            for what, at_most, words, variables in (
                ("infer over HTTPS to the first byte", 0.45, ("infer", "--model", "echo", *hello), remote),
                ("--help", 0.25, ("--help",), {}),
                *((f"infer to the first token, {model}", 0.6, ("infer", "--model", model, *hello), {}) for model in MODELS),
            ):
                took = await _first_byte(running, options.runs, *words, **variables)
                rows.alone(f"aicli {what}, median of {options.runs}", took, "s", at_most=at_most)
            held = {name: processes.resident_mb(pid) / MIB for name, pid in (await running.pids()).items() if pid is not None}
    for service in SERVICES:
        rows.alone(f"idle memory of {service}", held[service], "MiB", at_most=110)


async def _measure_swarm(rows: Rows, _shared: None, _options: Options) -> None:
    with tempfile.TemporaryDirectory(prefix="first-answer-") as folder:
        async with stack(AIMESH_ECHO="1", INFERENCE_BACKEND="echo", XDG_CONFIG_HOME=folder) as running:
            ticket = (await running.aicli("admin", "tickets", "create", "--role", "client", "--json")).json()["ticket"]
            connected = await running.aicli("mesh", "connect", ticket, "--name", "cafe", "--api-key-stdin", stdin=running.api_key + "\n")
            assert connected.status == 0, connected.err
            took = await _first_byte(running, FRESH_PROCESSES, "--profile", "cafe", "infer", "--model", "echo", "hello")
    rows.alone("fresh `aicli infer` over Hyperswarm to its first token", took, "s", at_most=1.5)


if __name__ == "__main__":
    parts: dict[str, report.Part] = {"setup": _measure_setup, "cli": _measure_cli, "swarm": _measure_swarm}
    report.run(__doc__, parts, limits=(1500.0, 240.0), quick_parts=("cli", "swarm"), runs=(9, 3))
