"""`aicli serve`: who may use the port, what reaches the mesh, and what happens while the mesh can't be reached."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from cli.connection import CliConnection
from cli.machines import loopback, serve
from cli.machines.loopback import Loopback, MeshLink
from cli.profile import Profile
from shared import errors, features
from shared.api import gateway
from shared.api.gateway import HttpPart, HttpRequest
from shared.api.method import Nothing
from shared.features import HttpApi
from shared.node.lifecycle import background
from shared.protocol import request_memory, wire
from shared.timing.backoff import Backoff
from shared.types import Credential
from tests.cases import case
from tests.cli.conftest import KEY
from tests.cli.fake_mesh import FakeMesh, Shell
from tests.stopwatch import HANG_SECONDS
from tests.testnet import free_port, until

HEAD = HttpPart(b"", 200, ((b"content-type", b"application/x-ndjson"), (b"x-aimesh-ignored", b"zz"), (b"connection", b"close")))


class Mesh(FakeMesh):
    """Answers with what reached it, or what ``answer_with`` says."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[HttpRequest] = []
        #: As `aicli login` has saved it.
        self.profile = Profile(api_key=KEY)
        self.is_away = False
        self.opened = 0
        #: Ends the connections.
        self.cut = asyncio.Event()
        self.then: Callable[[], AsyncIterator[HttpPart]] | None = None
        self.stream_script(gateway.serve_http, self._answer, Nothing())

    async def _answer(self, request: HttpRequest) -> AsyncIterator[HttpPart]:
        self.requests.append(request)
        yield HEAD
        yield HttpPart(b"one\n")
        if self.then is not None:
            async for part in self.then():
                yield part

    @asynccontextmanager
    async def open(self, profile: Profile) -> AsyncIterator[CliConnection]:
        if self.is_away:
            raise errors.Unavailable("NATS does not answer", hint="start the stack with `make up`")
        self.opened += 1
        async with super().open(profile) as connection, background() as tasks:
            tasks.create_task(self._end())
            yield connection

    async def _end(self) -> None:
        await self.cut.wait()
        raise errors.LinkLost("the mesh is gone")


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


@asynccontextmanager
async def serving(mesh: Mesh, notes: list[str] | None = None) -> AsyncIterator[httpx.AsyncClient]:
    port = free_port()
    link = MeshLink(mesh.open, (lambda: mesh.profile), (notes if notes is not None else []).append)
    async with background() as tasks:
        tasks.create_task(serve._serve(link, serve._listen(port)))
        address, limits = f"http://localhost:{port}", httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=HANG_SECONDS, limits=limits) as http:
            if not mesh.is_away:
                await until(lambda: mesh.opened > 0)
            yield http


async def test_a_request_reaches_the_mesh_without_its_credentials_and_the_answer_comes_back(mesh: Mesh) -> None:
    headers = {"authorization": "Bearer ollama", "x-api-key": "any", "cookie": "a=b", "x-aimesh-strict": "1", "x-forwarded-for": "10.0.0.1"}
    async with serving(mesh) as http:
        answer = await http.post("/v1/chat/completions?a=b%20c", json={"model": "m"}, headers=headers)
    assert (answer.status_code, answer.content, answer.headers["x-aimesh-ignored"]) == (200, b"one\n", "zz")
    assert answer.headers["content-type"] == "application/x-ndjson"
    [request] = mesh.requests
    assert (request.verb, request.path, request.query) == ("POST", "/v1/chat/completions", b"a=b%20c")
    assert json.loads(request.body) == {"model": "m"}
    reached = dict(request.headers)
    assert reached[b"x-aimesh-strict"] == b"1"
    assert reached[b"host"].startswith(b"localhost:")
    assert not reached.keys() & {b"authorization", b"x-api-key", b"cookie", b"x-forwarded-for", b"content-length"}
    assert [call.credential for call in mesh.calls] == [KEY]


