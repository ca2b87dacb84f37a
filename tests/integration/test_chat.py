"""`aicli chat` in a terminal, against a running stack, over the mesh and over HTTP: context, speed, cost, and Ctrl-C on the worker."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.ask import chat_terminal
from tests.cli.ask.chat_terminal import CTRL_C, CTRL_D, READY
from tests.stacks import RunningStack, until

#: At 5 ms a token, the answer takes ten seconds, so that the test can stop it midway.
LONG = "word " * 2000
CANCELLED = '"status": "cancelled"'


def talk(environment: Mapping[str, str]) -> None:
    with chat_terminal.chatting(["cli.main", "chat", "--model", "echo"], environment) as terminal:
        terminal.sees(READY)
        terminal.sends("hello **there**")
        terminal.sees("\nhello there\r\n")
        terminal.sends("<think> first this </think> then that")
        terminal.sees(" first this\r\n\r\n")
        terminal.sees("then that\r\n")
        assert "tokens/s" in terminal.sees("credits")
        # Paste the text, so that the terminal does not echo it in pieces.
        terminal.types(f"\x1b[200~begin {LONG}\x1b[201~\r")
        terminal.sees("\nbegin word")
        terminal.types(CTRL_C)
        terminal.sees("Stopped. /retry answers again.")
        terminal.sends("/model nonsense")
        terminal.sees("error: no worker serves 'nonsense' – models: ")
        terminal.sends("still there")
        terminal.sees("\nstill there\r\n")
        terminal.sees("credits")
        terminal.types(CTRL_D)
        assert terminal.ends() == 0


@pytest.mark.parametrize("way", ["mesh", "http"])
async def test_chat(stack: RunningStack, tmp_path: Path, way: str) -> None:
    before = stack.log("gateway").count(CANCELLED)
    home = {"HOME": str(tmp_path)}
    reach = {"AIMESH_HOME": str(stack.home)} if way == "mesh" else {"AIMESH_URL": stack.url("web"), "AIMESH_API_KEY": stack.api_key}
    await asyncio.to_thread(talk, {**home, **reach})

    async def is_cancelled() -> bool:
        return stack.log("gateway").count(CANCELLED) > before

    await until(is_cancelled, seconds=30, what="the gateway has canceled the request")
