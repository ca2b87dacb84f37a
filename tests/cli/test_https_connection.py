"""The connection over HTTPS to servers on loopback: valid ones, and ones that break, lie or aren't aimesh."""

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cli import https_connection, profile
from cli.profile import Profile
from shared import errors
from shared.api import auth, gateway
from shared.api.gateway import InferenceRequest, ProcessInferenceRequest
from shared.types import Credential, NodeId, Role
from tests.cases import case
from tests.shared.transports.nats.test_tls import make_certificate
from tests.testnet import free_port

KEY = Credential("aip_live_x")
KEYS = b'{"keys":[]}'
INFER = ProcessInferenceRequest(InferenceRequest(prompt="hi"))
END = b'event: end\ndata: {"requestId":"00000000-0000-0000-0000-000000000007","model":"echo","finishReason":"stop",'
END += b'"usage":{"promptTokens":1,"completionTokens":1},"responseTimeMs":5,"firstTokenMs":1}\n\n'


def answer(body: bytes, status: str = "200 OK", *headers: str, media_type: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-type: {media_type}", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def stream(*parts: bytes, cut: bool = False) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + (b"" if cut else b"0\r\n\r\n")


def refusal(code: str, status: str, *headers: str) -> bytes:
    error = {"message": "what", "type": "t", "code": code, "param": None, "hint": "do this", "request_id": "r"}
    return answer(json.dumps({"error": error}).encode(), status, *headers)


@dataclass
class ScriptedServer:
    """Gives one prepared answer per request, then closes the connection; None closes it at once, "hang" keeps it open."""

    answers: list[bytes | str | None]
    requests: list[str] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    bodies: list[bytes] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(int(line.split(":")[1]) for line in head.lower().split("\r\n") if line.startswith("content-length"))
            self.requests.append(head)
            self.bodies.append(await reader.readexactly(length))
            self.asked.set()
            prepared = self.answers.pop(0)
            if isinstance(prepared, bytes):
                writer.write(prepared)
                await writer.drain()
            elif prepared == "hang":
                await reader.read()
                self.left.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(*answers: bytes | str | None, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[ScriptedServer, str]]:
    scripted = ScriptedServer(list(answers))
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield scripted, f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def at(url: str, **more: object) -> Profile:
    return replace(profile.at_url(url, api_key=KEY), **more)  # type: ignore[arg-type]  # of any field


async def list_keys(url: str, **more: float) -> auth.ApiKeys:
    async with https_connection.open_(at(url)) as connection:
        return await connection.call(auth.list_api_keys, auth.ListApiKeys(), **more)  # type: ignore[arg-type]  # deadline_seconds


async def infer(url: str, seconds: float = 30) -> list[str]:
    async with (
        https_connection.open_(at(url)) as connection,
        connection.stream(gateway.process_inference_request, INFER, deadline_seconds=seconds) as chunks,
    ):
        texts = [chunk.text async for chunk in chunks]
        assert chunks.end.model == "echo"
        assert chunks.node == url.partition("//")[2]
    return texts


# --- calls ----------------------------------------------------------------------------------------------------------------


async def test_a_call_has_the_key_the_node_and_the_deadline() -> None:
    async with serving(answer(KEYS), answer(KEYS)) as (server, url), https_connection.open_(at(url)) as connection:
        assert await connection.call(auth.list_api_keys, auth.ListApiKeys(), to=NodeId("UX"), deadline_seconds=2) == auth.ApiKeys(())
        other = Credential("another")
        await connection.call(auth.list_api_keys, auth.ListApiKeys(), credential=other)
    first, second = server.requests
    line, *headers = first.split("\r\n")
    assert line.startswith("POST /rpc/auth.listApiKeys?to=UX&deadline_ms=")
    assert 1000 <= int(line.split("deadline_ms=")[1].split(" ")[0]) <= 2000
    assert "authorization: Bearer aip_live_x" in [header.replace("Authorization", "authorization") for header in headers]
    assert "Bearer another" in second
    assert server.bodies == [b"{}", b"{}"]


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("not_authenticated", "401 Unauthorized", errors.NotAuthenticated),
        ("confirmation_needed", "403 Forbidden", errors.ConfirmationNeeded),
        ("rate_limited", "429 Too Many Requests", errors.Limited),
        ("invented_in_2031", "400 Bad Request", errors.RemoteError),
    ],
)
async def test_errors_are_raised_as_on_the_mesh(code: str, status: str, kind: type[errors.AimeshError]) -> None:
    async with serving(refusal(code, status, "retry-after-ms: 2500")) as (_, url):
        with pytest.raises(kind) as caught:
            await list_keys(url)
    assert (errors.code_of(caught.value), caught.value.message, caught.value.hint) == (code, "what", "do this")
    assert caught.value.retry_after_seconds == 2.5


