"""Both clients with a scripted server: sockets, interruptions, aborts, and hostile answers."""

import asyncio
import inspect
import json
import signal
import socket
import threading
from dataclasses import replace
from typing import Any

import aimesh
import httpx
import pytest

from tests import stopwatch
from tests.sdk.python import scripted_server
from tests.sdk.python.either_client import KEY, Got, WithAsyncio, WithThreads, both, staged
from tests.sdk.python.scripted_server import COMMENT, END, ID, Reply, Then, event, events, failed, text, whole

# --- answers --------------------------------------------------------------------------------------------------------


@both
async def test_answer_and_stream_share_one_connection(kind: str) -> None:
    async with staged(kind, whole(), events(COMMENT, text(1, "three"), text(2, " words"), END), whole()) as stage:
        answer = await stage.client.inference("hi", model="echo", max_tokens=5, temperature=0.0, seed=1, system="be brief")
        assert (answer.text, answer.model, answer.usage) == ("three small words", "echo", aimesh.Usage(3, 3, 6))
        got = await stage.client.read("hi")
        assert got == Got(["three", " words"], replace(answer, text="three words"))
        await stage.client.inference("hi")
        assert stage.server.connections == 1
        first, second, third = stage.server.received
        assert first.body == {"prompt": "hi", "model": "echo", "max_tokens": 5, "temperature": 0.0, "seed": 1, "system": "be brief"}
        assert second.body == {"prompt": "hi", "stream": True}
        assert (first.headers["authorization"], second.headers["accept"]) == ("Bearer aip_live_x", "text/event-stream")
        assert len({one.headers["idempotency-key"] for one in (first, second, third)}) == 3


@both
async def test_account_calls(kind: str) -> None:
    model = {"data": [{"id": "echo", "only_embeds": False}]}
    usage = {"user_id": "u", "request_count": 1, "tokens_used": 2, "days": []}
    quota = {"user_id": "u", "tier": "free", "limit_per_hour": 1, "used_this_hour": 1, "remaining": 0, "resets_in_seconds": 1.5}
    vectors = {"data": [{"embedding": "AACAPw==", "index": 0}], "model": "m", "usage": {"prompt_tokens": 1}}
    user = {"id": "u", "username": "ann", "email": "a@b.c", "role": "user", "tier": "free"}
    replies = [Reply([json.dumps(one).encode()]) for one in (model, usage, quota, vectors)]
    replies += [Reply([json.dumps(user).encode()], status=201)]
    replies += [Reply([json.dumps({"access_token": "t", "expires_in": 600, "session_token": "s", "user": user}).encode()])]
    async with staged(kind, *replies) as stage:
        assert await stage.client.do("models") == (aimesh.Model("echo", False),)
        assert (await stage.client.do("usage")).tokens_used == 2
        assert (await stage.client.do("quota")).resets_in_seconds == 1.5
        assert (await stage.client.do("embed", "one")).vectors == ((1.0,),)
        assert (await stage.client.do("register", "ann", "a@b.c", "pw")).username == "ann"
        assert (await stage.client.do("login", "ann", "pw")).access_token == "t"
        assert [(one.verb, one.path) for one in stage.server.received] == [
            ("GET", "/v1/models"), ("GET", "/api/usage"), ("GET", "/api/quota"), ("POST", "/v1/embeddings"),
            ("POST", "/api/auth/register"), ("POST", "/api/auth/login"),
        ]  # fmt: skip


@both
async def test_create_a_key(kind: str) -> None:
    key = {"id": "k", "name": "laptop", "preview": "aip_…", "created_at": "2026-01-02T03:04:05Z", "budget": None}
    with scripted_server.serving(Reply([json.dumps({"api_key": "aip_live_y", "key": key}).encode()], status=201)) as server:
        if kind == "threads":
            with aimesh.Client("token", server.url) as client:
                made = client.keys.create("laptop", requests_per_hour=10)
        else:
            async with aimesh.AsyncClient("token", server.url) as async_client:
                made = await async_client.keys.create("laptop", requests_per_hour=10)
        assert (made.secret, made.key.name, made.key.budget) == ("aip_live_y", "laptop", None)
        assert server.received[0].body == {"name": "laptop", "requests_per_hour": 10}


# --- retries --------------------------------------------------------------------------------------------------------


@both
async def test_dropped_and_refused_requests_are_retried_with_the_same_key(kind: str) -> None:
    async with staged(kind, Reply(head=b"", then=Then.BREAK), failed(503, "overloaded", retry_after_ms="20"), whole()) as stage:
        assert (await stage.client.inference("hi")).text == "three small words"
        assert len(stage.server.received) == 3
        assert len({one.headers["idempotency-key"] for one in stage.server.received}) == 1


