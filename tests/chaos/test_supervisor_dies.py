"""kill -9 of the supervisor: Linux stops its children, and `aicli stack up` repairs everything."""

import os
import signal
import time

import pytest

from stack import control
from tests.chaos import judging, load
from tests.chaos.oracle import CONNECTION_LOST, Door, Fault
from tests.people import Person
from tests.stacks import PROGRAMS, RunningStack

#: Programs stop and come back at different times, so a request may get any of these. The gateway reports that its ledger is
#: unavailable if PostgreSQL stops before the gateway or comes back after it.
CODES = frozenset({"link_lost", "not_reachable", "draining", "unavailable", "ledger_unavailable", CONNECTION_LOST})
#: How long a client waits for one answer. The old processes have 10 s to end, and the new ones all start at once.
PATIENCE_SECONDS = 60.0


@pytest.mark.timeout(900)
async def test_stack_up_repairs_after_the_supervisor_was_killed(stack: RunningStack, ann: Person) -> None:
    answer = await control.send(stack.place.control_socket, control.StatusRequest())
    assert answer is not None
    before = await stack.pids()
    async with load.running(stack, ann, deadline_seconds=PATIENCE_SECONDS) as history:
        await history.until_each_door_succeeds(3, seconds=PATIENCE_SECONDS)
        killed_at = time.monotonic()
        os.kill(answer.pid, signal.SIGKILL)
        await stack.up()
        up_at = time.monotonic()
        await history.until_each_door_succeeds(3, since=up_at, seconds=PATIENCE_SECONDS)
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
