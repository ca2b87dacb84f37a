from services.gateway.scheduling.worker_claims import ClaimsWithoutSlot
from shared.types import ModelName
from tests.services.gateway.fakes import node_id

NODE, MODEL = node_id(1), ModelName("m")


class Claim:
    def __init__(self, *, waits: bool = False) -> None:
        self.has_started = not waits

    def mark_started(self) -> None:
        self.has_started = True


def test_the_call_that_waited_longest_gets_the_slot_of_one_that_ends() -> None:
    claims, running, waiting = ClaimsWithoutSlot(), [Claim(), Claim()], [Claim(waits=True), Claim(waits=True)]
    for claim in waiting:
        claims.add(NODE, MODEL, claim)
    claims.release(node_id(2), MODEL, running[0])
    assert [claim.has_started for claim in waiting] == [False, False]
    claims.release(NODE, MODEL, running[0])
    assert [claim.has_started for claim in waiting] == [True, False]
    claims.release(NODE, MODEL, running[1])
    assert [claim.has_started for claim in waiting] == [True, True]
    claims.release(NODE, MODEL, waiting[0])


def test_a_waiting_call_that_leaves_frees_no_slot() -> None:
    claims, leaving, waiting = ClaimsWithoutSlot(), Claim(waits=True), Claim(waits=True)
    claims.add(NODE, MODEL, leaving)
    claims.add(NODE, MODEL, waiting)
    claims.release(NODE, MODEL, leaving)
    assert not waiting.has_started
    # The call that left doesn't get the slot of another request either.
    claims.release(NODE, MODEL, Claim())
    assert (leaving.has_started, waiting.has_started) == (False, True)


def test_a_waiting_call_that_starts_on_its_own_frees_its_slot_later() -> None:
    claims, early, first, second = ClaimsWithoutSlot(), Claim(waits=True), Claim(waits=True), Claim(waits=True)
    for claim in (early, first, second):
        claims.add(NODE, MODEL, claim)
    early.mark_started()
    claims.release(NODE, MODEL, Claim())
    assert (first.has_started, second.has_started) == (True, False)
    claims.release(NODE, MODEL, first)
    assert second.has_started
