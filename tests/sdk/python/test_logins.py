"""A client with a session: its access token is renewed on expiry, once for all concurrent calls, and never needlessly."""

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
from tests.sdk.python.either_client import EitherClient, WithAsyncio, WithThreads, both
from tests.sdk.python.scripted_server import END, Then, events, failed, text
from tests.sdk.python.session_server import SessionServer
from tests.sdk.python.stage import EVENTS, JSON, TERMS, WHOLE, Stage, Try, refusal

SESSION = Session("access", 600, User("u", "ann", "a@b.c", "user", "free"), "session")
TOO_OLD = refusal(401, "not_authenticated")

# --- against a script -----------------------------------------------------------------------------------------------


def sent(stage: Stage) -> list[str]:
    return [one.headers["authorization"].removeprefix("Bearer ") for one in stage.played.opened]


def test_expired_token_is_renewed_and_the_request_is_repeated() -> None:
    stage = Stage(TOO_OLD, Try(pieces=[WHOLE], headers=JSON), Try(pieces=[WHOLE], headers=JSON), login=SessionLogin(SESSION))
    assert stage.infer().text == "hi"
    stage.infer()
    assert sent(stage) == ["access", "access'", "access'"]
    # Both attempts of the first request have its key, so the platform counts one request.
    assert stage.played.keys == ["key-1", "key-1", "key-2"]
    assert stage.played.pauses == []


def test_rejected_new_token_is_not_renewed_again() -> None:
    stage = Stage(TOO_OLD, TOO_OLD, login=SessionLogin(SESSION))
    with pytest.raises(aimesh.NotAuthenticated):
        stage.infer()
    assert stage.played.spent == ["access"]


def test_call_longer_than_the_token_lifetime_renews_it_each_time() -> None:
    first = Try(pieces=[text(1, "a")], headers=EVENTS)
    stage = Stage(TOO_OLD, first, TOO_OLD, Try(pieces=[text(2, "b"), END], headers=EVENTS), login=SessionLogin(SESSION))
    assert stage.stream().text == "ab"
    assert sent(stage) == ["access", "access'", "access'", "access''"]
    assert stage.played.last_event_ids == [None, None, stage.played.last_event_ids[2], stage.played.last_event_ids[2]]


def test_unrepeatable_call_may_renew_the_token() -> None:
    """A refused request has done nothing, so it can be repeated."""
    made = {"api_key": "aip_live_y", "key": {"id": "k", "name": "n", "preview": "p", "created_at": "2026-01-02T03:04:05Z", "budget": None}}
    stage = Stage(TOO_OLD, Try(201, [str(made).replace("'", '"').replace("None", "null").encode()], JSON), login=SessionLogin(SESSION))
    assert stage.run(conversations.whole(calls.create_key("n", {}), stage.context, TERMS)).secret == "aip_live_y"


def test_other_refusals_do_not_renew_the_token() -> None:
    for no in (refusal(403, "not_allowed"), refusal(429, "rate_limited"), refusal(400, "bad_request")):
        stage = Stage(no, login=SessionLogin(SESSION))
        with pytest.raises(aimesh.AimeshError):
            stage.infer()
        assert stage.played.spent == []


def test_wrong_password_does_not_affect_the_session() -> None:
    stage = Stage(TOO_OLD, login=SessionLogin(SESSION), api_key=None)
    with pytest.raises(aimesh.NotAuthenticated):
        stage.run(conversations.whole(calls.login("ann", "wrong"), stage.context, TERMS))
    assert stage.played.spent == []
    assert "authorization" not in stage.played.opened[0].headers


def test_nothing_is_sent_after_the_end_of_a_session() -> None:
    login = SessionLogin(SESSION)
    login.end(aimesh.NotAuthenticated("the session has ended", status=401, request_id="r-7"))
    stage = Stage(login=login)
    for _ in range(2):
        with pytest.raises(aimesh.NotAuthenticated, match="log in again") as ended:
            stage.infer()
        assert isinstance(ended.value, aimesh.SessionEnded)
        assert (ended.value.code, ended.value.status, ended.value.request_id) == ("session_ended", 401, "r-7")


def test_stream_whose_session_ends_keeps_its_text() -> None:
    login = SessionLogin(SESSION)
    stage = Stage(Try(pieces=[text(1, "a")], headers=EVENTS), TOO_OLD, login=login)
    conversation = conversations.streamed(calls.inference("hi", {}, stream=True), stage.context, TERMS)
    stage.played.texts = texts = EndsTheSession(login)
    with pytest.raises(aimesh.AnswerBroken) as broken:
        stage.run(conversation)
    assert isinstance(broken.value.__cause__, aimesh.SessionEnded)
    assert (conversation.text, texts) == ("a", ["a"])


class EndsTheSession(list[str]):
    """Ends the session after the first text."""

    def __init__(self, login: SessionLogin) -> None:
        super().__init__()
        self._login = login

    def append(self, message: str) -> None:
        super().append(message)
        self._login.end(aimesh.NotAuthenticated("the session has ended", status=401))