ONLY_V1 = "OpenAI's API is below /v1"
APIS = {
    "none": (
        (),
        {"/v1/models": "/v1/models", "/v1/models/a/b": "/v1/models/a/b"},
        ("/", "/api/chat", "/acme/"),
        "OpenAI's API is below /v1",
    ),
    "at its own path": (
        (HttpApi(prefix="/acme/", vendor="Acme"),),
        {"/acme/a": "/acme/a"},
        ("/", "/api/chat"),
        "OpenAI's API is below /v1",
    ),
    "at the root": (
        (HttpApi(prefix="/acme/", vendor="Acme", is_at_root=True),),
        {"/api/chat": "/acme/api/chat", "/": "/acme/", "/v1/models": "/v1/models", "/acme/api/chat": "/acme/api/chat"},
        (),
        f"{ONLY_V1}, and Acme's below /api",
    ),
}


@pytest.mark.parametrize("name", APIS)
def test_the_api_of_a_feature_may_be_at_the_root(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    apis, served, others, hint = APIS[name]
    monkeypatch.setattr(features, "http_apis", lambda: list(apis))
    monkeypatch.setattr(gateway, "HTTP_PREFIXES", ("/v1/", *(api.prefix for api in apis)))
    for path, expected in served.items():
        assert loopback.target(path) == expected
    for path in (*others, "/rpc/auth.getUser", "/metrics", "/v1", "/login", "/api", ""):
        with case(path), pytest.raises(errors.NotFound, match="there is no") as refused:
            loopback.target(path)
        assert refused.value.hint == hint


async def test_only_this_machine_may_use_it(mesh: Mesh) -> None:
    """A page of another host must not reach the port, not even if its name leads here (DNS rebinding)."""
    async with serving(mesh) as http:
        for host in ("localhost", "LOCALHOST:11434", "127.0.0.1:1", "[::1]:11434", "127.9.9.9"):
            with case(host):
                assert (await http.get("/v1/models", headers={"host": host})).status_code == 200
        for host in ("evil.example", "localhost.evil.example:11434", "127.0.0.1.evil.example", "192.168.1.20:11434", "a@b", "[", ""):
            with case(host):
                assert (await http.get("/v1/models", headers={"host": host})).status_code == 403
        mesh.requests.clear()
        for origin in (
            "https://evil.example",
            "null",
            "http://localhost.evil.example",
            "file://",
            "http://[",
            "chrome-extension://localhosts",
        ):
            with case(origin):
                answer = await http.post("/v1/chat/completions", content=b"{}", headers={"origin": origin, "content-type": "text/plain"})
                assert answer.status_code == 403
                assert "access-control-allow-origin" not in answer.headers
        assert mesh.requests == []


async def test_pages_of_this_machine_may_use_it(mesh: Mesh) -> None:
    page = {"origin": "http://localhost:5173"}
    async with serving(mesh) as http:
        wanted = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
        allowed = await http.options("/v1/chat/completions", headers={**page, **wanted})
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, page["origin"])
        assert allowed.headers["access-control-allow-headers"] == "content-type"
        assert mesh.requests == []
        answer = await http.post("/v1/chat/completions", json={}, headers=page)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, page["origin"])
    assert b"origin" not in dict(mesh.requests[0].headers)


async def test_parts_arrive_as_they_come_and_a_client_that_leaves_cancels_the_call(mesh: Mesh) -> None:
    async def hang() -> AsyncIterator[HttpPart]:
        await asyncio.Event().wait()
        yield HEAD

    mesh.then = hang
    async with serving(mesh) as http:
        async with http.stream("POST", "/v1/chat/completions", json={}) as answer:
            assert await anext(answer.aiter_lines()) == "one"
            assert mesh.left_early == []
        await until(lambda: mesh.left_early == ["gateway.serveHttp"])


async def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(mesh: Mesh) -> None:
    async def fail() -> AsyncIterator[HttpPart]:
        raise errors.LinkLost("the gateway is gone")
        yield HEAD

    mesh.then = fail
    async with serving(mesh) as http:
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            await http.post("/v1/chat/completions", json={})


