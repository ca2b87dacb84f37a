"""The hooks that aimesh ships, with stand-ins for `aicli` and `docker`."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import msgspec
import psutil
import pytest

from features.autoscaling.rules.hook_plan import HookRequest
from tests.stacks import REPOSITORY
from tests.testnet import until

SCRIPTS = REPOSITORY / "deploy" / "scale"
PR_SET_CHILD_SUBREAPER = 36
#: Prints its node, as a worker does, and ends after SIGTERM.
AICLI = """#!/bin/sh
echo "$@" >> {folder}/started
trap 'echo $$ >> {folder}/stopped; exit 0' TERM
echo '{{"node":"U'$$'"}}' > "$WORKER_REPORT_FILE"
while :; do sleep 0.05; done
"""


class Local:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        aicli = folder / "aicli"
        aicli.write_text(AICLI.format(folder=folder), encoding="utf-8")
        aicli.chmod(0o700)

    def call(self, wanted: int, *drain: str, others: int = 0, reason: str = 'the "wanted":99,"drain" of a reason') -> None:
        request = HookRequest(UUID(int=1), "l4", 0, wanted, drain, reason)
        subprocess.run(
            [SCRIPTS / "local.sh", self.folder, str(others), "--backend", "echo"], input=msgspec.json.encode(request), check=True,
            timeout=30, env={"PATH": os.environ["PATH"], "SCALE_AICLI": str(self.folder / "aicli")},
        )  # fmt: skip

    @property
    def pids(self) -> list[int]:
        return sorted(int(path.read_text()) for path in (self.folder / "run" / "pool-l4").glob("*.pid"))


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    found = Local(tmp_path)
    yield found
    for path in (tmp_path / "run").rglob("*.pid"):
        worker = psutil.Process(int(path.read_text()))
        worker.kill()
        worker.wait(10)


@pytest.fixture
def adopting() -> Iterator[None]:
    """Make this process the parent of orphans below it. They stay zombies until this process waits for them."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:
        pytest.skip("only Linux lets a process adopt orphans")
    others = psutil.Process().children()
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    # A killed worker leaves its `sleep`, for example.
    for orphan in set(psutil.Process().children()) - set(others):
        orphan.wait(10)


async def test_workers_are_started_and_the_named_ones_stopped(local: Local) -> None:
    local.call(3)
    first = local.pids
    assert len(first) == 3
    reports = local.folder / "run" / "pool-l4"
    await until(lambda: len([path for path in reports.glob("*.json") if path.read_text().strip()]) == 3)
    local.call(3)
    assert local.pids == first, "the same wish twice starts nothing"
    local.call(2, f"U{first[1]}")
    assert local.pids == [first[0], first[2]]
    await until((local.folder / "stopped").exists)
    assert (local.folder / "stopped").read_text() == f"{first[1]}\n"
    assert (local.folder / "started").read_text() == "worker --backend echo\n" * 3
    local.call(0, "UNKNOWN")
    assert local.pids == []


@pytest.mark.usefixtures("adopting")
async def test_workers_outlive_the_script_and_dead_ones_are_replaced(local: Local) -> None:
    local.call(2)
    first = local.pids
    # A worker creates its session shortly after its start.
    await until(lambda: all(os.getsid(pid) == pid for pid in first))
    os.kill(first[0], 9)
    await until(lambda: psutil.Process(first[0]).status() == psutil.STATUS_ZOMBIE)
    local.call(2)
    psutil.Process(first[0]).wait(10)
    assert first[1] in local.pids
    assert first[0] not in local.pids
    assert len(local.pids) == 2


def test_workers_of_others_count(local: Local) -> None:
    local.call(2, others=1)
    assert len(local.pids) == 1


def test_replicas_of_a_swarm_service(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n', encoding="utf-8")
    docker.chmod(0o700)
    request = msgspec.json.encode(HookRequest(UUID(int=1), "l4", 0, 4, (), "r"))
    subprocess.run([SCRIPTS / "swarm.sh", "aimesh_inference"], input=request, check=True, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert (tmp_path / "asked").read_text() == "service update --detach --quiet --replicas 4 aimesh_inference\n"


@pytest.mark.parametrize("script", ["local.sh", "swarm.sh"])
def test_other_input_is_refused(script: str, tmp_path: Path) -> None:
    done = subprocess.run([SCRIPTS / script, tmp_path, "0"], input=b"hello", capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (2, b"not the request of a pool's hook\n")