@pytest.mark.parametrize(("key", "hint"), [("eyJ.a.b", "pass the session"), ("aip_live_x", "")])
def test_bare_token_gets_a_hint_about_sessions(key: str, hint: str) -> None:
    with pytest.raises(aimesh.NotAuthenticated) as refused:
        Stage(TOO_OLD, api_key=key).infer()
    assert hint in refused.value.hint
    assert bool(refused.value.hint) is bool(hint)


def test_key_and_session_are_exclusive(monkeypatch: pytest.MonkeyPatch) -> None:
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
    own_client: aimesh.Client | aimesh.AsyncClient
    client: EitherClient


@contextlib.asynccontextmanager
async def logged_in(kind: str, server: SessionServer) -> AsyncIterator[Logged]:
    if kind == "threads":
        with aimesh.Client(base_url=server.url, session=server.session) as client:
            yield Logged(server, client, WithThreads(client))
    else:
        async with aimesh.AsyncClient(base_url=server.url, session=server.session) as async_client:
            yield Logged(server, async_client, WithAsyncio(async_client))


@both
async def test_concurrent_calls_renew_once(kind: str) -> None:
    with session_server.serving() as server:
        async with logged_in(kind, server) as ann:
            assert (await ann.client.inference("hi")).text == "three small words"
            server.age()
            # The server refuses all before it accepts any. Five, because the default thread pool has at least five threads.
            server.together = threading.Barrier(5)
            for answer in await asyncio.gather(*(ann.client.inference("hi") for _ in range(5))):
                assert answer.text == "three small words"
            assert server.renewals == 1
            assert ann.own_client.session == server.session
            server.together = threading.Barrier(1)
            server.age()
            await ann.client.inference("again")
            assert server.renewals == 2


@both
async def test_late_refusal_uses_the_token_that_was_already_renewed(kind: str) -> None:
    with session_server.serving() as server:
        async with logged_in(kind, server) as ann:
            server.age()
            late = asyncio.ensure_future(ann.client.inference("late"))
            assert await asyncio.to_thread(server.is_late.wait, 30)
            await ann.client.inference("hi")
            server.may_refuse.set()
            assert (await late).text == "three small words"
            assert server.renewals == 1


@both
async def test_ended_session_is_reported_and_renewed_only_once(kind: str) -> None:
    with session_server.serving() as server:
        async with logged_in(kind, server) as ann:
            server.age()
            server.refusal = failed(401, "not_authenticated")
            server.together = threading.Barrier(4)
            outcomes = await asyncio.gather(*(ann.client.inference("hi") for _ in range(4)), return_exceptions=True)
            assert [type(one) for one in outcomes] == [aimesh.SessionEnded] * 4
            before = len(server.received)
            with pytest.raises(aimesh.SessionEnded, match="log in again"):
                await ann.client.read("hi")
            assert server.renewals == 1
            assert len(server.received) == before


@both
async def test_short_outage_does_not_end_the_session(kind: str) -> None:
    with session_server.serving() as server:
        async with logged_in(kind, server) as ann:
            server.age()
            server.refusal = failed(500, "internal")
            with pytest.raises(aimesh.ServerFailed, match=r"it is internal \(do this\)"):
                await ann.client.inference("hi")
            server.refusal = None
            assert (await ann.client.inference("hi")).text == "three small words"


@both
async def test_stream_continues_with_a_new_token(kind: str) -> None:
    replies = [events(text(1, "three"), then=Then.BREAK), events(text(2, " words"), END)]
    with session_server.serving(*replies) as server:
        async with logged_in(kind, server) as ann:
            server.age()
            got = await ann.client.read("hi")
            assert got.texts == ["three", " words"]
            assert server.renewals == 1


@both
async def test_waiting_for_a_renewal_respects_the_timeout(kind: str) -> None:
    with session_server.serving() as server:
        async with logged_in(kind, server) as ann:
            server.age()
            server.may_renew.clear()
            with pytest.raises((aimesh.DeadlineExceeded, aimesh.ConnectionFailed), match=r"no answer|not renewed in time"):
                await ann.client.inference("hi", timeout=0.5)
            # The server did not accept the request, so there is nothing to cancel.
            assert server.withdrawn == []


async def test_canceling_during_a_renewal_leaves_it_to_the_others() -> None:
    with session_server.serving() as server:
        async with logged_in("asyncio", server) as ann:
            server.age()
            server.may_renew.clear()
            leaver = asyncio.ensure_future(ann.client.inference("hi"))
            assert await asyncio.to_thread(server.renewing.wait, 30)
            leaver.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaver
            server.may_renew.set()
            assert (await ann.client.inference("hi")).text == "three small words"
            assert server.renewals == 1


async def test_client_closed_during_a_renewal_leaves_nothing_behind() -> None:
    with session_server.serving() as server:
        async with logged_in("asyncio", server) as ann:
            server.age()
            server.may_renew.clear()
            leaver = asyncio.ensure_future(ann.client.inference("hi"))
            assert await asyncio.to_thread(server.renewing.wait, 30)
            leaver.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaver
        assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()


def test_session_survives_with_its_newest_token() -> None:
    with session_server.serving() as server:
        stale = replace(server.session, access_token="of yesterday")
        server.age()
        with aimesh.Client(base_url=server.url, session=stale) as client:
            client.inference("hi")
            assert client.session is not None
            assert client.session.session_token == "session-2"