async def test_a_mesh_that_is_away_is_503_and_comes_back(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loopback, "_RETRY", Backoff(0.02, 0.02))
    mesh.is_away, notes = True, list[str]()
    async with serving(mesh, notes) as http:
        await until(lambda: bool(notes))
        refused = await http.post("/v1/chat/completions", json={})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        expected = {"message": "NATS does not answer – start the stack with `make up`", "type": "api_error", "code": "unavailable"}
        assert refused.json()["error"] == expected | {"param": None}
        assert (await http.get("/metrics")).json()["error"].startswith("there is no '/metrics' here"), "others than OpenAI's get a text"
        mesh.is_away = False
        await until(lambda: mesh.opened == 1)
        assert (await http.get("/v1/models")).status_code == 200
        mesh.is_away = True
        mesh.cut.set()
        await until(lambda: notes[1:] == ["the mesh is gone; trying again"])
        assert (await http.get("/v1/models")).status_code == 503
        mesh.is_away = False
        mesh.cut.clear()
        await until(lambda: mesh.opened == 2)
        assert (await http.get("/v1/models")).status_code == 200


async def test_a_new_login_is_used_without_a_restart(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loopback, "_PROFILE_SECONDS", 0.0)

    async def hang() -> AsyncIterator[HttpPart]:
        await more.wait()
        yield HttpPart(b"two\n")

    more, new_key = asyncio.Event(), Credential(f"{KEY}2")
    mesh.then = hang
    async with serving(mesh) as http:
        async with http.stream("POST", "/v1/chat/completions", json={}) as answer:
            lines = answer.aiter_lines()
            assert await anext(lines) == "one"
            mesh.profile, mesh.then = Profile(api_key=new_key), None
            assert (await http.get("/v1/models")).status_code == 200
            # An answer of the old key goes to its end.
            more.set()
            assert await anext(lines) == "two"
        assert ([call.credential for call in mesh.calls], mesh.opened) == ([KEY, new_key], 1)
        mesh.profile = Profile(api_key=new_key, url="https://other.example")
        assert (await http.get("/v1/models")).status_code == 200
        assert mesh.opened == 2


@pytest.mark.parametrize("way", ["mesh", "https"])
async def test_a_refused_key_is_one_sentence_in_the_program_and_one_in_the_terminal(mesh: Mesh, way: str) -> None:
    async def refuse(_request: HttpRequest) -> AsyncIterator[HttpPart]:
        if mesh.profile.api_key != KEY:
            yield HEAD
        elif way == "https":
            yield HttpPart(b"{}", 401)
        else:
            raise errors.NotAuthenticated("the mesh refuses the key of this profile", hint="create a new one on the dashboard")

    mesh.stream_script(gateway.serve_http, refuse, Nothing())
    notes = list[str]()
    async with serving(mesh, notes) as http:
        refused = [await http.post("/v1/chat/completions", json={}) for _ in range(2)]
        sentence = "the mesh refuses the key of this profile – run `aicli login`; the new key is used at once"
        assert [answer.status_code for answer in refused] == [401, 401]
        assert [answer.json()["error"]["message"] for answer in refused] == [sentence, sentence]
        assert notes == [sentence.replace(" –", ";")]
        mesh.profile = Profile(api_key=Credential(f"{KEY}2"))
        assert (await http.get("/v1/models")).status_code == 200


async def test_a_request_waits_for_the_first_connection(mesh: Mesh) -> None:
    """A program may start together with `aicli serve`."""
    link = MeshLink(mesh.open, lambda: mesh.profile, print)
    transport = httpx.ASGITransport(Loopback(link))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http, background() as tasks:
        asking = tasks.create_task(http.get("/v1/models"))
        await asyncio.sleep(0)
        tasks.create_task(link.run())
        assert (await asking).status_code == 200


async def test_what_only_the_user_can_mend_ends_it(mesh: Mesh) -> None:
    @asynccontextmanager
    async def connect(_profile: Profile) -> AsyncIterator[CliConnection]:
        raise errors.NodeRevoked("an administrator revoked this node")
        yield

    with pytest.raises(errors.NodeRevoked, match="an administrator revoked"):
        await MeshLink(connect, lambda: Profile(api_key=KEY), print).run()


