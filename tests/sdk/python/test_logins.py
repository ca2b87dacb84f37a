"""A client that was given a session: its access token is renewed when it is too old, once for all who wait, and never in vain."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import aimesh
import pytest
from aimesh import calls, conversations
from aimesh.answers import Session, User
from aimesh.logins import SessionLogin

from tests.sdk.python import session_server
from tests.sdk.python.either_client import Asker, WithAsyncio, WithThreads, both
from tests.sdk.python.scripted_server import END, Then, events, failed, text
from tests.sdk.python.session_server import SessionServer
from tests.sdk.python.stage import EVENTS, JSON, TERMS, WHOLE, Stage, Try, refusal

SESSION = Session("access", 600, User("u", "ann", "a@b.c", "user", "free"), "session")
TOO_OLD = refusal(401, "not_authenticated")

# --- played against a script ----------------------------------------------------------------------------------------


def sent(stage: Stage) -> list[str]:
    return [one.headers["authorization"].removeprefix("Bearer ") for one in stage.played.opened]


def test_a_token_that_is_too_old_is_renewed_and_the_request_goes_again_at_once() -> None:
    stage = Stage(TOO_OLD, Try(pieces=[WHOLE], headers=JSON), Try(pieces=[WHOLE], headers=JSON), login=SessionLogin(SESSION))
    assert stage.ask().text == "hi"
    stage.ask()
    assert sent(stage) == ["access", "access'", "access'"]
    # The platform has seen one request.
    assert stage.played.keys == ["key-1", "key-1", "key-2"]
    assert stage.played.pauses == []


def test_a_new_token_that_is_refused_is_not_renewed_again() -> None:
    stage = Stage(TOO_OLD, TOO_OLD, login=SessionLogin(SESSION))
    with pytest.raises(aimesh.NotAuthenticated):
        stage.ask()
    assert stage.played.spent == ["access"]


def test_a_call_that_takes_longer_than_a_token_is_good_for_renews_it_each_time() -> None:
    first = Try(pieces=[text(1, "a")], headers=EVENTS)
    stage = Stage(TOO_OLD, first, TOO_OLD, Try(pieces=[text(2, "b"), END], headers=EVENTS), login=SessionLogin(SESSION))
    assert stage.stream().text == "ab"
    assert sent(stage) == ["access", "access'", "access'", "access''"]
    assert stage.played.last_event_ids == [None, None, stage.played.last_event_ids[2], stage.played.last_event_ids[2]]


def test_what_may_not_be_sent_twice_may_be_renewed_for() -> None:
    """A request that was not let in has done nothing."""
    made = {"api_key": "aip_live_y", "key": {"id": "k", "name": "n", "preview": "p", "created_at": "2026-01-02T03:04:05Z", "budget": None}}
    stage = Stage(TOO_OLD, Try(201, [str(made).replace("'", '"').replace("None", "null").encode()], JSON), login=SessionLogin(SESSION))
    assert stage.run(conversations.whole(calls.create_key("n", {}), stage.context, TERMS)).secret == "aip_live_y"


def test_another_refusal_renews_nothing() -> None:
    for no in (refusal(403, "not_allowed"), refusal(429, "rate_limited"), refusal(400, "bad_request")):
        stage = Stage(no, login=SessionLogin(SESSION))
        with pytest.raises(aimesh.AimeshError):
            stage.ask()
        assert stage.played.spent == []


def test_a_wrong_password_is_none_of_the_sessions_business() -> None:
    stage = Stage(TOO_OLD, login=SessionLogin(SESSION), api_key=None)
    with pytest.raises(aimesh.NotAuthenticated):
        stage.run(conversations.whole(calls.login("ann", "wrong"), stage.context, TERMS))
    assert stage.played.spent == []
    assert "authorization" not in stage.played.opened[0].headers


def test_after_the_end_of_a_session_nothing_is_sent() -> None:
    login = SessionLogin(SESSION)
    login.end(aimesh.NotAuthenticated("the session has ended", status=401, request_id="r-7"))
    stage = Stage(login=login)
    for _ in range(2):
        with pytest.raises(aimesh.NotAuthenticated, match="log in again") as ended:
            stage.ask()
        assert isinstance(ended.value, aimesh.SessionEnded)
        assert (ended.value.code, ended.value.status, ended.value.request_id) == ("session_ended", 401, "r-7")


def test_a_stream_whose_session_ends_in_its_middle_keeps_what_came() -> None:
    login = SessionLogin(SESSION)
    stage = Stage(Try(pieces=[text(1, "a")], headers=EVENTS), TOO_OLD, login=login)
    conversation = conversations.streamed(calls.inference("hi", {}, stream=True), stage.context, TERMS)
    stage.played.said = said = EndsTheSession(login)
    with pytest.raises(aimesh.AnswerBroken) as broken:
        stage.run(conversation)
    assert isinstance(broken.value.__cause__, aimesh.SessionEnded)
    assert (conversation.text, said) == ("a", ["a"])


class EndsTheSession(list[str]):
    """As soon as something is said."""

    def __init__(self, login: SessionLogin) -> None:
        super().__init__()
        self._login = login

    def append(self, said: str) -> None:
        super().append(said)
        self._login.end(aimesh.NotAuthenticated("the session has ended", status=401))


@pytest.mark.parametrize(("key", "hint"), [("eyJ.a.b", "pass the session"), ("aip_live_x", "")])
def test_a_token_alone_is_told_of_the_session(key: str, hint: str) -> None:
    with pytest.raises(aimesh.NotAuthenticated) as refused:
        Stage(TOO_OLD, api_key=key).ask()
    assert hint in refused.value.hint
    assert bool(refused.value.hint) is bool(hint)


def test_a_key_or_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="not both"):
        aimesh.Client("aip_live_x", session=SESSION)
    monkeypatch.setenv("AIMESH_API_KEY", "aip_live_of_somebody")
    with aimesh.Client(session=SESSION) as client:
        assert client.session == SESSION
        assert client._context.api_key is None
    assert "session'" not in repr(SESSION) + repr(client)


# --- over sockets ---------------------------------------------------------------------------------------------------


@dataclass
class Logged:
    server: SessionServer
    client: aimesh.Client | aimesh.AsyncClient
    ask: Asker


@contextlib.asynccontextmanager
async def logged_in(kind: str, server: SessionServer) -> AsyncIterator[Logged]:
    if kind == "threads":
        with aimesh.Client(base_url=server.url, session=server.session) as client:
            yield Logged(server, client, WithThreads(client))
    else:
        async with aimesh.AsyncClient(base_url=server.url, session=server.session) as async_client:
            yield Logged(server, async_client, WithAsyncio(async_client))


@both
async def test_of_all_calls_at_once_one_renews(kind: str) -> None:
    with session_server.serving() as server:
        async with logged_in(kind, server) as ann:
            assert (await ann.ask.inference("hi")).text == "three small words"
            server.age()
            # All are refused before one is let in again. As many as threads that there are for sure.
            server.together = threading.Barrier(5)
            for answer in await asyncio.gather(*(ann.ask.inference("hi") for _ in range(5))):
                assert answer.text == "three small words"
            assert server.renewals == 1
            assert ann.client.session == server.session
            server.together = threading.Barrier(1)
            server.age()
            await ann.ask.inference("again")
            assert server.renewals == 2


@both
async def test_who_hears_late_that_the_token_was_too_old_takes_the_one_that_is_there(kind: str) -> None:
    with session_server.serving() as server:
        async with logged_in(kind, server) as ann:
            server.age()
            late = asyncio.ensure_future(ann.ask.inference("late"))
            assert await asyncio.to_thread(server.is_late.wait, 5)
            await ann.ask.inference("hi")
            server.may_refuse.set()
            assert (await late).text == "three small words"
            assert server.renewals == 1


@both
async def test_a_session_that_has_ended_says_so_and_is_asked_for_once(kind: str) -> None:
    with session_server.serving() as server:
        async with logged_in(kind, server) as ann:
            server.age()
            server.refusal = failed(401, "not_authenticated")
            server.together = threading.Barrier(4)
            outcomes = await asyncio.gather(*(ann.ask.inference("hi") for _ in range(4)), return_exceptions=True)
            assert [type(one) for one in outcomes] == [aimesh.SessionEnded] * 4
            before = len(server.asked)
            with pytest.raises(aimesh.SessionEnded, match="log in again"):
                await ann.ask.read("hi")
            assert server.renewals == 1
            assert len(server.asked) == before


@both
async def test_a_platform_that_is_away_for_a_moment_ends_no_session(kind: str) -> None:
    with session_server.serving() as server:
        async with logged_in(kind, server) as ann:
            server.age()
            server.refusal = failed(500, "internal")
            with pytest.raises(aimesh.ServerFailed, match=r"it is internal \(do this\)"):
                await ann.ask.inference("hi")
            server.refusal = None
            assert (await ann.ask.inference("hi")).text == "three small words"


@both
async def test_a_stream_goes_on_with_another_token(kind: str) -> None:
    replies = [events(text(1, "three"), then=Then.BREAK), events(text(2, " words"), END)]
    with session_server.serving(*replies) as server:
        async with logged_in(kind, server) as ann:
            server.age()
            got = await ann.ask.read("hi")
            assert got.texts == ["three", " words"]
            assert server.renewals == 1


@both
async def test_who_waits_for_another_token_waits_no_longer_than_they_said(kind: str) -> None:
    with session_server.serving() as server:
        async with logged_in(kind, server) as ann:
            server.age()
            server.may_renew.clear()
            with pytest.raises((aimesh.DeadlineExceeded, aimesh.ConnectionFailed), match=r"no answer|not renewed in time"):
                await ann.ask.inference("hi", timeout=0.5)
            # It was not let in: there is nothing to withdraw.
            assert server.withdrawn == []


async def test_who_leaves_while_the_token_is_renewed_takes_it_from_nobody() -> None:
    with session_server.serving() as server:
        async with logged_in("asyncio", server) as ann:
            server.age()
            server.may_renew.clear()
            leaver = asyncio.ensure_future(ann.ask.inference("hi"))
            assert await asyncio.to_thread(server.renewing.wait, 5)
            leaver.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaver
            server.may_renew.set()
            assert (await ann.ask.inference("hi")).text == "three small words"
            assert server.renewals == 1


async def test_a_client_that_is_closed_while_it_renews_leaves_nothing_behind() -> None:
    with session_server.serving() as server:
        async with logged_in("asyncio", server) as ann:
            server.age()
            server.may_renew.clear()
            leaver = asyncio.ensure_future(ann.ask.inference("hi"))
            assert await asyncio.to_thread(server.renewing.wait, 5)
            leaver.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaver
        assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()


def test_a_session_is_kept_by_its_newest_token() -> None:
    with session_server.serving() as server:
        stale = replace(server.session, access_token="of yesterday")
        server.age()
        with aimesh.Client(base_url=server.url, session=stale) as client:
            client.inference("hi")
            assert client.session is not None
            assert client.session.session_token == "session-2"
