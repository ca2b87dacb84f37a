"""The client with the real chat process, and with processes that fail in other ways."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.inference import child_process
from services.inference.chat import chat_client, library
from services.inference.chat.answer_text import MAX_NESTING, AnswerMarks, AnswerSeparator, SeparatedPiece, TextChannel
from services.inference.chat.chat_client import ChatClient
from services.inference.chat.chat_messages import OpenTemplate, ParseAnswer, ParsedAnswer, RenderPrompt, Row
from shared import errors
from tests import tiers
from tests.services.inference.chat.parsing import joined
from tests.services.inference.chat.test_library import TEMPLATE, TOOL, USER

built = pytest.mark.skipif(not library.PATH.exists(), reason="libaimesh_chat was not built: python -m tools.engine_libraries")
PROMPT = RenderPrompt((USER,), (TOOL,))
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


@asynccontextmanager
async def client(template: str = TEMPLATE, program: tuple[str, ...] = chat_client.PROGRAM) -> AsyncIterator[ChatClient]:
    chat = ChatClient(OpenTemplate(template), program)
    try:
        yield chat
    finally:
        await chat.close()


@built
async def test_prompt_is_rendered_and_answer_read_in_the_process() -> None:
    async with client() as chat:
        capabilities = await chat.open()
        assert (capabilities.reads_calls, capabilities.unconfined) == (True, "")
        pid = chat.pid
        rendered = await chat.render(PROMPT)
        read = await chat.parse(ParseAnswer(rendered.parser, CALL))
        assert isinstance(read, ParsedAnswer)
        assert [call.arguments for call in read.calls] == ['{"city": "Köln"}']
        assert (chat.pid, chat.lost) == (pid, 0)
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@built
@pytest.mark.parametrize("depth", [10_000, 1_000_000])
async def test_deep_answer_loses_only_its_own_call(depth: int) -> None:
    """llama.cpp's parser recurses: the process ends with SIGSEGV. A thousand brackets are fine, and the separator stops at 64."""
    async with client() as chat:
        rendered = await chat.render(PROMPT)
        before = chat.pid
        deep = '<tool_call>\n{"name": "weather", "arguments": {"city": ' + "[" * depth
        replies = await asyncio.gather(
            chat.parse(ParseAnswer(rendered.parser, CALL)),
            chat.parse(ParseAnswer(rendered.parser, deep)),
            chat.parse(ParseAnswer(rendered.parser, CALL)),
            chat.parse(ParseAnswer(rendered.parser, deep[: -depth + MAX_NESTING])),
        )
        assert [type(reply).__name__ for reply in replies] == ["ParsedAnswer", "NoneType", "ParsedAnswer", "ParsedAnswer"]
        assert (chat.lost, chat.pid != before) == (1, True)


@built
async def test_10000_messages_are_rendered() -> None:
    """They take 1.5 s of processor time on a fast machine."""
    call: Row = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "x"}'}}
    turn: tuple[Row, ...] = (
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "word " * 80},
    )
    async with client() as chat:
        rendered = await chat.render(RenderPrompt((USER, *turn * 5000, USER), (TOOL,)))
        assert rendered.prompt.count("word " * 80) == 5000
        assert chat.lost == 0


@built
async def test_killed_process_starts_again() -> None:
    async with client() as chat:
        rendered = await chat.render(PROMPT)
        for _ in range(3):
            assert chat.pid is not None
            os.kill(chat.pid, signal.SIGKILL)
            await chat.parse(ParseAnswer(rendered.parser, CALL))
            assert isinstance(await chat.parse(ParseAnswer(rendered.parser, CALL)), ParsedAnswer)


