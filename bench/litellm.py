"""Install LiteLLM's proxy, the gateway's rival, from a lock into ~/.cache/aimesh/rivals, and run it.

    async with litellm.running(upstream_port) as proxy: …

It runs as its documentation recommends for production: one worker on one port, a master key, no database, only errors in the log, and its
price list from the package instead of the network.
"""

import asyncio
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench import openai_upstream
from tests.stacks import until
from tests.testnet import free_port
from tools import setup

#: litellm[proxy] 1.109.1, with the newest versions of two packages: certifi, and the migrations of its database mode.
LOCK = setup.LOCKS / "litellm.lock"
KEY = "sk-bench-0123456789"
#: Its imports take 10 s and more on a busy machine.
START_SECONDS = 90.0
STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Proxy:
    port: int
    pid: int


def version() -> str:
    """Return the version in the lock."""
    return next(line.split()[0] for line in LOCK.read_text(encoding="utf-8").splitlines() if line.startswith("litellm=="))


def ensure() -> Path:
    """Return the `litellm` command, from the cache or installed now (a minute). Raises SetupFailed."""
    environment = setup.cache_folder().parent / "rivals" / "litellm"
    python, stamp = environment / "bin" / "python", environment / "lock"
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != digest:
        environment.parent.mkdir(parents=True, exist_ok=True)
        setup.run("making a virtual environment for LiteLLM", sys.executable, "-m", "venv", "--clear", str(environment))
        pip = (str(python), "-m", "pip", "--disable-pip-version-check", "install")
        # Without its own version requirements: two of them cannot be met, see LOCK.
        setup.run("installing LiteLLM's proxy", *pip, "--no-deps", "--require-hashes", "-r", str(LOCK))
        stamp.write_text(digest, encoding="utf-8")
    return environment / "bin" / "litellm"


@asynccontextmanager
async def running(upstream_port: int) -> AsyncIterator[Proxy]:
    """Run it in front of the upstream's model, and wait until it is ready."""
    command = ensure()
    folder = Path(tempfile.mkdtemp(prefix="aimesh-litellm-"))
    config = folder / "config.yaml"
    config.write_text(_config(upstream_port), encoding="utf-8")
    port = free_port()
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "DISABLE_ADMIN_UI": "True",
    }
    words = [str(command), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*words, stdout=log, stderr=log, cwd=folder, env=environment)
        try:
            await _ready(port, process, folder / "log")
            yield Proxy(port, process.pid)
        finally:
            await _stop(process)
            shutil.rmtree(folder, ignore_errors=True)


def _config(upstream_port: int) -> str:
    return f"""\
model_list:
  - model_name: {openai_upstream.MODEL}
    litellm_params:
      model: openai/{openai_upstream.MODEL}
      api_base: http://127.0.0.1:{upstream_port}/v1
      api_key: none
general_settings:
  master_key: {KEY}
litellm_settings:
  telemetry: false
"""


async def _ready(port: int, process: asyncio.subprocess.Process, log: Path) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:

        async def answers() -> bool:
            assert process.returncode is None, f"LiteLLM did not start: {_end_of(log)}"
            return (await http.get(f"http://127.0.0.1:{port}/health/liveliness")).status_code == 200

        await until(answers, seconds=START_SECONDS, what="LiteLLM is ready", ignoring=(httpx.TransportError,))


def _end_of(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
