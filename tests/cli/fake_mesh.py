"""A fake mesh that gives a test's answers, with the interface of the real one."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic

import msgspec
from click.testing import CliRunner, Result

from cli import main
from cli.cli_context import CliContext
from cli.connection import CliConnection
from cli.profile import Profile
from shared import errors
from shared.api import gateway
from shared.api.gateway import HttpPart, HttpRequest
from shared.api.method import End, Item, Method, Nothing, Reply, Request, StreamMethod
from shared.types import Credential, NodeId, Role

#: The node that gives every answer.
NODE = NodeId("UFAKE")


@dataclass(frozen=True, slots=True)
class MeshCall:
    method: str
    request: msgspec.Struct
    credential: Credential | None


class FakeAnswer(Generic[Item, End]):
    def __init__(self, items: AsyncIterator[Item], end: End) -> None:
        self.node = NODE
        self._items = items
        self._end = end

    def __aiter__(self) -> AsyncIterator[Item]:
        return self._items

    @property
    def end(self) -> End:
        return self._end


@dataclass(slots=True)
class FakeMesh:
    """Fails unknown methods, as a mesh without that service does."""

    calls: list[MeshCall] = field(default_factory=list)
    #: Streams that the client left before their end, which cancels the calls.
    left_early: list[str] = field(default_factory=list)
    alive_nodes: dict[Role, list[NodeId]] = field(default_factory=dict)
    _answers: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    _streams: dict[str, tuple[Callable[[Any], AsyncIterator[Any]], Any]] = field(default_factory=dict)

    def answer(self, method: Method[Request, Reply], answer: Reply | Callable[[Request], Reply] | errors.AimeshError) -> None:
        """Answer ``method`` with this value or the function's result, or raise this error."""

        def reply(request: Request) -> Reply:
            if isinstance(answer, errors.AimeshError):
                raise answer
            return answer(request) if callable(answer) else answer

        self._answers[method.name] = reply

    def stream_answer(
        self, method: StreamMethod[Request, Item, End], items: list[Item], end: End, then: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Answer with these items, wait for ``then``, which may raise, and end."""

        async def run(_request: Request) -> AsyncIterator[Item]:
            for item in items:
                yield item
            if then is not None:
                await then()

        self.stream_script(method, run, end)

    def stream_script(self, method: StreamMethod[Request, Item, End], run: Callable[[Request], AsyncIterator[Item]], end: End) -> None:
        """Answer each request with what ``run`` yields for it."""
        self._streams[method.name] = (run, end)

    @asynccontextmanager
    async def open(self, profile: Profile) -> AsyncIterator[CliConnection]:
        yield FakeConnection(self, profile)


class FakeConnection:
    def __init__(self, mesh: FakeMesh, profile: Profile) -> None:
        self._mesh = mesh
        self._profile = profile

    async def call(
        self,
        method: Method[Request, Reply],
        request: Request,
        *,
        to: NodeId | None = None,
        deadline_seconds: float = 10,
        credential: Credential | None = None,
    ) -> Reply:
        self._mesh.calls.append(MeshCall(method.name, request, credential or self._profile.api_key))
        if method.name not in self._mesh._answers:
            raise errors.NotReachable(f"no {method.served_by} answers", hint="make up")
        reply = self._mesh._answers[method.name](request)
        assert isinstance(reply, method.reply)
        return reply

    def http(self, request: HttpRequest, key: Credential | None = None) -> AbstractAsyncContextManager[FakeAnswer[HttpPart, Nothing]]:
        return FakeConnection(self._mesh, replace(self._profile, api_key=key or self._profile.api_key)).stream(gateway.serve_http, request)

    @asynccontextmanager
    async def stream(
        self, method: StreamMethod[Request, Item, End], request: Request, *, deadline_seconds: float = 300
    ) -> AsyncIterator[FakeAnswer[Item, End]]:
        self._mesh.calls.append(MeshCall(method.name, request, self._profile.api_key))
        items, end = self._mesh._streams[method.name]
        try:
            yield FakeAnswer(items(request), end)
        except BaseException:
            self._mesh.left_early.append(method.name)
            raise

    def alive(self, role: Role) -> list[NodeId]:
        return self._mesh.alive_nodes.get(role, [])


@dataclass(slots=True)
class Shell:
    """The surroundings of typed commands: a folder with a profile, an environment and a mesh."""

    folder: Path
    mesh: FakeMesh
    environment: dict[str, str]

    def __call__(self, *arguments: str, stdin: str | bytes = "") -> Result:
        here = CliContext(self.environment, self.folder, self.mesh.open)
        return CliRunner().invoke(main.aicli, list(arguments), obj=here, input=stdin)
