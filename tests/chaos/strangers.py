"""Callers about which no service remembers anything: keys that are new to every gateway, and a new `aicli` for every request.

They show what the steady load cannot: whether an unknown caller gets "not now" (503) or, wrongly, "no" (401).
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from tests.people import ApiClient, Key, Person
from tests.stacks import RunningStack

EVERY_SECONDS = 0.1
#: Enough for the longest outage of a test.
KEYS = 60


@dataclass(slots=True)
class Answers:
    """The responses that they got."""

    statuses: list[int] = field(default_factory=list)
    #: Exit status and stderr of each `aicli infer`.
    commands: list[tuple[int, str]] = field(default_factory=list)


@asynccontextmanager
async def asking(stack: RunningStack, api_client: ApiClient, person: Person) -> AsyncIterator[Answers]:
    """Send such requests while the block runs."""
    keys = await asyncio.gather(*(api_client.make_key(person, f"fresh {number}") for number in range(KEYS)))
    answers = Answers()
    async with asyncio.TaskGroup() as tasks:
        callers = [tasks.create_task(_ask_with_new_keys(stack, keys, answers)), tasks.create_task(_run_aicli(stack, person, answers))]
        yield answers
        for task in callers:
            task.cancel()


async def _ask_with_new_keys(stack: RunningStack, keys: list[Key], answers: Answers) -> None:
    began = time.monotonic()
    async with stack.http() as http:
        for number, key in enumerate(keys):
            await asyncio.sleep(max(0.0, began + number * EVERY_SECONDS - time.monotonic()))
            try:
                answer = await http.get("/v1/models", headers={"authorization": f"Bearer {key.secret}"})
            except httpx.TransportError:
                continue  # the gateway itself was killed
            answers.statuses.append(answer.status_code)


async def _run_aicli(stack: RunningStack, person: Person, answers: Answers) -> None:
    while True:
        done = await stack.aicli("infer", "-m", "echo", "hi", AICLI_API_KEY=person.key.secret)
        answers.commands.append((done.status, done.err))
