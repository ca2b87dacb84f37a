"""A gateway compares what a worker has with what the directory says of others."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from features.front.contract import Build, NameModels
from features.front.gateway.part import Names
from shared.protocol.directory import Announcement, Directory, ModelOffer
from shared.types import ModelName, NodeId, Role

QWEN = ModelName("qwen3:8b")


def announced(node: str, hour: int, digest: str, *, is_upstream: bool = True) -> Announcement:
    offer = ModelOffer(QWEN, 4096, digest, is_upstream=is_upstream)
    return Announcement(Role.WORKER, NodeId(node), "1", datetime(2026, 11, 30, hour, tzinfo=UTC), models=(offer,))


def directory_of(*workers: Announcement) -> Directory:
    directory = Directory(lambda: 0.0)
    for worker in workers:
        directory.apply_announcement(worker, "nats")
    return directory


async def names_for(directory: Directory, node: str, digest: str) -> tuple[str, ...]:
    call = cast("Any", SimpleNamespace(caller=SimpleNamespace(node=NodeId(node))))
    return (await Names(directory).name(NameModels("box", (Build(QWEN, digest),)), call)).names


async def test_the_younger_of_two_files_gets_its_machines_name() -> None:
    directory = directory_of(announced("old", 1, "1" * 64), announced("young", 2, "2" * 64))
    assert await names_for(directory, "young", "2" * 64) == ("box/qwen3:8b",)
    assert await names_for(directory, "old", "1" * 64) == (QWEN,)


async def test_a_worker_that_nobody_has_heard_of_is_the_youngest() -> None:
    assert await names_for(directory_of(announced("old", 1, "1" * 64)), "unheard", "2" * 64) == ("box/qwen3:8b",)
    assert await names_for(directory_of(announced("old", 1, "1" * 64)), "unheard", "1" * 64) == (QWEN,)


async def test_a_worker_that_is_gone_takes_no_name() -> None:
    directory = directory_of(announced("old", 1, "1" * 64), announced("young", 2, "2" * 64))
    directory.mark_gone(NodeId("old"), "stopped")
    assert await names_for(directory, "young", "2" * 64) == (QWEN,)
