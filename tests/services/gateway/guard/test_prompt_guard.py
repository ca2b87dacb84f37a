"""A request with many texts, or a policy with slow patterns, lets other requests run."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from services.gateway.facts.guardrails import GuardScan
from services.gateway.guard import guard_test, prompt_guard
from services.gateway.guard.guarded_text import GuardMatches
from shared.api.generation import ChatMessage, ToolCall
from shared.config_documents import GuardAction, GuardKind, GuardPattern
from tests import loop_time

#: Of the event loop's thread, for one callback.
MAX_SECONDS = 0.1

SCAN = GuardScan(dict.fromkeys(GuardKind, GuardAction.MASK), dict.fromkeys(GuardKind, "mesh"), ("US", "DE", "FR"))
#: Every number is looked at by several kinds.
TEXT = "call 0170 1234567, 4111 1111 1111 1112, 8.8.8.8 or DE89 3704 0044 0532 0130 01; " * 12


async def ensure_others_run(reading: Coroutine[Any, Any, object]) -> None:
    with loop_time.measured() as callbacks:
        await asyncio.create_task(reading)
    callbacks.ensure_below(MAX_SECONDS)


async def test_many_short_messages_let_other_requests_run() -> None:
    messages = [ChatMessage("user", TEXT)] * 60
    await ensure_others_run(prompt_guard.guard_messages(messages, SCAN, GuardMatches()))


async def test_many_short_inputs_let_other_requests_run() -> None:
    await ensure_others_run(prompt_guard.guard_inputs([TEXT] * 60, SCAN, GuardMatches()))


async def test_many_tool_calls_let_other_requests_run() -> None:
    calls = tuple(ToolCall(str(number), "call", f'{{"text": "{TEXT}"}}') for number in range(60))
    await ensure_others_run(prompt_guard.guard_messages([ChatMessage("assistant", "", calls)], SCAN, GuardMatches()))


async def test_tiny_messages_let_other_requests_run() -> None:
    await ensure_others_run(prompt_guard.guard_messages([ChatMessage("user", "1")] * 20_000, SCAN, GuardMatches()))


def own(*patterns: tuple[str, int]) -> GuardScan:
    named = tuple(GuardPattern(name=f"p{number}", pattern=pattern, max_length=most) for number, (pattern, most) in enumerate(patterns))
    return GuardScan({GuardKind.OWN: GuardAction.MASK}, {GuardKind.OWN: "key"}, patterns=named)


#: Each letter begins a text that is too long for each pattern, so each is tried on each letter.
TOO_LONG = [("[a-z]{10,}", 5)]
#: RE2 has no memory for all states of this.
MANY_STATES = [("[ab]*a[ab]{30}c|[ab]", 256)]


@pytest.mark.parametrize("patterns", [TOO_LONG * 50, TOO_LONG * 5 + MANY_STATES])
async def test_no_pattern_stops_other_requests(patterns: list[tuple[str, int]]) -> None:
    text = "".join(random.Random(1).choices("ab", k=20_000))
    await ensure_others_run(prompt_guard.guard_messages([ChatMessage("user", text)], own(*patterns), GuardMatches()))
    await ensure_others_run(guard_test.run(text, own(*patterns), is_answer=False))


async def test_many_requests_take_turns() -> None:
    with loop_time.measured() as callbacks:
        await asyncio.gather(*(prompt_guard.guard_messages([ChatMessage("user", TEXT * 4)], SCAN, GuardMatches()) for _ in range(60)))
    assert callbacks.longest_turn_seconds < MAX_SECONDS
