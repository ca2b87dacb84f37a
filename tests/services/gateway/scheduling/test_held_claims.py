from services.gateway.scheduling.worker_capacity import HeldClaims
from shared.types import ModelName
from tests.services.gateway.fakes import node_id

NODE, MODEL = node_id(1), ModelName("m")


class Claim:
    def __init__(self, *, held: bool = False) -> None:
        self.has_started = not held

    def mark_started(self) -> None:
        self.has_started = True


def test_the_call_held_longest_gets_the_slot_of_one_that_ends() -> None:
    held, running, waiting = HeldClaims(), [Claim(), Claim()], [Claim(held=True), Claim(held=True)]
    for claim in waiting:
        held.hold(NODE, MODEL, claim)
    held.release(node_id(2), MODEL, running[0])
    assert [claim.has_started for claim in waiting] == [False, False]
    held.release(NODE, MODEL, running[0])
    assert [claim.has_started for claim in waiting] == [True, False]
    held.release(NODE, MODEL, running[1])
    assert [claim.has_started for claim in waiting] == [True, True]
    held.release(NODE, MODEL, waiting[0])


def test_a_held_call_that_leaves_frees_no_slot() -> None:
    held, leaving, waiting = HeldClaims(), Claim(held=True), Claim(held=True)
    held.hold(NODE, MODEL, leaving)
    held.hold(NODE, MODEL, waiting)
    held.release(NODE, MODEL, leaving)
    assert not waiting.has_started
    # It doesn't get the slot of another request either.
    held.release(NODE, MODEL, Claim())
    assert (leaving.has_started, waiting.has_started) == (False, True)


def test_a_held_call_that_starts_on_its_own_frees_its_slot_later() -> None:
    held, early, first, second = HeldClaims(), Claim(held=True), Claim(held=True), Claim(held=True)
    for claim in (early, first, second):
        held.hold(NODE, MODEL, claim)
    early.mark_started()
    held.release(NODE, MODEL, Claim())
    assert (first.has_started, second.has_started) == (True, False)
    held.release(NODE, MODEL, first)
    assert second.has_started
