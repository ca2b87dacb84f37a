"""Replicas that share a volume adopt the files of replicas that are gone, and only those."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from shared import errors
from shared.identity import node_keys
from shared.stores import file_lock, replica_files
from shared.types import NodeId


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return tmp_path / "{node}" / "gateway.journal"


def new_node() -> NodeId:
    return node_keys.NodeKey(node_keys.new_seed()).id


def test_a_path_without_the_folder_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "gateway.journal"
    assert replica_files.path_of(path, new_node()) == replica_files.without_folder(path) == path
    assert replica_files.find_others(path, new_node()) == []


@pytest.mark.parametrize("wrong", ["/var/{node}", "/var/{node}/more/file", "/var/{node}/{node}/file", "/var/x{node}/file"])
def test_the_placeholder_must_be_the_folder_of_the_file(wrong: str) -> None:
    (mistake,) = replica_files.mistakes("JOURNAL_FILE", Path(wrong))
    assert "JOURNAL_FILE: use {node} only as the folder" in mistake
    assert not list(replica_files.mistakes("JOURNAL_FILE", Path("/var/{node}/file")))
    assert not list(replica_files.mistakes("JOURNAL_FILE", None))


async def test_a_replica_has_its_own_folder_which_goes_when_it_is_empty(template: Path) -> None:
    node = new_node()
    async with replica_files.held(template, node) as path:
        assert path == template.parent.parent / node / "gateway.journal"
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not path.parent.exists()
    async with replica_files.held(template, node) as path:
        path.write_bytes(b"rows")
    assert path.read_bytes() == b"rows"


async def test_others_are_folders_of_nodes_and_the_file_of_an_earlier_version(template: Path) -> None:
    own, other, base = new_node(), new_node(), template.parent.parent
    for name in (own, other, "models", "recovery_log"):
        (base / name).mkdir()
    assert replica_files.find_others(template, own) == [base / other / "gateway.journal"]
    (base / "gateway.journal").write_bytes(b"")
    assert replica_files.find_others(template, own)[1:] == [base / "gateway.journal"]
    replica_files.remove(base / "gateway.journal")
    assert base.exists()


async def test_a_file_is_not_adopted_while_it_has_an_owner(template: Path) -> None:
    async with replica_files.held(template, new_node()) as path:
        with file_lock.try_hold(path) as is_held:
            assert not is_held
        path.write_bytes(b"rows")
    with file_lock.try_hold(path) as is_held, file_lock.try_hold(path) as is_held_twice:
        assert (is_held, is_held_twice) == (True, False)


async def test_on_a_file_system_without_locks_nothing_is_adopted(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    async with replica_files.held(template, new_node()) as path:
        with file_lock.try_hold(path) as is_held:
            assert not is_held


@pytest.fixture
def removing(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that another process adopts and removes after we have opened the lock and before we lock it."""
    doomed: list[Path] = []
    real = fcntl.flock

    def flock(handle: int, operation: int) -> None:
        while doomed:
            replica_files.remove(doomed.pop())
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    return doomed


async def test_a_lock_on_a_file_that_was_removed_meanwhile_is_no_lock(template: Path, removing: list[Path]) -> None:
    node = new_node()
    path = replica_files.path_of(template, node)
    path.parent.mkdir()
    removing.append(path)
    with file_lock.try_hold(path) as is_held:
        assert not is_held
    old = template.parent.parent / "node.mesh"
    removing.append(old)
    async with file_lock.hold(old):
        with file_lock.try_hold(old) as is_held:
            assert not is_held, "two processes have the lock"
        with pytest.raises(errors.BadSettings, match="another process uses"):
            async with file_lock.hold(old, patience_seconds=0):
                pass


async def test_a_replica_that_waits_for_its_own_file_gets_a_new_folder_when_an_adopter_has_removed_the_old_one(
    template: Path, removing: list[Path]
) -> None:
    node = new_node()
    async with replica_files.held(template, node) as path:
        path.write_bytes(b"rows")
    removing.append(path)
    async with replica_files.held(template, node):
        path.write_bytes(b"new rows")
        with file_lock.try_hold(path) as is_held:
            assert not is_held
    assert path.exists()
