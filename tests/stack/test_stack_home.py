import os
from pathlib import Path

import pytest

from shared import errors
from stack import stack_home as homes
from stack.stack_home import StackHome


def test_sockets_are_in_the_home_if_its_path_is_short() -> None:
    assert homes.plan_sockets(Path("/srv/aimesh"), Path("/run/user/7"), 7) == Path("/srv/aimesh/run")


@pytest.mark.parametrize("length", range(60, 120, 7))
def test_socket_paths_fit_the_limit_of_linux(length: int) -> None:
    root = Path("/" + "x" * length)
    longest = homes.plan_sockets(root, Path("/run/user/4294967295"), 4294967295) / ".s.PGSQL.5432.lock"
    assert len(os.fsencode(longest)) <= homes.MAX_SOCKET_PATH_BYTES


def test_long_homes_get_distinct_short_folders() -> None:
    one, two = (homes.plan_sockets(Path("/" + "x" * 100 + name), Path("/tmp"), 0) for name in "ab")
    assert one != two
    assert one.parent == Path("/tmp")


def test_folders_are_private_and_repaired(tmp_path: Path) -> None:
    home = homes.locate({"AIMESH_HOME": str(tmp_path / "h")})
    homes.ensure_folders(home)
    home.secrets.chmod(0o755)
    homes.ensure_folders(home)
    for folder in (home.root, home.secrets, home.keys, home.logs, home.run, home.sockets):
        assert folder.stat().st_mode & 0o777 == 0o700, folder


def test_socket_folder_is_remembered(tmp_path: Path) -> None:
    root = tmp_path / ("x" * 100)
    (tmp_path / "short").mkdir()
    first = homes.locate({"AIMESH_HOME": str(root), "XDG_RUNTIME_DIR": str(tmp_path / "short")})
    homes.ensure_folders(first)
    assert first.sockets.parent == tmp_path / "short"
    assert homes.locate({"AIMESH_HOME": str(root), "XDG_RUNTIME_DIR": "/elsewhere"}) == first


def test_symlink_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "sockets").symlink_to(tmp_path / "target")
    with pytest.raises(errors.BadSettings, match="not a folder of yours"):
        homes.ensure_folders(StackHome(tmp_path / "h", tmp_path / "sockets"))


def test_private_file_is_replaced_atomically(tmp_path: Path) -> None:
    file = tmp_path / "f"
    homes.write_private(file, "one")
    homes.write_private(file, "two")
    assert file.read_text() == "two"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [*tmp_path.iterdir()] == [file]
