"""kill -9 of the supervisor: Linux stops its children, and `aicli stack up` makes everything whole again."""

import os
import signal
import time

from cli.stack import control
from tests.chaos import judging, load
from tests.chaos.oracle import CONNECTION_LOST, Door, Fault
from tests.people import Person
from tests.stacks import PROGRAMS, RunningStack

#: Everything goes away in its own time, so a request may meet any of these.
CODES = frozenset({"link_lost", "not_reachable", "draining", "unavailable", CONNECTION_LOST})


async def test_stack_up_repairs_after_the_supervisor_was_killed(stack: RunningStack, ann: Person) -> None:
    answer = await control.ask(stack.place.control_socket, control.Status())
    assert answer is not None
    before = await stack.pids()
    async with load.running(stack, ann) as history:
        await history.until_each_door_succeeds(3)
        killed_at = time.monotonic()
        os.kill(answer.pid, signal.SIGKILL)
        await stack.up()
        up_at = time.monotonic()
        await history.until_each_door_succeeds(3, since=up_at)
    print(f"CHAOS supervisor: `stack up` took {up_at - killed_at:.2f} s: {history.outcomes()}")
    after = await stack.programs()
    assert after.keys() == set(PROGRAMS)
    assert all(row.ready for row in after.values())
    assert not [name for name, pid in before.items() if pid is not None and _runs(pid)], "the old ones are gone"
    fault = Fault(began=killed_at, over=up_at, doors=frozenset(Door), codes=CODES, loses_rows=True)
    await judging.judge(stack, ann, history, fault)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