async def test_a_body_that_is_too_long_is_cut_and_its_memory_released(mesh: Mesh) -> None:
    link = MeshLink(mesh.open, lambda: mesh.profile, print)
    app = Loopback(link)
    async with background() as tasks, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        tasks.create_task(link.run())
        await until(lambda: mesh.opened > 0)
        answer = await http.post("/v1/chat/completions", content=b"x" * (wire.MAX_REQUEST_BYTES + 2 * 2**20))
    assert answer.status_code == 200
    # The connection sends its size instead, and the gateway refuses it.
    assert len(mesh.requests[0].body) > wire.MAX_REQUEST_BYTES
    assert app._memory.held_bytes == 0


async def test_two_hundred_programs_at_once(mesh: Mesh) -> None:
    """No answer ends before all have begun."""
    count, end = 200, asyncio.Event()

    async def wait() -> AsyncIterator[HttpPart]:
        await end.wait()
        yield HttpPart(b"two\n")

    mesh.then = wait
    async with serving(mesh) as http, asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(http.post("/v1/chat/completions", json={})) for _ in range(count)]
        await until(lambda: len(mesh.requests) == count, seconds=HANG_SECONDS)
        end.set()
        assert {(await answer).content for answer in answers} == {b"one\ntwo\n"}


async def test_bodies_of_many_programs_have_bounded_memory(mesh: Mesh) -> None:
    """Each announces the longest body and sends nothing: those that don't fit are asked to come back."""
    app, sent, end = Loopback(MeshLink(mesh.open, lambda: mesh.profile, print)), list[Any](), asyncio.Event()

    async def receive() -> dict[str, Any]:
        await end.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-length", b"%d" % wire.MAX_REQUEST_BYTES)]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"", "headers": headers}
    room, count = request_memory.MAX_HELD_BYTES // wire.MAX_REQUEST_BYTES, 200
    async with asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(app(scope, receive, send))
        await until(lambda: len(sent) == 2 * (count - room))
        assert app._memory.held_bytes == room * wire.MAX_REQUEST_BYTES
        assert {message["status"] for message in sent[::2]} == {503}
        end.set()
    assert app._memory.held_bytes == 0


async def test_programs_that_look_for_an_ollama_see_whose_port_it_is(mesh: Mesh) -> None:
    async with serving(mesh) as http:
        assert (await http.get("/api/version")).headers.get_list("server") == ["aimesh"]


async def test_both_loopback_addresses_are_served(mesh: Mesh) -> None:
    """`localhost` may be ::1 first."""
    async with serving(mesh) as http:
        for host in ("127.0.0.1", *(("[::1]",) if socket.has_dualstack_ipv6() else ())):
            with case(host):
                assert (await http.get(f"http://{host}:{http.base_url.port}/v1/models")).status_code == 200


def test_a_port_that_is_taken(shell: Shell) -> None:
    port = free_port()
    taken = serve._listen(port)
    try:
        refused = shell("serve", "--port", str(port))
    finally:
        for each in taken:
            each.close()
    assert refused.exit_code == 2
    assert f"port {port} is taken by " in refused.stderr
    assert "OLLAMA_HOST" in refused.stderr


def test_beside_ollama_it_takes_the_next_port(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        found, sockets = serve._listen_on(range(port, port + 50))
    for each in sockets:
        each.close()
    assert found > port
    said = capsys.readouterr().err
    assert f"Port {port} is taken by " in said
    assert f"OLLAMA_HOST=127.0.0.1:{found}" in said


def test_over_https_it_needs_no_package_of_the_mesh() -> None:
    """As where install.sh has installed aicli."""
    blocked = "nacl", "nkeys", "prometheus_client", "psutil", "structlog", "uvloop"
    modules = "cli.https_connection, cli.machines.loopback, cli.machines.serve, uvicorn.protocols.http.h11_impl"
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import {modules}"
    done = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
