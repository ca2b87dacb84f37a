"""A gateway stops a candidate based on its own requests."""

import random
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from services.gateway.facts.model_routes import OpenRollout
from services.gateway.facts.request_record import RequestRow, RouteUse
from services.gateway.rollouts.rollout_brake import RolloutBrake
from shared.api.configuration import RolloutPlan
from shared.types import ModelName, RequestId, RequestStatus, UserId

ROLLOUT = UUID(int=1)


class Watched:
    """A gateway with one open rollout."""

    def __init__(self) -> None:
        self.open = {"assistant": OpenRollout(ROLLOUT, RolloutPlan("next", "local"), 1)}
        self.stopped: list[tuple[UUID, str, str]] = []
        self.brake = RolloutBrake(lambda: self.open, lambda *what: self.stopped.append(what))
        self.count = 0

    def end(
        self, target: str = "next", *, failed: bool | None = True, user: int | None = None, unit: int | None = None, **route: Any
    ) -> None:
        self.count += 1
        given: dict[str, Any] = {"route": "assistant", "version": 1, "variant": target, "target": target, "is_compared": True} | route
        row = RequestRow(
            id=RequestId(uuid4()),
            user_id=UserId(UUID(int=self.count if user is None else user)),
            api_key_id=None,
            prompt_hash=None,
            model_used=ModelName("m"),
            response_time_ms=10,
            prompt_tokens=1,
            completion_tokens=1,
            status=RequestStatus.ERROR if failed else RequestStatus.SUCCESS,
            error_code=None,
            created_at=datetime.now(UTC),
            route=RouteUse(**given),
            variant_failed=failed,
        )
        self.brake.record_end(row, b"%d" % (self.count if unit is None else unit))

    @property
    def reasons(self) -> list[str]:
        return [reason for _, _, reason in self.stopped]


def test_ten_failures_in_a_row_stop_it() -> None:
    found = Watched()
    for _ in range(9):
        found.end()
    found.end(failed=None)
    assert found.stopped == []
    found.end()
    assert found.stopped == [(ROLLOUT, "assistant", "next: the last 10 answers failed at one gateway")]


def test_a_good_answer_ends_the_row() -> None:
    found = Watched()
    for number in range(19):
        found.end(failed=number != 9)
    assert found.stopped == []


def test_one_caller_with_one_conversation_stops_nothing() -> None:
    for users, units, stops in ((1, 1, False), (2, 2, False), (1, 3, True), (3, 1, True)):
        found = Watched()
        for number in range(25):
            found.end(user=number % users, unit=number % units)
        assert bool(found.stopped) is stops, (users, units)


def test_a_baseline_that_fails_as_often_stops_nothing() -> None:
    found = Watched()
    for number in range(40):
        found.end("local", failed=number % 4 != 0)
        found.end()
    assert found.stopped == []


def test_the_evidence_of_one_gateway_must_be_stronger() -> None:
    rng = random.Random(3)
    found, outcomes = Watched(), 0
    while not found.stopped and outcomes < 1_000:
        for _ in range(4):
            found.end("local", failed=rng.random() < 0.01)
        found.end(failed=rng.random() < 0.2)
        outcomes += 1
    assert 30 <= outcomes <= 100
    assert "answers failed, local: " in found.reasons[0]
    assert found.reasons[0].endswith(" by chance, at one gateway")


def test_what_is_not_compared_or_of_another_route_is_not_judged() -> None:
    found = Watched()
    for _ in range(20):
        found.end(is_compared=False)
        found.end(route="other")
        found.end(variant="third", target="third")
    assert found.stopped == []


def test_a_new_rollout_begins_anew_and_old_ones_are_forgotten() -> None:
    found = Watched()
    for _ in range(9):
        found.end()
    found.open = {"assistant": OpenRollout(UUID(int=2), RolloutPlan("next", "local"), 1)}
    for _ in range(9):
        found.end()
    assert found.stopped == []
    for number in range(100):
        found.open = {"assistant": OpenRollout(UUID(int=100 + number), RolloutPlan("next", "local"), 1)}
        found.end()
    assert len(found.brake._watched) == 1


def test_a_candidate_without_requests_keeps_no_memory() -> None:
    found = Watched()
    for _ in range(3_000):
        found.end("local", failed=False)
    assert len(found.brake._watched[ROLLOUT].outcomes) < 1_000
