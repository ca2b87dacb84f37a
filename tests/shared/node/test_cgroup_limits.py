from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from shared.node import machine
from shared.node.machine import Space, cpu_share

GIB = 2**30


def tree(mount: Path, **files: str) -> Path:
    """Make a folder of cgroup files under a mount; return the mount."""
    mount.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (mount / name.replace("_", ".", 1)).write_text(text, encoding="ascii")
    return mount


def test_the_process_own_group_and_all_parents_are_read(tmp_path: Path) -> None:
    own = tree(tmp_path / "mount" / "system.slice" / "aimesh.service")
    (tmp_path / "cgroup").write_text("0::/system.slice/aimesh.service\n", encoding="ascii")
    assert machine.find_cgroups(tmp_path / "cgroup", tmp_path / "mount") == (own, own.parent, own.parent.parent)


@pytest.mark.parametrize("path", ["/docker/4ab", "/../../elsewhere", "/"])
def test_in_a_container_that_sees_only_its_part_that_is_the_top(tmp_path: Path, path: str) -> None:
    (tmp_path / "cgroup").write_text(f"1:cpu:/a\n0::{path}\n", encoding="ascii")
    mount = tree(tmp_path / "mount")
    assert machine.find_cgroups(tmp_path / "cgroup", mount) == (mount,)


def test_without_cgroup_v2_there_are_no_limits(tmp_path: Path) -> None:
    assert machine.find_cgroups(tmp_path / "none", tmp_path) == ()
    (tmp_path / "cgroup").write_text("4:memory:/a\n", encoding="ascii")
    assert machine.find_cgroups(tmp_path / "cgroup", tmp_path) == ()
    assert machine.cgroup_memory((), GIB) is None
    assert machine.cgroup_processors((), 4, 0.0) is None


def test_the_tightest_memory_limit_applies(tmp_path: Path) -> None:
    above = tree(
        tmp_path / "slice", memory_max=f"{2 * GIB}\n", memory_current=f"{GIB}\n", memory_stat=f"anon 1\ninactive_file {GIB // 4}\n"
    )
    own = tree(above / "unit", memory_max=f"{4 * GIB}\n")
    unlimited = tree(own / "inside", memory_max="max\n")
    found = machine.cgroup_memory((unlimited, own, above, tmp_path), 8 * GIB)
    assert found == Space(used=GIB * 3 // 4, free=GIB * 5 // 4, total=2 * GIB)


def test_a_memory_limit_above_the_machines_memory_is_ignored(tmp_path: Path) -> None:
    assert machine.cgroup_memory((tree(tmp_path, memory_max=f"{8 * GIB}\n"),), 8 * GIB) is None


def test_a_cpu_limit_is_a_share_of_the_allowed_cpus(tmp_path: Path) -> None:
    own = tree(tmp_path, cpu_max="50000 100000\n", cpu_stat="usage_usec 1000000\nuser_usec 5\n")
    before = machine.cgroup_processors((own,), 4, 100.0)
    tree(tmp_path, cpu_stat="usage_usec 2000000\n")
    now = machine.cgroup_processors((own,), 4, 110.0)
    assert before is not None
    assert now is not None
    # One second of CPU time in ten seconds, with a limit of half a processor.
    assert cpu_share(before, now) == pytest.approx(0.2)
    tree(tmp_path, cpu_max="100000 100000\n")
    other = machine.cgroup_processors((own,), 4, 120.0)
    assert other is not None
    assert cpu_share(now, other) is None


@pytest.mark.parametrize("word", ["max 100000\n", "400000 100000\n"])
def test_without_a_cpu_limit_the_machines_figure_is_used(tmp_path: Path, word: str) -> None:
    assert machine.cgroup_processors((tree(tmp_path, cpu_max=word),), 4, 0.0) is None


def test_an_unknown_file_format_is_reported_and_not_guessed(tmp_path: Path) -> None:
    own = tree(tmp_path, cpu_max="50000 100000\n", cpu_stat="user_usec 5\n")
    with pytest.raises(ValueError, match="usage_usec"):
        machine.cgroup_processors((own,), 4, 0.0)


V2, V1 = "a/b", "memory/docker/x"


@pytest.mark.parametrize(
    ("own_group", "files", "free_gib"),
    [
        pytest.param(None, {}, 8, id="no container: what the kernel calls available"),
        pytest.param("0::/a/b", {V2: (4 * GIB, GIB, 0)}, 3, id="a limit of cgroup v2"),
        pytest.param("0::/a/b", {V2: ("max", 5, 0), "a": (4 * GIB, 2 * GIB, 0)}, 2, id="the limit of a group above"),
        pytest.param("0::/a/b", {V2: (4 * GIB, 3 * GIB, 2 * GIB)}, 3, id="pages of files are given back when somebody needs them"),
        pytest.param("9:cpu:/\n4:memory:/docker/x", {V1: (4 * GIB, GIB, 0)}, 3, id="a limit of cgroup v1"),
        pytest.param("4:memory:/docker/x", {V1: (9223372036854771712, GIB, 0)}, 8, id="cgroup v1 without a limit"),
        pytest.param("4:memory:/docker/of-the-host", {"memory": (5 * GIB, 0, 0)}, 5, id="a path of the host's that is not there"),
        pytest.param("what is this\n\n0::", {V2: ("?", "?", 0)}, 8, id="files of another kernel"),
        pytest.param("0::/a/b", {V2: (5, GIB, 0)}, 0, id="a full container"),
    ],
)
def test_free_memory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own_group: str | None,
    files: dict[str, tuple[int | str, int | str, int]],
    free_gib: int,
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * GIB))
    if own_group is not None:
        (tmp_path / "cgroup").write_text(f"{own_group}\n", encoding="ascii")
    for folder, (limit, used, reclaimable) in files.items():
        if folder.startswith("memory"):
            written = {"memory_limit_in_bytes": f"{limit}\n", "memory_usage_in_bytes": f"{used}\n"}
            tree(tmp_path / folder, **written, memory_stat=f"cache 1\ntotal_inactive_file {reclaimable}\n")
        else:
            tree(tmp_path / folder, memory_max=f"{limit}\n", memory_current=f"{used}\n", memory_stat=f"inactive_file {reclaimable}\n")
    assert machine.free_memory(tmp_path / "cgroup", tmp_path) == free_gib * GIB