@built
async def test_answers_end_although_the_process_is_killed_in_them() -> None:
    """Text after the last parse arrives as plain text. Each kill costs the start of a process."""
    kills = tiers.volume(20)
    async with client() as chat:
        rendered = await chat.render(PROMPT)
        text = "<think>Hm.</think>So: " + CALL
        channels: set[TextChannel] = set()
        for kill_at in range(3, len(text), len(text) // kills):
            separator = AnswerSeparator(AnswerMarks.of(rendered))
            pieces: list[SeparatedPiece] = []
            for at, letter in enumerate(text):
                if at == kill_at and chat.pid is not None:
                    os.kill(chat.pid, signal.SIGKILL)
                pieces += await chat.separate(separator.feed(letter), rendered.parser)
            whole = joined([*pieces, *await chat.separate(separator.feed("", last=True), rendered.parser)])
            assert separator.failed
            assert (whole[-1].channel, text.endswith(whole[-1].text)) == (TextChannel.CONTENT, True)
            channels |= {piece.channel for piece in whole}
        assert channels == set(TextChannel)
        assert chat.lost >= kills


@built
@pytest.mark.parametrize(
    ("template", "reason"),
    [
        pytest.param("{% for a in range(1000) %}{% for b in range(200) %}{% endfor %}{% endfor %}", "crashed in this request", id="time"),
        # In one allocation, because filling so much memory takes 2 s on a busy CPU.
        pytest.param("{{ 'one line\n and another' | indent(1000000000) }}", "bad_alloc", id="memory"),
    ],
)
async def test_template_that_takes_too_much_costs_2_seconds_or_512_mib(template: str, reason: str) -> None:
    async with client("{% if messages[0].content == 'now' %}" + template + "{% endif %}" + TEMPLATE) as chat:
        await chat.open()
        with pytest.raises(errors.BadRequest, match=reason):
            await chat.render(RenderPrompt(({"role": "user", "content": "now"},)))
        assert (await chat.render(PROMPT)).prompt


@built
async def test_refusals_name_the_reason() -> None:
    async with client("{{ raise_exception('roles must alternate') }}") as chat:
        with pytest.raises(errors.BadRequest, match="roles must alternate"):
            await chat.open()
    async with client() as chat:
        with pytest.raises(errors.BadRequest, match="role"):
            await chat.render(RenderPrompt(({"content": "Hi"},)))
        wrong: dict[str, object] = {"type": "function", "function": {"name": "f", "parameters": {"type": 3}}}
        # llama.cpp can't make a grammar of this tool, so its calls have the generic form.
        assert (await chat.render(RenderPrompt((USER,), (wrong,)))).generic


@built
async def test_template_that_crashes_llama_cpp_is_tried_by_jinja() -> None:
    async with client("{{ " + "[" * 60_000 + "]" * 60_000 + " }}") as chat:
        with pytest.raises(errors.BadRequest, match=r"recursion|nested"):
            await chat.open()


@built
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
async def test_large_libraries_leave_the_process_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's libraries map more memory than the process may otherwise use."""
    (tmp_path / "large.c").write_text("char large[600 << 20];")
    command = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "large.so"), str(tmp_path / "large.c")]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)
    environment = child_process.inherited() | {"LD_PRELOAD": f"{tmp_path}/large.so"}
    monkeypatch.setattr(child_process, "inherited", lambda: environment)
    async with client() as chat:
        await chat.open()
        assert (await chat.render(PROMPT)).prompt


@built
async def test_canceled_call_gives_nobody_its_reply() -> None:
    async with client() as chat:
        rendered = await chat.render(PROMPT)
        pid = chat.pid
        for _ in range(5):
            parsing = asyncio.ensure_future(chat.parse(ParseAnswer(rendered.parser, "one")))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            parsing.cancel()
            read = await chat.parse(ParseAnswer(rendered.parser, "two"))
            assert isinstance(read, ParsedAnswer)
            assert read.content == "two"
        assert chat.pid == pid


async def test_process_that_does_not_start_is_unavailable() -> None:
    async with client(program=(sys.executable, "-c", "")) as chat:
        with pytest.raises(errors.Unavailable, match="does not start"):
            await chat.render(PROMPT)
        assert await chat.parse(ParseAnswer("", "text")) is None
        assert chat.pid is None
