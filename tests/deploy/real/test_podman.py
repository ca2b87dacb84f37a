"""compose.yaml on podman with podman-compose: the same images, moved from Docker. It starts and answers with the default model."""

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy import compose_file
from tests.deploy.real import image_builds, stand_ins, stream_load
from tests.deploy.real.docker_engine import DockerEngine, program, run
from tests.testnet import free_port

pytestmark = pytest.mark.timeout(1200)
PROJECT = "aimeshpodman"
START_SECONDS = 600
#: As for Docker: raising limits needs a capability that a sandbox may lack.
SETTINGS = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""
STORAGE = """
[storage]
driver = "overlay"
graphroot = "{folder}/graph"
runroot = "{folder}/run"
"""


@dataclass(frozen=True, slots=True)
class Podman:
    environment: dict[str, str]

    def podman(self, *words: str, check: bool = True) -> str:
        return run([program("podman"), *words], environment=self.environment, check=check)

    def compose(self, *words: str, check: bool = True) -> str:
        command = [program("podman-compose"), "--file", str(compose_file.ROOT / "compose.yaml"), "--project-name", PROJECT, *words]
        return run(command, environment=self.environment, check=check, cwd=compose_file.ROOT)

    def healthy(self) -> dict[str, bool]:
        """Return service -> whether its health check passes. Without systemd, podman doesn't run the checks, so they run here."""
        lines = self.podman("ps", "--format", '{{index .Labels "com.docker.compose.service"}} {{.Names}}').splitlines()
        names = dict(line.split() for line in lines)
        return {service: self._is_healthy(name) for service, name in names.items()}

    def _is_healthy(self, name: str) -> bool:
        command = [program("podman"), "healthcheck", "run", name]
        return subprocess.run(command, env=self.environment, capture_output=True, check=False, timeout=60).returncode == 0


@pytest.fixture(scope="module")
def podman(engine: DockerEngine, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    folder = tmp_path_factory.mktemp("podman")
    for name, text in {"containers.conf": SETTINGS, "storage.conf": STORAGE}.items():
        (folder / name).write_text(text.format(folder=folder), encoding="utf-8")
    for name in ("networks", "models"):
        (folder / name).mkdir()
    environment = {
        "PATH": f"{Path(program('podman')).parent}:{os.environ['PATH']}:/usr/sbin",
        "HOME": os.environ.get("HOME", "/"),
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        "MODELS_FOLDER": str(folder / "models"),
        **{name: str(free_port()) for name in ("GATEWAY_SERVICE_PORT", "WEB_SERVICE_PORT")},
    }
    podman = Podman(environment)
    servers = [stand_ins.VERSIONS["servers"][name]["image"] for name in ("postgres", "valkey", "nats")]
    wanted = [images["aimesh"], images["web"], images["worker"], *servers, stand_ins.VERSIONS["proxies"]["haproxy"]]
    saving = [program("docker"), "save", *wanted]
    with subprocess.Popen(saving, env=engine.environment, stdout=subprocess.PIPE) as saved:
        run([program("podman"), "load", "--quiet"], environment=environment, stdin=saved.stdout)
    # Docker drops what its own rules don't allow, even within podman's internal networks.
    rule = ["FORWARD", "--in-interface", "podman+", "--out-interface", "podman+", "--jump", "ACCEPT"]
    run([program("iptables"), "-I", *rule], environment=environment)
    try:
        yield podman
    finally:
        run([program("iptables"), "-D", *rule], environment=environment, check=False)
        print(podman.podman("ps", "--all", check=False))
        podman.compose("down", "--volumes", "--timeout", "5", check=False)
        # Its mounts would keep the folder from being deleted.
        podman.podman("system", "reset", "--force", check=False)


async def test_it_starts_and_answers(podman: Podman) -> None:
    await asyncio.to_thread(podman.compose, "up", "--detach", "--no-build")
    wanted = {"postgres", "valkey", "nats", "auth", "gateway", "inference", "metrics", "web", "proxy"}
    began = time.monotonic()
    while {name for name, good in (await asyncio.to_thread(podman.healthy)).items() if good} < wanted:
        assert time.monotonic() - began < START_SECONDS, podman.compose("logs", check=False)[-5000:]
    key = podman.podman("exec", f"{PROJECT}_auth_1", "cat", "/run/aimesh/admin_key").strip()
    url = f"http://127.0.0.1:{podman.environment['GATEWAY_SERVICE_PORT']}"
    assert await stream_load.ask(url, key, "smollm2")
    assert image_builds.version() in podman.podman("ps", "--format", "{{.Image}}")
