"""Facts about the test's machine that hold on any machine."""

import hashlib
import socket
import time
from pathlib import Path

import psutil
import pytest

from shared.node.machine import ThisMachine, cpu_share

MIB = 2**20


def test_cpus_are_busy_for_part_of_the_elapsed_time() -> None:
    machine = ThisMachine(())
    before = machine.processors()
    assert 0 < before.busy < before.possible
    waited = psutil.cpu_times().idle + getattr(psutil.cpu_times(), "iowait", 0.0)
    assert before.possible - before.busy == pytest.approx(waited, abs=30)
    busy_until = time.thread_time() + 0.05
    while time.thread_time() < busy_until:
        pass
    share = cpu_share(before, machine.processors())
    assert share is not None
    assert 0 < share <= 1


def test_memory_and_disk_are_partly_used(tmp_path: Path) -> None:
    machine = ThisMachine(())
    memory, disk = machine.memory(), machine.disk(tmp_path)
    assert 0 < memory.used < memory.total
    assert memory.used + memory.free == memory.total
    assert 0 < disk.free <= disk.total
    assert machine.disk(tmp_path / "not" / "there" / "yet").total == disk.total


def test_bytes_are_counted_except_on_loopback() -> None:
    machine = ThisMachine(())
    network = machine.network_bytes()
    assert not {"lo", "lo0"} & network.keys()
    assert all(moved.inwards >= 0 and moved.outwards >= 0 for moved in (*network.values(), *machine.disk_bytes().values()))


def test_inside_limits_the_limits_are_the_machine(tmp_path: Path) -> None:
    for name, text in {
        "memory.max": f"{64 * MIB}",
        "memory.current": f"{32 * MIB}",
        "memory.stat": "inactive_file 0",
        "cpu.max": "1000 100000",
        "cpu.stat": "usage_usec 500000",
    }.items():
        (tmp_path / name).write_text(text + "\n", encoding="ascii")
    machine = ThisMachine((tmp_path,))
    assert machine.memory().total == 64 * MIB
    assert machine.memory().used == 32 * MIB
    assert machine.processors().busy == 0.5


def test_all_nodes_of_a_machine_use_the_same_machine_id() -> None:
    name = ThisMachine(()).name()
    assert name == ThisMachine(()).name()
    boot = hashlib.sha256(Path("/proc/sys/kernel/random/boot_id").read_bytes()).hexdigest()
    # The suffix tells apart two machines called localhost.
    assert name.endswith("-" + boot[:6])


def test_a_container_with_limits_is_a_separate_machine(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 5\n")
    assert ThisMachine((tmp_path,)).name().startswith(socket.gethostname())


def test_a_disk_is_named_after_its_mount_point(tmp_path: Path) -> None:
    machine = ThisMachine(())
    mount = Path(machine.disk_name(tmp_path))
    assert mount.is_mount()
    assert tmp_path.is_relative_to(mount)
    assert mount.stat().st_dev == tmp_path.stat().st_dev
    assert machine.disk_name(tmp_path / "not" / "there" / "yet") == str(mount)
    assert machine.disk_name(Path("/proc")) == "/proc"
