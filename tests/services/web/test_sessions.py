import pytest

from services.web import sessions
from shared import errors
from tests.clocks import Clock
from tests.services.web.fake_mesh import FakeMesh


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def remembered(mesh: FakeMesh, clock: Clock) -> sessions.WebSessions:
    return sessions.WebSessions(mesh, clock)


async def test_session_is_cached_for_five_seconds(mesh: FakeMesh, clock: Clock, remembered: sessions.WebSessions) -> None:
    token = mesh.add_session(mesh.add_account("alice", "correct horse"))
    for clock.now in (0.0, 4.9, 5.0):
        session = await remembered.find(token)
        assert session is not None
        assert session.user.username == "alice"
    assert mesh.called_methods() == ["auth.resumeSession"] * 2


async def test_forgotten_session_is_looked_up_again(mesh: FakeMesh, remembered: sessions.WebSessions) -> None:
    token = mesh.add_session(mesh.add_account("alice", "correct horse"))
    await remembered.find(token)
    remembered.forget(token)
    del mesh.sessions[token]
    assert await remembered.find(token) is None


@pytest.mark.parametrize("token", [None, "", "short", "x" * 513, "with a space in it", "semicolon;in;the;token", "é" * 20])
async def test_invalid_token_causes_no_call(mesh: FakeMesh, remembered: sessions.WebSessions, token: str | None) -> None:
    assert await remembered.find(token) is None
    assert mesh.calls == []


async def test_unavailable_auth_differs_from_a_missing_session(mesh: FakeMesh, remembered: sessions.WebSessions) -> None:
    token = mesh.add_session(mesh.add_account("alice", "correct horse"))
    mesh.broken["auth"] = errors.NotReachable("no auth node is alive")
    with pytest.raises(errors.NotReachable):
        await remembered.find(token)


async def test_cache_is_bounded_and_drops_the_oldest(
    mesh: FakeMesh, remembered: sessions.WebSessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "REMEMBERED_SESSIONS", 2)
    alice = mesh.add_account("alice", "correct horse")
    first, second, third = (mesh.add_session(alice) for _ in range(3))
    for token in (first, second, third):
        await remembered.find(token)
    mesh.calls.clear()
    await remembered.find(third)
    await remembered.find(second)
    assert mesh.calls == []
    await remembered.find(first)
    assert mesh.called_methods() == ["auth.resumeSession"]
