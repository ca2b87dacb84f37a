"""A connection breaks in the middle of `aicli infer`: the user at the terminal gets the whole answer, and pays for it once."""

import asyncio
import signal

from tests.people import Person
from tests.stacks import RunningStack, until

#: Six seconds of echo.
WORDS = " ".join(f"w{number}" for number in range(300))
NOTE = "Connection lost. Resuming …\n"
#: Time to detect a silent link, to restart the gateway, and to generate the delivered part of the answer again.
WHOLE_WITHIN_SECONDS = 60


async def _rest(asked: asyncio.subprocess.Process) -> tuple[bytes, str]:
    """Return the rest of stdout and all of stderr."""
    async with asyncio.timeout(WHOLE_WITHIN_SECONDS):
        out, told = await asked.communicate()
    assert asked.returncode == 0, told.decode()
    return out, told.decode()


async def _rows(stack: RunningStack, person: Person) -> list[tuple[str, bool]]:
    """Return how this person's requests ended, and whether they cost anything."""
    async with stack.database("gateway") as database:
        found = await database.fetch("SELECT status, cost_micro > 0 AS paid FROM request_logs WHERE user_id = $1", person.id)
    return [tuple(row) for row in found]


async def test_infer_goes_on_when_the_gateway_was_killed_and_is_back(stack: RunningStack, ann: Person) -> None:
    asked = await stack.start_aicli("infer", "-m", "echo", WORDS, AICLI_API_KEY=ann.key.secret)
    assert asked.stdout is not None
    heard = await asked.stdout.readexactly(60)
    old = await stack.kill("gateway")
    rest, told = await _rest(asked)
    assert ((heard + rest).decode(), told) == (f"{WORDS}\n", NOTE)
    await stack.restarted("gateway", old)
    assert await until(lambda: _rows(stack, ann), what="it is written") == [("success", True)]


async def test_infer_goes_on_when_its_machine_was_asleep(stack: RunningStack, ann: Person) -> None:
    asked = await stack.start_aicli("infer", "-m", "echo", WORDS, AICLI_API_KEY=ann.key.secret)
    assert asked.stdout is not None
    heard = await asked.stdout.readexactly(60)
    asked.send_signal(signal.SIGSTOP)
    try:
        # The answer is finished without a reader, after far longer than a link may be silent.
        rows = await until(lambda: _rows(stack, ann), seconds=30, what="it is written")
    finally:
        asked.send_signal(signal.SIGCONT)
    rest, told = await _rest(asked)
    assert ((heard + rest).decode(), told) == (f"{WORDS}\n", NOTE)
    assert rows == await _rows(stack, ann) == [("success", True)]
