"""`aicli` as its own process with a gateway on a real mesh: streaming, canceling, errors, concurrency."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import ClassVar
from uuid import UUID

import pytest

from cli import connection, main, profile
from cli.profile import Profile
from shared import errors, rpc
from shared.api import gateway
from shared.api.gateway import InferenceChunk, InferenceResult
from shared.api.generation import Usage
from shared.identity import node_keys
from shared.types import Credential, FinishReason, ModelName, RequestId, Role
from tests import tiers
from tests.testnet import MESH, IdleService, TestNet, free_port

ROOT = Path(main.__file__).parent.parent


class Gateway(IdleService):
    """Repeats the prompt word by word; `hang` never ends, `fail` fails after the first word."""

    role: ClassVar[Role] = Role.GATEWAY

    def __init__(self) -> None:
        self.called = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.credentials: set[str | None] = set()

    @rpc.serves(gateway.process_inference_request)
    async def infer(self, request: gateway.ProcessInferenceRequest, stream: rpc.StreamCall[InferenceChunk]) -> InferenceResult:
        self.credentials.add(stream.credential)
        self.called.set()
        prompt = request.request.prompt or ""
        try:
            for word in prompt.split():
                await stream.send(InferenceChunk(f"{word} "))
            if prompt == "hang":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if prompt == "fail":
            raise errors.ModelCrashed("the engine died", hint="ask again")
        return InferenceResult(
            request_id=RequestId(UUID(int=1)),
            model=ModelName("m"),
            finish_reason=FinishReason.STOP,
            usage=Usage(1, 1),
            response_time_ms=1,
            first_token_ms=1,
        )


def profile_of(net: TestNet) -> Profile:
    key_file = net.server.key("alice", Role.CLIENT)
    return Profile(mesh=MESH, nats_url=net.server.url, node_key_file=key_file, api_key=Credential("the-key"))


#: Starts `aicli` with this profile; programs that still run at the end of a test are killed.
Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    processes: list[Process] = []

    async def run(used: Profile, *arguments: str, stdin: int = DEVNULL, stdout: int = PIPE) -> Process:
        place = used.node_key_file.parent / "profile.toml"
        profile.write(place, used)
        environment = {"PATH": os.environ["PATH"], "AICLI_PROFILE": str(place)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cli.main", *arguments, cwd=ROOT, env=environment, stdin=stdin, stdout=stdout, stderr=PIPE
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def finish(process: Process) -> tuple[int | None, str, str]:
    async with asyncio.timeout(120):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_call_uses_the_key_of_the_profile(net: TestNet, start: Start) -> None:
    running_service = await net.start(Gateway)
    assert await finish(await start(profile_of(net), "infer", "one two three")) == (0, "one two three \n", "")
    assert isinstance(running_service.service, Gateway)
    assert running_service.service.credentials == {"the-key"}


async def test_error_of_the_peer_keeps_its_type(net: TestNet, start: Start) -> None:
    await net.start(Gateway)
    assert await finish(await start(profile_of(net), "infer", "fail")) == (1, "fail ", "error: the engine died – ask again\n")


@pytest.mark.parametrize("options", tiers.by_day([(), ("--no-stream",), ("--json",)], (), ("--json",), group="long"))
async def test_ctrl_c_stops_the_generation(net: TestNet, start: Start, options: tuple[str, ...]) -> None:
    running_service = await net.start(Gateway)
    assert isinstance(running_service.service, Gateway)
    process = await start(profile_of(net), "infer", "hang", *options)
    assert process.stdout is not None
    async with asyncio.timeout(120):
        if not options:
            assert await process.stdout.read(5) == b"hang "
        await running_service.service.called.wait()
        process.send_signal(signal.SIGINT)
        await running_service.service.cancelled.wait()
        code, out, _ = await finish(process)
    assert (code, out) == (130, "")


async def test_closed_stdout_stops_the_generation(net: TestNet, start: Start) -> None:
    running_service = await net.start(Gateway)
    assert isinstance(running_service.service, Gateway)
    reader, writer = os.pipe()
    process = await start(profile_of(net), "infer", "-", stdin=PIPE, stdout=writer)
    os.close(writer)
    async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
        finished = tasks.create_task(process.communicate(b"word " * 100_000))
        assert await asyncio.to_thread(os.read, reader, 4) == b"word"
        os.close(reader)
        await running_service.service.cancelled.wait()
    _, err = finished.result()
    assert (process.returncode, err) == (0, b"")


async def test_one_profile_can_be_used_concurrently(net: TestNet, start: Start) -> None:
    await net.start(Gateway)
    used = profile_of(net)
    processes = [await start(used, "infer", f"number {number}") for number in range(4)]
    ended = [await finish(process) for process in processes]
    assert ended == [(0, f"number {number} \n", "") for number in range(4)]


async def test_error_in_the_block_is_not_wrapped(net: TestNet) -> None:
    with pytest.raises(BrokenPipeError):
        async with connection.open_(profile_of(net)):
            raise BrokenPipeError


async def test_no_gateway_exits_with_5(net: TestNet, start: Start) -> None:
    code, out, err = await finish(await start(profile_of(net), "models"))
    assert (code, out) == (5, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


async def test_no_nats_exits_with_5(net: TestNet, start: Start) -> None:
    used = Profile(node_key_file=profile_of(net).node_key_file, nats_url=f"nats://127.0.0.1:{free_port()}")
    code, _, err = await finish(await start(used, "models"))
    assert code == 5
    assert "NATS" in err


async def test_key_rejected_by_the_server_is_reported_with_a_hint(net: TestNet, start: Start, tmp_path: Path) -> None:
    key = tmp_path / "stranger.nk"
    key.touch(mode=0o600)
    key.write_bytes(node_keys.new_seed())
    code, _, err = await finish(await start(Profile(node_key_file=key, mesh=MESH, nats_url=net.server.url), "models"))
    assert code == 5
    assert "refused this node's key" in err
    # The server runs, so the hint is not to start the stack.
    assert "aicli admin nodes refusals" in err
    assert "make up" not in err
