"""Probes that run a program, on the event loops that use them."""

import asyncio
from asyncio.subprocess import Process
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from stack import probes
from stack.servers.program import CommandProbe


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_program_may_end_before_it_is_read(new_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch) -> None:
    start = asyncio.create_subprocess_exec

    async def start_and_wait(*command: str, **options: Any) -> Process:
        process = await start(*command, **options)
        await process.wait()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_and_wait)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(probes.run_probe(CommandProbe(("true",), 2))) is probes.ProbeResult.READY