async def test_a_lost_connection_is_repeated_only_where_that_is_safe() -> None:
    async with serving(None, answer(KEYS)) as (server, url):
        assert await list_keys(url) == auth.ApiKeys(())
        assert len(server.requests) == 2
    async with serving(None, answer(KEYS)) as (server, url), https_connection.open_(at(url)) as connection:
        with pytest.raises(errors.LinkLost, match=r"broke during auth\.revokeApiKey"):
            await connection.call(auth.revoke_api_key, auth.RevokeApiKey("laptop"))
        assert len(server.requests) == 1
    async with serving(None, None, answer(KEYS)) as (server, url):
        with pytest.raises(errors.LinkLost, match=r"the connection to .* broke during"):
            await list_keys(url)
        assert len(server.requests) == 2


async def test_nothing_listens() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(errors.NotReachable, match=f"cannot connect to {url.partition('//')[2]}: ") as caught:
        await list_keys(url)
    assert caught.value.hint == "check the URL and your network; is the gateway running?"


async def test_a_silent_server_ends_with_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https_connection, "_SLACK_SECONDS", 0.0)
    deadline_seconds = 0.05
    async with serving(*["hang"] * 10) as (server, url):
        # On a busy machine, the deadline may pass before the request is sent.
        while not server.asked.is_set():
            with pytest.raises(errors.DeadlineExceeded, match=r"auth.listApiKeys did not answer in time"):
                await list_keys(url, deadline_seconds=deadline_seconds)
            deadline_seconds *= 2
        async with asyncio.timeout(30):
            await server.left.wait()


async def test_servers_that_are_no_aimesh() -> None:
    page = b"<html><h1>502 Bad Gateway</h1></html>"
    cases: list[tuple[bytes, type[errors.AimeshError], str]] = [
        (answer(page, "502 Bad Gateway", media_type="text/html"), errors.Unavailable, "answered 502 Bad Gateway"),
        (answer(page, "404 Not Found", media_type="text/html"), errors.ProtocolViolation, "404 Not Found, which is not from aimesh"),
        (answer(page, media_type="text/html"), errors.ProtocolViolation, "answered 200 OK, which is not from aimesh"),
        (answer(b'{"keys":3}'), errors.ProtocolViolation, "answered 200 OK, which is not from aimesh"),
        (answer(b"", "301 Moved", "location: https://elsewhere.example/"), errors.ProtocolViolation, "301 Moved Permanently to https://elsewhere.example/"),
    ]  # fmt: skip
    for prepared, kind, message in cases:
        with case(message):
            async with serving(prepared) as (server, url):
                with pytest.raises(kind, match=message) as caught:
                    await list_keys(url)
                assert caught.value.hint
                assert len(server.requests) == 1
            async with serving(prepared) as (_, url):
                with pytest.raises(kind):
                    await infer(url)


async def test_an_endless_answer_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https_connection, "_MAX_BYTES", 1000)
    async with serving(answer(b"x" * 2000)) as (_, url):
        with pytest.raises(errors.ProtocolViolation, match="more than 1000 bytes"):
            await list_keys(url)
    async with serving(stream(b"data: " + b"x" * 2000)) as (_, url):
        with pytest.raises(errors.ProtocolViolation, match="more than 1000 bytes"):
            await infer(url)


# --- streams --------------------------------------------------------------------------------------------------------------


