"""A provider on loopback that gives any answer that a test wants, and counts the requests by path."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.services.auth.oidc import keys
from tests.services.auth.oidc.keys import Key

CLIENT_ID = "mesh"
CLIENT_SECRET = "a client's secret: with a colon & more"
ACCESS_TOKEN = "an access token"

SIGNING_KEY = keys.make("ES256")


@dataclass(frozen=True)
class FromNow:
    """A time in a token, in seconds from when the token is made. Pytest creates parameters at collection, and the test may run minutes
    later."""

    seconds: float


@dataclass
class Reply:
    body: bytes | str | dict[str, Any]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    #: Repeat the body forever, with this pause in between.
    repeat_every_seconds: float | None = None

    @property
    def content(self) -> bytes:
        if isinstance(self.body, dict):
            return json.dumps(self.body).encode()
        return self.body.encode() if isinstance(self.body, str) else self.body


@dataclass
class ScriptedProvider:
    issuer: str = ""
    key: Key = SIGNING_KEY
    #: Changes to the discovery document. None leaves a member out.
    metadata: dict[str, Any] = field(default_factory=dict)
    #: Path -> what to answer instead of the usual.
    replies: dict[str, Reply] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    #: The form of the last token request.
    form: dict[str, str] = field(default_factory=dict)
    authorization: str = ""
    #: Changes to the usual claims of each ID token. None leaves a claim out.
    claims: dict[str, Any] = field(default_factory=dict)
    #: Replaces the token that is made from the claims.
    id_token: str | None = None
    published: list[dict[str, Any]] | None = None
    userinfo: dict[str, Any] | None = None
    nonce: str = ""
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self.serve(reader, writer))
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)

    def document(self) -> dict[str, Any]:
        usual = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "userinfo_endpoint": None if self.userinfo is None else f"{self.issuer}/userinfo",
            "end_session_endpoint": f"{self.issuer}/logout",
            "response_types_supported": ["code", "id_token"],
            "id_token_signing_alg_values_supported": ["RS256", "ES256"],
        }
        return _without_none({**usual, **self.metadata})

    def usual_claims(self) -> dict[str, Any]:
        now = int(time.time())
        return {
            "iss": self.issuer,
            "sub": "ann-1",
            "aud": CLIENT_ID,
            "exp": now + 300,
            "iat": now,
            "nonce": self.nonce,
            "email": "ann@example.com",
            "email_verified": True,
            "preferred_username": "ann",
            "groups": ["staff"],
        }

    def tokens(self) -> dict[str, Any]:
        now = time.time()
        changed = {name: now + value.seconds if isinstance(value, FromNow) else value for name, value in self.claims.items()}
        token = self.id_token or self.key.sign(_without_none({**self.usual_claims(), **changed}))
        return {"id_token": token, "access_token": ACCESS_TOKEN, "token_type": "Bearer", "expires_in": 600}

    def reply(self, path: str) -> Reply:
        usual: dict[str, Any] = {
            "/.well-known/openid-configuration": self.document,
            "/keys": lambda: {"keys": [self.key.jwk()] if self.published is None else self.published},
            "/token": self.tokens,
            "/userinfo": lambda: self.userinfo,
        }
        if path in self.replies:
            return self.replies[path]
        return Reply(usual[path]()) if path in usual else Reply("there is nothing", 404)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while head := await reader.readuntil(b"\r\n\r\n"):
                    await self._answer(head.decode(), reader, writer)
        finally:
            writer.close()

    async def _answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request, *lines = head.strip().split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path = urlsplit(request.split(" ")[1]).path
        self.asked[path] += 1
        if path == "/token":
            self.form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            self.authorization = headers.get("authorization", "")
        reply = self.reply(path)
        ends = reply.repeat_every_seconds is None
        sent = {"Content-Type": "application/json", **({"Content-Length": str(len(reply.content))} if ends else {}), **reply.headers}
        writer.write(f"HTTP/1.1 {reply.status} X\r\n".encode() + "".join(f"{name}: {value}\r\n" for name, value in sent.items()).encode())
        writer.write(b"\r\n" + reply.content)
        await writer.drain()
        while not ends:
            await asyncio.sleep(reply.repeat_every_seconds or 0)
            writer.write(reply.content)
            await writer.drain()


def _without_none(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


@contextlib.asynccontextmanager
async def scripted_provider() -> AsyncIterator[ScriptedProvider]:
    provider = ScriptedProvider()
    server = await asyncio.start_server(provider.accept, "127.0.0.1", 0)
    provider.issuer = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield provider
    finally:
        server.close()
        for task in provider.serving:
            task.cancel()
        await asyncio.gather(*provider.serving, return_exceptions=True)
