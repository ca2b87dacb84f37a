"""Build, install and run the rivals for this machine, in ~/.cache/aimesh/rivals.

    python -m bench.rivals

builds the engine's rivals `llama-server` and `llama-batched-bench` (about 10 minutes on 2 cores, once), and prints where they are. They
come from the llama.cpp source in the sdist of llama-cpp-python that requirements/engine.lock names, so they use the same code as the
engine. Only the locked packages are downloaded.
"""

import asyncio
import hashlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench import http_load, openai_upstream, processes
from bench.http_load import Client
from stack.processes import dies_with_parent
from stack.servers import engine_libraries as library_builds
from tests.testnet import free_port
from tools import setup_steps
from tools.engine import compiled, wheel

PROGRAMS = ("llama-server", "llama-batched-bench")
OPTIONS = (
    # The wheel is a release build of shared libraries with llama.cpp's defaults: this machine's instructions (GGML_NATIVE) and OpenMP.
    # Its CMakeLists.txt sets nothing else on Linux, so nothing else is set here either. CMAKE_ARGS, which selects a GPU, applies to both:
    # scikit-build-core reads it, but CMake itself does not.
    "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON",
    # Without these, the build downloads a web page from npm or a model hub, and needs OpenSSL for downloads that we do not make.
    "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF",
    # The programs find the libraries beside them, wherever the folder is moved.
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN",
)  # fmt: skip

#: litellm[proxy] 1.109.1, with the newest versions of two packages: certifi, and the migrations of its database mode.
LITELLM_LOCK = setup_steps.LOCKS / "litellm.lock"
SMG_LOCK = setup_steps.LOCKS / "smg.lock"
LITELLM_KEY = "sk-bench-0123456789"
LITELLM_CONFIG = f"""\
model_list:
  - model_name: {openai_upstream.MODEL}
    litellm_params:
      model: openai/{openai_upstream.MODEL}
      api_base: http://127.0.0.1:UPSTREAM_PORT/v1
      api_key: none
general_settings:
  master_key: {LITELLM_KEY}
litellm_settings:
  telemetry: false
"""


class Rivals(NamedTuple):
    """llama.cpp's own programs."""

    server: Path
    batched_bench: Path


def cache_folder() -> Path:
    return setup_steps.cache_folder().parent / "rivals"


def programs_folder() -> Path:
    """Return where the programs are once they were built, named like a compiled wheel by version, machine, processor and build flags."""
    return cache_folder() / compiled.build_key("cpu") / "bin"


def ensure() -> Rivals:
    """Return llama.cpp's programs, from the cache or built now. Raises SetupFailed. The folder appears whole or not at all."""
    programs = programs_folder()
    folder = programs.parent
    if not programs.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the rename stays within one file system.
        with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as place:
            built = _build(Path(place))
            # If another process was faster, use its build.
            if not programs.is_dir():
                built.rename(programs)
    return Rivals(*(programs / name for name in PROGRAMS))