async def test_a_stream_however_it_is_cut_into_pieces() -> None:
    whole = b': still here\n\nid: a-1\ndata: {"text":"one "}\n\ndata: {"text":"two\\n\\n"}\n\n' + END
    for size in (1, 7, len(whole)):
        pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
        async with serving(stream(*pieces)) as (_, url):
            assert await infer(url) == ["one ", "two\n\n"]


async def test_streams_that_do_not_end() -> None:
    first = b'data: {"text":"one "}\n\n'
    failed = b'event: error\ndata: {"error":{"message":"gone","code":"worker_lost","hint":""}}\n\n'
    cases: list[tuple[bytes, type[errors.AimeshError], str]] = [
        (stream(first), errors.LinkLost, "before the end of the answer"),
        (stream(first, cut=True), errors.LinkLost, "broke during gateway.processInferenceRequest"),
        (stream(first, failed), errors.WorkerLost, "gone"),
        (stream(first, b'data: {"text":3}\n\n'), errors.ProtocolViolation, "does not fit the contract"),
        (refusal("unknown_model", "404 Not Found"), errors.UnknownModel, "what"),
    ]
    for prepared, kind, message in cases:
        with case(message):
            async with serving(prepared) as (_, url):
                with pytest.raises(kind, match=message):
                    await infer(url)


async def test_leaving_a_stream_closes_its_connection() -> None:
    async with serving("hang") as (server, url):
        task = asyncio.create_task(infer(url))
        async with asyncio.timeout(30):
            await server.asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await server.left.wait()


async def test_it_shows_no_nodes() -> None:
    async with https_connection.open_(at("https://ai.example.org")) as connection:
        with pytest.raises(errors.BadSettings, match=r"ai\.example\.org does not show the nodes of the mesh"):
            connection.alive(Role.AUTH)


# --- certificates ---------------------------------------------------------------------------------------------------------


def own_tls(folder: Path, address: str) -> ssl.SSLContext:
    make_certificate(folder, address)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


async def test_a_private_certificate_needs_its_ca_file(tmp_path: Path) -> None:
    async with serving(answer(KEYS), tls=own_tls(tmp_path, "127.0.0.1")) as (server, url):
        with pytest.raises(errors.BadSettings, match=r"the certificate of 127.0.0.1:\d+ is not trusted: self-signed") as caught:
            await list_keys(url)
        assert caught.value.hint == "if it has a private CA, use --ca-file FILE with `aicli login`, or set AIMESH_CA_FILE"
        assert server.requests == []
        async with https_connection.open_(at(url, ca_file=tmp_path / "cert.pem")) as connection:
            assert await connection.call(auth.list_api_keys, auth.ListApiKeys()) == auth.ApiKeys(())


async def test_a_certificate_of_another_host_is_refused(tmp_path: Path) -> None:
    async with serving(answer(KEYS), tls=own_tls(tmp_path, "192.0.2.1")) as (server, url):
        async with https_connection.open_(at(url, ca_file=tmp_path / "cert.pem")) as connection:
            with pytest.raises(errors.BadSettings, match="is not trusted: IP address mismatch"):
                await connection.call(auth.list_api_keys, auth.ListApiKeys())
        assert server.requests == []


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_ca_file_that_cannot_be_used(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(errors.BadSettings, match=f"cannot use the CA file {file}"):
        async with https_connection.open_(at("https://ai.example.org", ca_file=file)):
            pass


# --- without a server's packages ------------------------------------------------------------------------------------------

_IMPORTS = """
import sys
sys.argv = ["aicli", "infer", "hi", "--no-resume"]
from cli import main
try:
    main.main()
finally:
    wrong = [name for name in sys.modules if name.startswith(("shared.transports", "shared.node", "rich.", "nats", "prometheus_client"))]
    print("imported:", wrong, file=sys.stderr)
"""


async def test_an_answer_needs_neither_nats_nor_hyperswarm(tmp_path: Path) -> None:
    async with serving(stream(b'data: {"text":"one"}\n\n', END)) as (_, url):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _IMPORTS, cwd=Path(__file__).parents[2], stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={"AIMESH_URL": url, "AIMESH_API_KEY": KEY, "HOME": str(tmp_path), "PATH": ""},
        )  # fmt: skip
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    assert (out.decode(), err.decode().splitlines()[-1:]) == ("one\n", ["imported: []"])
