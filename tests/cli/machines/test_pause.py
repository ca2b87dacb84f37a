"""`aicli worker status` of a machine with several workers."""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from cli.machines import join
from shared.api import node
from shared.api.node import WorkerStatus
from shared.identity import node_keys, private_file
from shared.node import membership_file
from shared.node.membership_file import MembershipFile
from shared.types import MeshName, NodeId, Role
from tests.cli.fake_mesh import Shell


@pytest.fixture
def folder(shell: Shell) -> Iterator[join.Folder]:
    """A machine whose workers run."""
    folder = join.Folder(shell.folder / "worker")
    for each in (folder, folder.companion("ollama"), folder.companion("vllm"), folder.companion("lm_studio")):
        join.prepare(each)
        private_file.create(each.key, node_keys.new_seed)
        membership_file.save(each.membership, MembershipFile(MeshName("home"), Role.WORKER, b"c"))
    # Nothing is shared of it any more, or nothing yet.
    folder.companion("sglang").root.mkdir()
    lock = join.claim(folder)
    yield folder
    os.close(lock)


def write(folder: join.Folder, *lines: str, seconds_ago: float = 1.0) -> None:
    told_at = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    folder.status.write_bytes(node.encode_status(WorkerStatus(told_at, MeshName("home"), NodeId("U1"), lines, False, (), ("m",), 0, 0)))


def test_it_shows_every_worker(shell: Shell, folder: join.Folder) -> None:
    write(folder, "serving 1 model: a", "LM Studio runs here and isn't shared")
    write(folder.companion("ollama"), "serving 1 model: b")
    write(folder.companion("vllm"), "serving 1 model: c", seconds_ago=600)
    shown = shell("worker", "status", "--state", str(folder.root))
    assert shown.exit_code == 0
    assert shown.stdout.splitlines() == [
        "serving 1 model: a",
        "LM Studio runs here and isn't shared",
        "lm_studio:",
        "  starting",
        "ollama:",
        "  serving 1 model: b",
        "vllm:",
        "  no status for 10 min: it is starting again, or its log says why it ended",
    ]
    found = json.loads(shell("worker", "status", "--state", str(folder.root), "--json").stdout)
    assert found["status"]["lines"][0] == "serving 1 model: a"
    assert {name: each and each["lines"] for name, each in found["others"].items()} == {
        "lm_studio": None,
        "ollama": ["serving 1 model: b"],
        "vllm": ["serving 1 model: c"],
    }


def test_a_second_start_is_refused_with_the_way_out(shell: Shell, folder: join.Folder) -> None:
    refused = shell("worker", "--state", str(folder.root))
    assert refused.exit_code != 0
    assert f"a worker already uses {folder.root}" in refused.stderr
    assert "aicli worker status" in refused.stderr
