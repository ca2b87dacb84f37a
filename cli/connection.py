"""A command's connection to the mesh: calls as a client node, with the profile's key as the credential.

Commands only use the two Protocols here, so tests can replace the whole mesh.
"""

from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import msgspec

from cli.profile import Profile
from shared.api import gateway
from shared.api.gateway import HttpPart, HttpRequest
from shared.api.method import End, Item, Method, MethodCaller, Reply, Request, StreamAnswer, StreamMethod
from shared.protocol import wire
from shared.types import Credential, NodeId, Role

if TYPE_CHECKING:
    from shared.node import ClientNode

#: The gateway's limit of an HTTP head, which is in one message with the body.
_HEAD_BYTES = 32 * 1024


class CliConnection(MethodCaller, Protocol):
    """A connection to the mesh. Calls have the profile's key by default. All methods raise AimeshError only."""

    def stream(
        self, method: StreamMethod[Request, Item, End], request: Request, *, deadline_seconds: float = 300
    ) -> AbstractAsyncContextManager[StreamAnswer[Item, End]]:
        """Leaving the block early cancels the call on the peer."""
        ...

    def http(self, request: HttpRequest, key: Credential | None = None) -> AbstractAsyncContextManager[AsyncIterable[HttpPart]]:
        """Send a request to the gateway's HTTP API. Leaving the block early cancels it. ``key`` replaces the profile's."""
        ...

    def alive(self, role: Role) -> list[NodeId]:
        """Return the usable nodes of a role that are known so far."""
        ...


#: Opens a connection for a profile.
Connect = Callable[[Profile], AbstractAsyncContextManager[CliConnection]]


class MeshConnection:
    """The connection to a real mesh."""

    def __init__(self, client: "ClientNode", profile: Profile) -> None:
        self._client = client
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
        return await self._client.rpc.call(
            method, request, to=to, deadline_seconds=deadline_seconds, credential=credential or self._profile.api_key
        )

    def stream(
        self, method: StreamMethod[Request, Item, End], request: Request, *, deadline_seconds: float = 300
    ) -> AbstractAsyncContextManager[StreamAnswer[Item, End]]:
        return self._client.rpc.stream(method, request, deadline_seconds=deadline_seconds, credential=self._profile.api_key)

    def http(self, request: HttpRequest, key: Credential | None = None) -> AbstractAsyncContextManager[AsyncIterable[HttpPart]]:
        if len(request.body) > wire.MAX_REQUEST_BYTES - _HEAD_BYTES:
            # The gateway refuses it in the words of the API when it sees the size.
            headers = (*request.headers, (b"content-length", b"%d" % 2**40))
            request = msgspec.structs.replace(request, headers=headers, body=b"")
        seconds, credential = gateway.MAX_REQUEST_SECONDS, key or self._profile.api_key
        return self._client.rpc.stream(gateway.serve_http, request, deadline_seconds=seconds, credential=credential)

    def alive(self, role: Role) -> list[NodeId]:
        return [entry.node for entry in self._client.directory.usable(role)]


@asynccontextmanager
async def open_(profile: Profile) -> AsyncIterator[CliConnection]:
    """Connect over HTTPS if the profile has a URL, else open a client node of its mesh.

    Raises Unavailable if NATS does not answer, BadSettings for an unusable key, and over
    Hyperswarm the errors of a certificate renewal: NodeRevoked, NotReachable, ClockSkew.
    """
    if profile.url is not None:
        from cli import https_connection

        async with https_connection.open_(profile) as connection:
            yield connection
        return
    from shared import errors, node

    settings = node.ClientSettings(
        mesh=profile.mesh,
        nats_url=profile.nats_url,
        node_key_file=profile.node_key,
        mesh_file=profile.mesh_file,
        nats_ca_file=profile.nats_ca_file,
        nats_cert_file=profile.nats_cert_file,
        nats_key_file=profile.nats_key_file,
        nats_creds_file=profile.nats_creds_file,
    )
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(node.client(settings))
        except errors.Unavailable as error:
            if profile.nats_url is None:
                raise
            # The message is written for services, which read NATS_URL. Users have a profile and a stack instead. If a server answered and
            # refused, keep its own reason and hint.
            hint = "start the stack with `make up`; see `aicli doctor` for details" if error.retry_after_seconds is not None else error.hint
            raise errors.Unavailable(error.message, hint=hint, retry_after_seconds=error.retry_after_seconds) from error
        yield MeshConnection(client, profile)
