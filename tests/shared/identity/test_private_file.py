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
