"""Gives the servers of the configuration to the operator's workers, which try them before they are stored, and serve their models."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

import msgspec

from services.gateway.configuration.live_configuration import Bodies, LiveConfiguration
from services.gateway.facts import tenant_encryption
from shared import errors
from shared.api import servers as api
from shared.api.servers import OpenServer, ServerState
from shared.config_documents import ANY_PROVIDER, ConfigKind, ServerDocument
from shared.identity import certificates
from shared.identity.trust import Trust
from shared.rpc import RpcCall, RpcClient, serves
from shared.types import NodeId, Role, TenantId

#: A worker waits 5 s for a server's models.
_TRY_SECONDS = 8.0
#: A worker asks every 2 s.
_GONE_SECONDS = 10.0
#: Whose secret a key is.
_MESH = TenantId(UUID(int=0))


@dataclass(frozen=True, slots=True)
class Servers:
    """A key is sealed for its server's name and URL, so that it doesn't go elsewhere if someone changes the URL."""

    live: LiveConfiguration
    rpc: RpcClient
    trust: Trust
    #: PROMPT_HASH_SECRET.
    secret: str
    #: The workers that have asked, when they did, and what they said.
    workers: dict[NodeId, tuple[float, tuple[ServerState, ...]]] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic

    async def admit(self, bodies: Bodies) -> tuple[Bodies, list[str]]:
        """Return the bodies with sealed keys, and warnings about the servers among them, which were tried.

        Raises NotAllowed for an address that no worker may reach, BadRequest for what is wrong with a server, and Unavailable without a
        worker."""
        admitted, notes = dict(bodies), list[str]()
        for key, body in bodies.items():
            if isinstance(body, ServerDocument):
                before = self.live.bodies_of(ServerDocument).get(key[1])
                admitted[key] = sealed = self._seal(key[1], body, before)
                if sealed != before:
                    notes.append(await self._try(self._open(key[1], sealed)))
        return admitted, list(filter(None, notes))

    @serves(api.take_servers)
    async def take(self, request: api.TakeServers, call: RpcCall) -> api.TakenServers:
        """Raises NotAllowed and NotCertified unless the worker is the operator's."""
        # What a node announces over NATS is only its word.
        found = certificates.check(request.certificate, self.trust.authorities, time.time())
        if found.node != call.caller.node or found.role is not Role.WORKER or found.owner:
            raise errors.NotAllowed("only the operator's workers get servers", hint="unset REMOTE_MODEL_HOSTS, or ask for another ticket")
        self.workers[found.node] = self.clock(), request.states
        for node in self.workers.keys() - self._alive().keys():
            del self.workers[node]
        revision = max((stored.revision for (kind, _), stored in self.live.documents.items() if kind is ConfigKind.SERVER), default=0)
        if revision == request.revision:
            return api.TakenServers(revision)
        opened = []
        for name, body in self.live.bodies_of(ServerDocument).items():
            # Without its key, no worker serves it; ``list_servers`` says so.
            with suppress(errors.BadRequest):
                opened.append(self._open(name, body))
        return api.TakenServers(revision, tuple(opened))

    @serves(api.list_servers)
    async def list_rows(self, _request: api.ListServers, _call: RpcCall) -> api.ServerRows:
        await self.live.reload()
        return api.ServerRows(tuple(self._row(name, body) for name, body in sorted(self.live.bodies_of(ServerDocument).items())))

    def _row(self, name: str, body: ServerDocument) -> api.ServerRow:
        states = [state for states in self._alive().values() for state in states if state.name == name]
        try:
            self._open(name, body)
            trouble = next((state.trouble for state in states if state.trouble), "" if states else "no worker has taken it yet")
        except errors.BadRequest as error:
            trouble = error.message
        models = dict.fromkeys(model for state in states for model in state.models)
        workers = sum(not state.trouble for state in states)
        return api.ServerRow(name, body.url, body.kind, body.sealed_key is not None, tuple(models), workers, trouble)

    async def _try(self, server: OpenServer) -> str:
        """Return why nobody may use the server yet; empty if nothing is in the way."""
        refusal: errors.AimeshError = errors.Unavailable(
            "no worker takes servers",
            hint="start one with the hosts of your servers, such as REMOTE_MODEL_HOSTS=10.0.0.5 make up: see docs/howto/other-backends.md",
        )
        for node in self._alive():
            try:
                tried = await self.rpc.call(api.try_server, server, to=node, deadline_seconds=_TRY_SECONDS)
            except (errors.NotAllowed, errors.PeerError) as error:
                # Another worker may reach it.
                refusal = error
                continue
            allowed = self.live.config.policies.find(None).placement.external
            missing = {tried.provider, *tried.forwards_to} - {"", *allowed}
            if not missing or ANY_PROVIDER in allowed:
                return ""
            which = "" if tried.provider else "for the models that it forwards, "
            return f"server {server.name}: {which}add {', '.join(sorted(missing))} to `external` of the policies mesh and default"
        raise refusal

    def _alive(self) -> dict[NodeId, tuple[ServerState, ...]]:
        return {node: states for node, (at, states) in self.workers.items() if self.clock() - at < _GONE_SECONDS}

    def _seal(self, name: str, body: ServerDocument, before: ServerDocument | None) -> ServerDocument:
        sealed = body.sealed_key
        if body.key is not None:
            sealed = tenant_encryption.seal(body.key.encode(), _MESH, _purpose(name, body), self.secret)
        elif sealed is None and before is not None and before.url == body.url:
            sealed = before.sealed_key
        return msgspec.structs.replace(body, key=None, sealed_key=sealed)

    def _open(self, name: str, body: ServerDocument) -> OpenServer:
        """Raises BadRequest if the key was sealed for something else."""
        key = None if body.sealed_key is None else tenant_encryption.unseal(body.sealed_key, _MESH, _purpose(name, body), self.secret)
        if key is None and body.sealed_key is not None:
            raise errors.BadRequest(
                f"server {name}: its key was encrypted for another name, URL or PROMPT_HASH_SECRET",
                hint="set it again: aicli models add-server --replace",
            )
        return OpenServer(name, body.url, body.kind, None if key is None else key.decode(), body.models, body.context, body.tools)


def _purpose(name: str, body: ServerDocument) -> str:
    return f"server/{name}/{body.url}"
