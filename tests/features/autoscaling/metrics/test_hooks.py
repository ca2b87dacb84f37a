"""Hooks: real programs and real webhooks."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from features.autoscaling.metrics import hooks
from features.autoscaling.rules.hook_plan import HookRequest
from shared.worker_pools import PoolHook
from tests.stopwatch import HANG_SECONDS
from tests.testnet import until

REQUEST = HookRequest(UUID(int=7), "l4", 1, 3, ("UAAA",), "load")
Program = Callable[[str], tuple[str, ...]]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    def write(text: str) -> tuple[str, ...]:
        path = tmp_path / "hook.sh"
        path.write_text(f"#!/bin/sh\ncd {tmp_path}\n{text}\n", encoding="utf-8")
        path.chmod(0o700)
        return (str(path),)

    return write


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie of this container's init has ended, too.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


async def test_program_gets_json_and_no_secret(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "secret")
    monkeypatch.setenv("SCALE_WEBHOOK_SECRET", "secret")
    monkeypatch.setenv("SCALE_ZONE", "a")
    assert await hooks.call_hook(PoolHook(command=program("cat > got; env > env")), REQUEST, "s") == ""
    assert msgspec.json.decode((tmp_path / "got").read_bytes(), type=HookRequest) == REQUEST
    env = (tmp_path / "env").read_text()
    assert "secret" not in env
    assert "SCALE_ZONE=a\n" in env


async def test_program_that_hangs_is_killed_with_its_group(program: Program, tmp_path: Path) -> None:
    command = program("sleep 600 & echo $! > child; echo $$ > own; wait")
    assert await hooks.run_program(command, b"{}", seconds=0.5) == "killed after 0.5 s"
    pids = [int((tmp_path / name).read_text()) for name in ("child", "own")]
    await until(lambda: not any(map(alive, pids)))


async def test_failure_says_what_the_program_said_last(program: Program) -> None:
    found = await hooks.run_program(program("yes noise | head -c 300000 >&2; echo 'no quota' >&2; exit 3"), b"{}")
    assert found.startswith("ended with 3: ")
    assert found.endswith("noise no quota")
    assert len(found) < 600


async def test_programs_that_stay_do_not_keep_the_hook(program: Program, tmp_path: Path) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        assert await hooks.run_program(program("sleep 600 & echo $! > child"), b"{}") == ""
    pid = int((tmp_path / "child").read_text())
    assert alive(pid), "a hook may start what runs on"
    os.kill(pid, 9)


async def test_program_that_reads_nothing_of_much_input(program: Program) -> None:
    assert await hooks.run_program(program("exit 0"), b"x" * 1_000_000) == ""


async def test_missing_program(tmp_path: Path) -> None:
    assert await hooks.run_program((str(tmp_path / "gone"),), b"{}") == f"{tmp_path}/gone can't be started: No such file or directory"


async def test_canceled_call_leaves_nothing_behind(program: Program, tmp_path: Path) -> None:
    running = asyncio.create_task(hooks.run_program(program("echo $$ > own; sleep 600"), b"{}"))
    await until(lambda: (tmp_path / "own").exists() and (tmp_path / "own").read_text().endswith("\n"))
    running.cancel()
    await asyncio.wait((running,))
    assert running.cancelled()
    assert not alive(int((tmp_path / "own").read_text()))


# --- webhooks -----------------------------------------------------------------------------------------------------------


class Receiver:
    """An HTTP server that gives every request the same answer."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.head: dict[str, str] = {}
        self.body = b""
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests += 1
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()[1:]
        self.head = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        self.body = await reader.readexactly(int(self.head["content-length"]))
        writer.write(self.answer)
        writer.close()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", ""),
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", "returned 503"),
        (b"HTTP/1.1 307 Elsewhere\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", "returned 307"),
        (b"", "not responding: RemoteProtocolError"),
    ],
)
async def test_webhook_gets_a_signed_call(answer: bytes, problem: str) -> None:
    receiver = Receiver(answer)
    async with await asyncio.start_server(receiver.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await hooks.call_hook(PoolHook(webhook=f"http://127.0.0.1:{port}/scale"), REQUEST, "secret") == problem
    assert msgspec.json.decode(receiver.body, type=HookRequest) == REQUEST
    assert receiver.head["idempotency-key"] == str(REQUEST.key)
    assert receiver.head["x-aimesh-signature"] == hooks.sign(b"secret", receiver.head["x-aimesh-timestamp"], receiver.body)
    assert receiver.requests == 1


async def test_webhook_without_a_server() -> None:
    assert await hooks.call_hook(PoolHook(webhook="http://127.0.0.1:1/"), REQUEST, "s") == "not responding: ConnectError"