@both
async def test_answer_interrupted_in_its_middle_is_read_again(kind: str) -> None:
    content = whole().parts[0]
    cut = Reply([content[:20]], then=Then.BREAK)
    short = Reply([content[:20]], head=b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n", then=Then.BREAK)
    async with staged(kind, cut, short, whole()) as stage:
        assert (await stage.client.inference("hi")).text == "three small words"


@both
async def test_interrupted_stream_continues_without_gap_or_repetition(kind: str) -> None:
    replies = [
        events(then=Then.BREAK),
        events(text(1, "three"), text(2, " sm")[:-1], then=Then.BREAK),
        events(text(2, " small"), then=Then.BREAK),
        events(text(3, " words"), END),
    ]
    async with staged(kind, *replies) as stage:
        got = await stage.client.read("hi")
        assert got.texts == ["three", " small", " words"]
        assert got.answer is not None
        assert got.answer.text == "three small words"
        assert [one.headers.get("last-event-id") for one in stage.server.received] == [None, None, f"{ID}-1", f"{ID}-2"]
        assert len({one.headers["idempotency-key"] for one in stage.server.received}) == 1
        assert not stage.server.withdrawn


@both
async def test_thoughts_come_apart_from_the_text(kind: str) -> None:
    thoughts = [f"id: {ID}-{number}\n".encode() + event({"text": "", "reasoning": said}) for number, said in ((1, "Let me"), (2, " see."))]
    async with staged(kind, events(thoughts[0], then=Then.BREAK), events(thoughts[1], text(3, "42"), END)) as stage:
        pieces, answer = await stage.client.pieces("hi")
    assert [(piece.reasoning, piece.text) for piece in pieces] == [("Let me", ""), (" see.", ""), ("", "42")]
    assert (answer.reasoning, answer.text) == ("Let me see.", "42")


@both
async def test_connection_refused(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(aimesh.ConnectionFailed, match="is http://127") as failure:
        if kind == "threads":
            with aimesh.Client(KEY, url) as client:
                await WithThreads(client).inference("hi")
        else:
            async with aimesh.AsyncClient(KEY, url) as async_client:
                await WithAsyncio(async_client).inference("hi")
    assert not failure.value.may_have_arrived


class _ResettingTransport(httpx.AsyncBaseTransport):
    """What anyio does under uvloop with a connection that was reset as soon as it was open."""

    def __init__(self, missing: str) -> None:
        self.missing = missing

    async def handle_async_request(self, _request: httpx.Request) -> httpx.Response:
        getattr(None, self.missing)
        raise AssertionError


async def test_a_connection_reset_at_once_is_a_failed_connection() -> None:
    http = httpx.AsyncClient(transport=_ResettingTransport("getpeername"))
    async with http, aimesh.AsyncClient(KEY, "http://127.0.0.1:9", http=http) as client:
        with pytest.raises(aimesh.ConnectionFailed, match="reset as soon as it was open") as failure:
            await client.inference("hi")
    assert not failure.value.may_have_arrived
    mistaken = httpx.AsyncClient(transport=_ResettingTransport("spelled"))
    async with mistaken, aimesh.AsyncClient(KEY, "http://127.0.0.1:9", http=mistaken) as client:
        with pytest.raises(AttributeError, match="spelled"):
            await client.inference("hi")


@both
async def test_errors_are_those_of_the_gateway(kind: str) -> None:
    async with staged(kind, failed(401, "not_authenticated"), failed(429, "rate_limited", retry_after="3000")) as stage:
        with pytest.raises(aimesh.NotAuthenticated) as bad_key:
            await stage.client.inference("hi")
        assert (bad_key.value.code, bad_key.value.hint, bad_key.value.request_id) == ("not_authenticated", "do this", "r-1")
        with pytest.raises(aimesh.RateLimited) as limited:
            await stage.client.inference("hi")
        assert limited.value.retry_after == 3000
        assert len(stage.server.received) == 2


# --- leaving early --------------------------------------------------------------------------------------------------


@both
async def test_leaving_a_stream_closes_its_connection_and_cancels(kind: str) -> None:
    async with staged(kind, events(text(1, "three"), then=Then.HANG)) as stage:
        assert await stage.client.read("hi", most=1) == Got(["three"], None)
        assert await asyncio.to_thread(stage.server.left.wait, 30)
        assert stage.server.withdrawn == [stage.server.received[0].headers["idempotency-key"]]


@both
async def test_without_a_key_leaving_only_closes_the_connection(kind: str) -> None:
    async with staged(kind, events(text(1, "three"), then=Then.HANG)) as stage:
        await stage.client.read("hi", most=1, resume=False)
        assert await asyncio.to_thread(stage.server.left.wait, 30)
        assert "idempotency-key" not in stage.server.received[0].headers
        assert not stage.server.withdrawn


@both
async def test_lost_gateway_does_not_delay_leaving(kind: str) -> None:
    async with staged(kind, events(text(1, "three"), then=Then.HANG)) as stage:
        if kind == "threads":
            with aimesh.Client(KEY, stage.server.url) as client, client.stream("hi") as stream:
                assert next(stream) == "three"
                stage.server.stop()
        else:
            async with aimesh.AsyncClient(KEY, stage.server.url) as async_client, async_client.stream("hi") as async_stream:
                assert await anext(async_stream) == "three"
                await asyncio.to_thread(stage.server.stop)


@both
async def test_timeout_ends_a_call(kind: str) -> None:
    async with staged(kind, Reply(then=Then.HANG)) as stage:
        with pytest.raises(aimesh.DeadlineExceeded, match=r"no answer within 1 s"):
            await stage.client.inference("hi", timeout=1.0)
        assert await asyncio.to_thread(stage.server.left.wait, 30)
        assert len(stage.server.withdrawn) == 1


@both
@pytest.mark.parametrize("part", [COMMENT, text(1, "again")], ids=["comments", "what was said already"])
async def test_endless_stream_is_ended_by_its_timeout(kind: str, part: bytes) -> None:
    async with staged(kind, events(part, then=Then.ENDLESS)) as stage:
        with pytest.raises(aimesh.DeadlineExceeded, match="no answer within"):
            await stage.client.read("hi", timeout=1.0)
        assert await asyncio.to_thread(stage.server.left.wait, 30)


@both
async def test_timeout_covers_the_whole_stream(kind: str) -> None:
    async with staged(kind, events(text(1, "a"), then=Then.HANG)) as stage:
        with stopwatch.within(1.7), pytest.raises(aimesh.DeadlineExceeded, match="no answer within"):
            await stage.client.read("hi", timeout=1.0, dawdle=17)


@both
async def test_complete_answer_does_not_wait_for_the_connection_to_close(kind: str) -> None:
    async with staged(kind, events(text(1, "three"), END, then=Then.HANG)) as stage:
        got = await stage.client.read("hi")
        assert got.answer is not None
        assert got.texts == ["three"]
        assert not stage.server.withdrawn


async def test_canceled_task_cancels_the_request() -> None:
    async with staged("asyncio", Reply(then=Then.HANG)) as stage:
        task = asyncio.ensure_future(stage.client.inference("hi"))
        assert await asyncio.to_thread(stage.server.hanging.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(stage.server.left.wait, 30)
        assert len(stage.server.withdrawn) == 1


async def test_failed_stream_is_closed_without_a_with_block() -> None:
    with scripted_server.serving(events(text(1, "a"), then=Then.HANG)) as server:
        async with aimesh.AsyncClient(KEY, server.url) as client:
            stream = client.stream("hi", timeout=1.0)
            with pytest.raises(aimesh.DeadlineExceeded, match="no answer within"):
                _ = [piece async for piece in stream]
            assert stream.text == "a"
            assert len(server.withdrawn) == 1


def test_ctrl_c_cancels_the_request() -> None:
    main = threading.get_ident()

    def press(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, press)
    with scripted_server.serving(events(text(1, "a"), then=Then.HANG)) as server, aimesh.Client(KEY, server.url) as client:

        def press_when_it_hangs() -> None:
            if server.hanging.wait(30):
                signal.pthread_kill(main, signal.SIGUSR1)

        presser = threading.Thread(target=press_when_it_hangs)
        presser.start()
        stream = client.stream("hi")
        try:
            with pytest.raises(KeyboardInterrupt):
                list(stream)
        finally:
            presser.join()
            signal.signal(signal.SIGUSR1, before)
        assert stream.text in {"", "a"}
        assert server.left.wait(30)
        assert len(server.withdrawn) == 1
        assert list(stream) == []


def test_closed_stream_is_finished_and_can_be_closed_again() -> None:
    with scripted_server.serving(events(text(1, "a"), then=Then.HANG)) as server, aimesh.Client(KEY, server.url) as client:
        stream = client.stream("hi")
        assert next(stream) == "a"
        stream.close()
        stream.close()
        assert list(stream) == []
        with pytest.raises(RuntimeError, match="not complete yet"):
            _ = stream.answer
        assert client.stream("never read").close() is None  # type: ignore[func-returns-value]
        assert [one.verb for one in server.received] == ["POST", "DELETE"]


# --- both clients alike ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"), [(aimesh.Client, aimesh.AsyncClient), (aimesh.Keys, aimesh.AsyncKeys), (aimesh.Stream, aimesh.AsyncStream)]
)
def test_both_clients_accept_the_same_arguments(one: type, other: type) -> None:
    def public(kind: type) -> dict[str, list[str]]:
        methods = {name: value for name, value in vars(kind).items() if inspect.isfunction(value) and not name.startswith("_")}
        return {name: [str(each) for each in inspect.signature(value).parameters.values()] for name, value in methods.items()}

    assert public(one) == public(other)
    assert len(public(one)) >= 1


@pytest.mark.parametrize("kind", [aimesh.Client, aimesh.AsyncClient])
def test_invalid_arguments_are_reported_immediately(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"base_url": "nowhere"}, {"api_key": "two words"}, {"max_retries": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            kind(**wrong)
    monkeypatch.setenv("AIMESH_API_KEY", "aip_live_hidden")
    monkeypatch.setenv("AIMESH_BASE_URL", "http://mesh.example:3000/v1")
    assert "http://mesh.example:3000" in repr(kind())
    assert "hidden" not in repr(kind())


def test_environment_proxy_is_not_used_for_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with scripted_server.serving(whole()) as server, aimesh.Client(KEY, server.url) as client:
        assert client.inference("hi").text == "three small words"
