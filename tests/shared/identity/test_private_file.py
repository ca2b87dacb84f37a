import os
import stat
from pathlib import Path

import pytest

from shared.identity import private_file


@pytest.mark.parametrize("synced", [False, True])
def test_a_file_is_replaced_atomically_and_private_to_its_owner(tmp_path: Path, synced: bool) -> None:
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    path.chmod(0o644)
    with path.open("rb") as reader:
        private_file.replace(path, b"new", synced=synced)
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), private_file.written(path, b"new") as made:
        assert made.read_bytes() == b"new"
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]
    with pytest.raises(OSError, match="No such file"):
        private_file.replace(tmp_path / "nowhere" / "kept", b"new")


@pytest.mark.parametrize(
    ("mode", "owner", "me", "exposed"),
    [
        (0o600, 10001, 10001, False),
        (0o640, 10001, 10001, True),
        # As Kubernetes mounts a Secret for a pod with fsGroup.
        (0o440, 0, 10001, False),
        (0o460, 0, 10001, True),
        (0o444, 0, 10001, True),
        # root's group may have other members.
        (0o440, 0, 0, True),
    ],
)
def test_a_secret_of_kubernetes_is_private_to_its_pod(
    monkeypatch: pytest.MonkeyPatch, mode: int, owner: int, me: int, exposed: bool
) -> None:
    facts = os.stat_result((stat.S_IFREG | mode, 1, 1, 1, owner, 10001, 1, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda self: facts)
    monkeypatch.setattr(os, "geteuid", lambda: me)
    monkeypatch.setattr(os, "getgroups", lambda: [10001])
    assert private_file.is_exposed(Path("node.nk")) is exposed


def test_the_group_of_a_secret_must_be_the_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = os.stat_result((stat.S_IFREG | 0o440, 1, 1, 1, 0, 7, 1, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda self: facts)
    monkeypatch.setattr(os, "geteuid", lambda: 10001)
    monkeypatch.setattr(os, "getgroups", lambda: [10001])
    assert private_file.is_exposed(Path("node.nk"))
