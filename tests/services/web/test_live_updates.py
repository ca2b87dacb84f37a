"""Live streams: how many are allowed, and what they send."""

import asyncio
import json
from typing import Any

import pytest

from services.web import live_updates
from services.web.live_updates import Values
from shared import errors
from shared.timing.concurrency_limit import ConcurrencyLimit
from tests.stopwatch import HANG_SECONDS


async def next_event(stream: Any) -> dict[str, Any]:
    async with asyncio.timeout(HANG_SECONDS):
        chunk = await anext(stream)
    found: dict[str, Any] = json.loads(chunk.removeprefix(b"data: ").strip())
    return found


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_updates, "_EVERY_SECONDS", 0.0)


async def test_only_changes_are_sent(at_once: None) -> None:
    turns: list[Values] = [{"a": 1, "b": [1]}, {"a": 1, "b": [1]}, {"a": 1, "b": [2]}, {"a": 2, "b": [2]}]
    left = list(turns)

    async def read() -> Values:
        return left.pop(0)

    events = live_updates._events(live_updates.follower_limit(), "alice", read)
    assert [await next_event(events) for _ in range(3)] == [{"a": 1, "b": [1]}, {"b": [2]}, {"a": 2}]
    await events.aclose()


async def test_page_is_stale_while_a_service_is_down(at_once: None) -> None:
    turns: list[Values | errors.AimeshError] = [{"a": 1, "connection": ""}, errors.NotReachable("away"), {"a": 1, "connection": ""}]

    async def read() -> Values:
        turn = turns.pop(0)
        if isinstance(turn, errors.AimeshError):
            raise turn
        return turn

    events = live_updates._events(live_updates.follower_limit(), "alice", read)
    assert [await next_event(events) for _ in range(3)] == [{"a": 1, "connection": ""}, {"connection": "stale"}, {"connection": ""}]
    await events.aclose()


@pytest.mark.parametrize("error", [errors.NotAuthenticated("the session is over"), errors.NotAllowed("no administrator any more")])
async def test_stream_ends_when_access_is_lost(at_once: None, error: errors.AimeshError) -> None:
    turns: list[Values | errors.AimeshError] = [{"a": 1}, error]

    async def read() -> Values:
        turn = turns.pop(0)
        if isinstance(turn, errors.AimeshError):
            raise turn
        return turn

    followers = live_updates.follower_limit()
    assert [json.loads(event.removeprefix(b"data: ")) async for event in live_updates._events(followers, "alice", read)] == [{"a": 1}]
    assert len(followers) == 0


async def test_idle_page_gets_keepalives(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_updates, "_SILENT_SECONDS", 0.0)

    async def read() -> Values:
        return {"a": 1}

    events = live_updates._events(live_updates.follower_limit(), "alice", read)
    assert [await next_event(events) for _ in range(2)] == [{"a": 1}, {}]
    await events.aclose()


async def test_stream_ends_after_a_time_and_the_browser_reconnects(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_updates, "_MAX_SECONDS", 0.0)

    async def read() -> Values:
        return {"a": 1}

    followers = live_updates.follower_limit()
    assert [event async for event in live_updates._events(followers, "alice", read)] == []


async def test_live_pages_per_user_are_limited() -> None:
    followers = live_updates.follower_limit()
    async with asyncio.TaskGroup() as tasks:
        enough = asyncio.Event()
        holding = [tasks.create_task(hold(followers, "alice", enough)) for _ in range(live_updates.MAX_OF_ONE)]
        await asyncio.sleep(0)
        with pytest.raises(errors.Overloaded, match="too many live pages"), followers.one_more("alice", live_updates.refusal()):
            raise AssertionError("one too many")
        # Other users are still admitted.
        with followers.one_more("bob", live_updates.refusal()):
            pass
        enough.set()
        await asyncio.gather(*holding)
    # After closing pages, the user may open others.
    with followers.one_more("alice", live_updates.refusal()):
        pass


async def test_live_pages_in_total_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_updates, "MAX_FOLLOWED", 1)
    followers = live_updates.follower_limit()
    with (
        followers.one_more("alice", live_updates.refusal()),
        pytest.raises(errors.Overloaded),
        followers.one_more("bob", live_updates.refusal()),
    ):
        raise AssertionError("one too many")
    with followers.one_more("bob", live_updates.refusal()):
        pass


async def test_closed_page_is_not_counted(at_once: None) -> None:
    async def read() -> Values:
        return {"a": 1}

    followers = live_updates.follower_limit()
    for _ in range(live_updates.MAX_OF_ONE + 1):
        events = live_updates._events(followers, "alice", read)
        await next_event(events)
        await events.aclose()
    assert len(followers) == 0


async def hold(followers: ConcurrencyLimit, follower: str, enough: asyncio.Event) -> None:
    with followers.one_more(follower, live_updates.refusal()):
        await enough.wait()
