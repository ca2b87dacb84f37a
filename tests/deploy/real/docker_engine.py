"""A Docker engine for the tests only: its folders and socket are in a temporary folder, and its firewall rules are removed with it.

Its limit of open files is lowered, because raising it needs a capability that a sandbox may lack. Without one of these environment
variables, everything is built from scratch:

- AIMESH_TEST_DOCKER_HOST: an engine to use instead; its images named in deploy/versions.toml are replaced by stand-ins
- AIMESH_TEST_DOCKER_FOLDER: where the engine keeps its images for the next run
"""

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests import capabilities

START_SECONDS = 60
#: Between two checks whether the engine answers.
LOOK_SECONDS = 0.2
STOP_SECONDS = 30
#: For one command; on an idle machine, a build that compiles nothing takes about a minute.
COMMAND_SECONDS = 900
LIMITS = "nofile=4096:4096"


def program(name: str) -> str:
    found = capabilities.find_program(name)
    assert found is not None, f"{name} is missing: make deploy-tools"
    return found


class DockerEngine:
    """Runs Docker's programs on one engine."""

    def __init__(self, host: str) -> None:
        self.host = host
        # The client that comes with the engine builds without a plugin.
        self._docker = next(path for path in ("/usr/bin/docker", program("docker")) if Path(path).exists())
        self.environment = {
            "DOCKER_HOST": host,
            "DOCKER_BUILDKIT": "1",
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
        }

    def docker(self, *words: str, more: Mapping[str, str] = MappingProxyType({}), **options: Any) -> str:
        """Run a command, with more variables, and return its output. Raises AssertionError with both outputs if it fails."""
        return str(run([self._docker, *words], environment={**self.environment, **more}, **options))

    def compose(self, project: str, dotenv: dict[str, str], *words: str, folder: Path, **options: Any) -> str:
        command = [program("docker-compose"), "--project-name", project, "--project-directory", str(folder), *words]
        return run(command, environment={**self.environment, **dotenv}, **options)


def run(
    command: list[str],
    *,
    environment: dict[str, str],
    check: bool = True,
    timeout: float = COMMAND_SECONDS,
    **options: Any,
) -> str:
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=timeout, **options
    )
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout[-6000:]}"
    return str(done.stdout)


@contextmanager
def running(folder: Path) -> Iterator[DockerEngine]:
    """Start an engine that keeps everything in this folder. Skips the test if it can't start here."""
    if given := os.environ.get("AIMESH_TEST_DOCKER_HOST"):
        yield DockerEngine(given)
        return
    kept = Path(os.environ.get("AIMESH_TEST_DOCKER_FOLDER") or folder / "data")
    before, policy = firewall(), forward_policy()
    log = folder / "dockerd.log"
    command = [program("dockerd"), "--default-ulimit", LIMITS, "--data-root", str(kept), "--exec-root", str(folder / "exec")]
    command += ["--host", f"unix://{folder}/docker.sock", "--pidfile", str(folder / "docker.pid"), "--bridge", "none"]
    # For Swarm: a machine without a GPU can announce some. One more than workers, for updates.
    command += [word for number in range(4) for word in ("--node-generic-resource", f"NVIDIA-GPU=GPU-{number}")]
    with log.open("wb") as out:
        daemon = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
    engine = DockerEngine(f"unix://{folder}/docker.sock")
    try:
        deadline = time.monotonic() + START_SECONDS
        while "Server Version" not in engine.docker("info", check=False):
            if daemon.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"needs containers: dockerd does not start: {log.read_text(encoding='utf-8', errors='replace')[-500:]}")
            time.sleep(LOOK_SECONDS)
        yield engine
    finally:
        networks = engine.docker("network", "ls", "--quiet", "--filter", "driver=bridge", check=False).split()
        _stop(daemon)
        if not _another_runs():
            # Undo what Docker did: it sets the policy to DROP.
            subprocess.run([program("iptables"), "-P", "FORWARD", policy], check=False, timeout=30)
        remove_rules(before, ["docker_gwbridge", *(f"br-{each}" for each in networks)])


def _stop(daemon: "subprocess.Popen[bytes]") -> None:
    """Stop the engine, which stops its containers; kill the rest of its session."""
    daemon.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        daemon.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(daemon.pid, signal.SIGKILL)
    daemon.wait(STOP_SECONDS)


# --- firewall -------------------------------------------------------------------------------------------------------------------


def firewall() -> set[str]:
    """Return every rule and chain, as `-t TABLE -A CHAIN …` or `-t TABLE -N CHAIN`."""
    found: set[str] = set()
    table = ""
    text = subprocess.run([program("iptables-save")], stdout=subprocess.PIPE, text=True, check=True, timeout=30).stdout
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A"):
            found.add(f"-t {table} {line}")
        elif match := re.match(r":(\S+) -", line):
            found.add(f"-t {table} -N {match[1]}")
    return found


def forward_policy() -> str:
    return run([program("iptables"), "-S", "FORWARD"], environment={"PATH": os.environ["PATH"]}, timeout=30).split()[2]


def remove_rules(before: set[str], bridges: Sequence[str]) -> None:
    """Remove the ended engine's rules that were added since ``before``: those that name its bridges, and those of encrypted networks.

    All engines of a machine share the chains that are named after Docker, so these stay while another engine runs.
    """
    ours = [*map(re.escape, bridges), r"--dport 4789\b", *(() if _another_runs() else ("DOCKER",))]
    new = [rule for rule in firewall() - before if re.search("|".join(ours), rule)]
    for rule in sorted(new, key=lambda rule: " -N " in rule):
        words = rule.replace(" -A ", " -D ", 1) if " -A " in rule else rule.replace(" -N ", " -X ", 1)
        subprocess.run([program("iptables"), *shlex.split(words)], capture_output=True, check=False, timeout=30)
    for name in bridges:
        subprocess.run([program("ip"), "link", "delete", name], capture_output=True, check=False, timeout=30)


def _another_runs() -> bool:
    return any(path.read_text(encoding="utf-8").strip() == "dockerd" for path in Path("/proc").glob("[0-9]*/comm") if path.exists())