def _build(place: Path) -> Path:
    """Build the programs with the versions of CMake and Ninja that build the wheel."""
    tools, sdist = compiled.make_tools(place).parent, wheel.fetch_sdist(place)
    source, target = library_builds.unpack(sdist, place, ("",)), place / "build"
    environment = {**compiled.build_environment(), "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    configure = (str(tools / "cmake"), "-S", str(source), "-B", str(target), "-G", "Ninja", *OPTIONS)
    setup_steps.run("configuring the rivals", *configure, *os.environ.get("CMAKE_ARGS", "").split(), environment=environment)
    build = (str(tools / "cmake"), "--build", str(target), "--parallel", str(len(os.sched_getaffinity(0))), "--target", *PROGRAMS)
    what = f"building {' and '.join(PROGRAMS)}: this happens once and takes about 10 minutes on 2 cores"
    setup_steps.run(what, *build, environment=environment)
    return target / "bin"


def ensure_command(lock: Path) -> Path:
    """Return the command that a lock is named after. Its virtual environment is made again when the lock changes. Raises SetupFailed."""
    place, digest = cache_folder() / lock.stem, hashlib.sha256(lock.read_bytes()).hexdigest()
    python, stamp = place / "bin" / "python", place / "lock"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != digest:
        place.parent.mkdir(parents=True, exist_ok=True)
        # Created in its final place, because its scripts contain the path of their Python.
        setup_steps.run(f"making a virtual environment for {lock.stem}", sys.executable, "-m", "venv", "--clear", str(place))
        # Without LiteLLM's own version requirements: two of them cannot be met, see LITELLM_LOCK.
        pip = (str(python), "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--require-hashes", "-r", str(lock))
        setup_steps.run(f"installing {lock.stem}", *pip)
        stamp.write_text(digest, encoding="utf-8")
    return python.with_name(lock.stem)


def version_of(lock: Path) -> str:
    """Return the name and version of the rival that a lock is named after."""
    return next(line.split()[0] for line in lock.read_text(encoding="utf-8").splitlines() if line.startswith(f"{lock.stem}=="))


@asynccontextmanager
async def program(words: Sequence[object], port: int, ready_path: str, start_seconds: float, **options: Any) -> AsyncIterator[int]:
    """Run a server until the block ends; it is ready when it answers at ``ready_path``. Yields its process id."""
    with tempfile.TemporaryFile() as log:
        options |= {"stdin": asyncio.subprocess.DEVNULL, "stdout": log, "stderr": log}
        options["preexec_fn"] = dies_with_parent(signal.SIGKILL, os.getpid())
        async with processes.started(*words, **options) as process:
            client, ready = Client(port), http_load.get(ready_path).encode()
            async with asyncio.timeout(start_seconds):
                while (await client.ask(ready))[0].status != 200:
                    if process.returncode is not None:
                        log.seek(0)
                        raise AssertionError(f"{words[0]} ended: {log.read()[-2000:].decode(errors='replace')}")
                    await asyncio.sleep(0.02)
            client.close()
            yield process.pid


class Proxy(NamedTuple):
    port: int
    pid: int


def _environment(**settings: str) -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | settings


@asynccontextmanager
async def litellm(upstream_port: int) -> AsyncIterator[Proxy]:
    """Run LiteLLM's proxy, the gateway's rival, in front of the upstream's model.

    It runs as its documentation recommends for production: one worker on one port, a master key, no database, only errors in the log, and
    its price list from the package instead of the network.
    """
    port = free_port()
    environment = _environment(LITELLM_LOG="ERROR", LITELLM_MODE="PRODUCTION", LITELLM_LOCAL_MODEL_COST_MAP="True", DISABLE_ADMIN_UI="True")
    with tempfile.TemporaryDirectory(prefix="aimesh-litellm-") as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(LITELLM_CONFIG.replace("UPSTREAM_PORT", str(upstream_port)), encoding="utf-8")
        words = (ensure_command(LITELLM_LOCK), "--config", config, "--host", "127.0.0.1", "--port", port, "--num_workers", 1)
        # Its imports take 10 s and more on a busy machine.
        async with program(words, port, "/health/liveliness", 90.0, env=environment, cwd=folder) as pid:
            yield Proxy(port, pid)


@asynccontextmanager
async def smg(upstream_port: int) -> AsyncIterator[Proxy]:
    """Run SMG, a router in Rust, in front of the upstream's model. It checks no key and keeps no books."""
    port, metrics_port = free_port(), free_port()
    worker = ("--worker-urls", f"http://127.0.0.1:{upstream_port}", "--policy", "round_robin", "--log-level", "error")
    metrics = ("--prometheus-host", "127.0.0.1", "--prometheus-port", metrics_port)
    words = (ensure_command(SMG_LOCK), "launch", "--host", "127.0.0.1", "--port", port, *worker, *metrics)
    async with program(words, port, "/v1/models", 60.0, env=_environment()) as pid:
        yield Proxy(port, pid)


if __name__ == "__main__":
    print(*ensure(), sep="\n")
