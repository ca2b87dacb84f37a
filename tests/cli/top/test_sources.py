"""The calls of `aicli top`, and what it keeps when a source doesn't answer."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.profile import Profile
from cli.top.sources import Sources
from shared import errors
from shared.api import gateway, metrics
from tests.cli.fake_mesh import FakeConnection, FakeMesh
from tests.cli.top import seen


@dataclass(slots=True)
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def mesh() -> FakeMesh:
    found = FakeMesh()
    seen.fill(found)
    return found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sources(mesh: FakeMesh, clock: Clock) -> Sources:
    return Sources(FakeConnection(mesh, Profile(node_key_file=Path("none"))), clock)


async def test_last_answer_is_kept_while_its_source_is_down(sources: Sources, mesh: FakeMesh, clock: Clock) -> None:
    before = await sources.look()
    mesh.answer(gateway.list_nodes, errors.NotReachable("no gateway answers"))
    clock.now = 7.0
    away = await sources.look()
    assert away.nodes.answer == before.nodes.answer
    assert away.nodes.at == 0.0
    assert isinstance(away.nodes.problem, errors.NotReachable)
    assert (away.health.at, away.health.problem) == (7.0, None)
    mesh.answer(gateway.list_nodes, gateway.NodeRows(()))
    back = (await sources.look()).nodes
    assert (back.answer, back.at, back.problem) == (gateway.NodeRows(()), 7.0, None)


async def test_history_is_requested_only_as_often_as_it_changes(sources: Sources, mesh: FakeMesh, clock: Clock) -> None:
    def count_queries() -> int:
        return sum(one.method == metrics.get_history.name for one in mesh.calls)

    await sources.look()
    of_one_look = count_queries()
    clock.now = 4.9
    await sources.look()
    assert count_queries() == of_one_look
    clock.now = 5.0
    await sources.look()
    assert count_queries() == 2 * of_one_look


async def test_refusal_ends_the_command(sources: Sources, mesh: FakeMesh) -> None:
    mesh.answer(metrics.get_history, errors.NotAuthenticated("this key was revoked"))
    with pytest.raises(errors.NotAuthenticated, match="this key was revoked"):
        await sources.look()
