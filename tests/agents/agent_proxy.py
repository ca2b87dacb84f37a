"""A proxy between an agent and aimesh: records the requests with their answers, and can add random unknown fields to the bodies."""

import json
import random
import string
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.services.web import servers
from tests.services.web.servers import Receive, Scope, Send

#: Objects whose keys are the caller's own, not fields of the API.
_FREE_FORM = {"parameters", "input_schema", "schema", "input", "arguments", "metadata", "client_metadata"}
_HOP_BY_HOP = {b"host", b"content-length", b"transfer-encoding", b"connection", b"accept-encoding"}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answer."""

    method: str
    path: str
    body: Any
    status: int
    #: The fields that aimesh ignored, as its header names them.
    ignored: str
    #: Of an error.
    text: str


@dataclass
class AgentProxy:
    target: str
    #: How many unknown fields each level of a body gets, and their seed.
    fields: int = 0
    seed: int = 0
    url: str = ""
    exchanges: list[Exchange] = field(default_factory=list)

    def statuses(self) -> Counter[tuple[str, int]]:
        """Return how many requests of each path got which status."""
        return Counter((exchange.path, exchange.status) for exchange in self.exchanges)

    def describe(self) -> str:
        return ", ".join(f"{count} × {status} {path}" for (path, status), count in sorted(self.statuses().items()))

    def refused(self) -> list[str]:
        """Return the refused requests to the vendor's API. Programs also ask for other paths of their vendor's servers, such as Claude Code
        for /api/hello: they are no part of that API, and the programs work without them."""
        refused = (each for each in self.exchanges if each.status >= 400 and each.path.startswith("/v1/"))
        return [f"{each.method} {each.path} {each.status}: {each.text}" for each in refused]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        content = b"".join([part async for part in _parts(receive)])
        body = json.loads(content) if content else None
        if self.fields and isinstance(body, dict):
            add_unknown_fields(body, self.fields, random.Random(self.seed))
            content = json.dumps(body).encode()
        query = f"?{scope['query_string'].decode()}" if scope["query_string"] else ""
        headers = [(name, value) for name, value in scope["headers"] if name not in _HOP_BY_HOP]
        async with httpx.AsyncClient(base_url=self.target, trust_env=False, timeout=60) as client:
            request = client.build_request(scope["method"], scope["path"] + query, headers=headers, content=content or None)
            response = await client.send(request, stream=True)
            returned = [pair for pair in response.headers.raw if pair[0].lower() not in _HOP_BY_HOP]
            await send({"type": "http.response.start", "status": response.status_code, "headers": returned})
            text = ""
            async for chunk in response.aiter_raw():
                text += chunk.decode("utf-8", "replace") if response.is_error else ""
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            ignored = response.headers.get("x-aimesh-ignored", "")
            self.exchanges.append(Exchange(scope["method"], scope["path"], body, response.status_code, ignored, text))
            await send({"type": "http.response.body", "body": b""})


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        yield message.get("body", b"")
        more = message.get("more_body", False)


@asynccontextmanager
async def proxying(target: str, *, fields: int = 0, seed: int = 0) -> AsyncIterator[AgentProxy]:
    proxy = AgentProxy(target, fields, seed)
    async with servers.serving(proxy) as proxy.url:
        yield proxy


# --- unknown fields -------------------------------------------------------------------------------------------------------------


def add_unknown_fields(body: MutableMapping[str, Any], count: int, rng: random.Random) -> None:
    """Add ``count`` random fields at each level of a body, spread over its objects there."""
    levels: dict[int, list[MutableMapping[str, Any]]] = defaultdict(list)
    for depth, found in _objects(body, 0):
        levels[depth].append(found)
    for objects in levels.values():
        for _ in range(count):
            rng.choice(objects)[_name(rng)] = _value(rng, 2)


def _objects(value: Any, depth: int) -> Iterator[tuple[int, MutableMapping[str, Any]]]:
    if isinstance(value, dict):
        yield depth, value
        for name, each in value.items():
            if name not in _FREE_FORM or isinstance(each, list):
                yield from _objects(each, depth + 1)
    elif isinstance(value, list):
        for each in value:
            yield from _objects(each, depth + 1)


def _name(rng: random.Random) -> str:
    return "zz" + "".join(rng.choices(string.ascii_lowercase + "_", k=rng.randint(3, 20)))


def _value(rng: random.Random, depth: int) -> Any:
    plain = (None, True, rng.randint(-9, 1 << 53), rng.random(), "text", "")
    made = rng.choice((*plain, [], {})) if depth else rng.choice(plain)
    if isinstance(made, list):
        return [_value(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return {_name(rng): _value(rng, depth - 1) for _ in range(rng.randint(0, 3))} if isinstance(made, dict) else made
