"""Takes the servers of the configuration from the gateways, and adds them to the backend `openai`, or removes them, while it runs."""

import asyncio
from dataclasses import dataclass, field
from functools import partial

import msgspec

from features.remote_servers.worker import http_server_client, remote_models, remote_server, single_server, upstreams
from features.remote_servers.worker.remote_backend import RemoteBackend
from features.remote_servers.worker.remote_models import RemoteModels
from features.remote_servers.worker.remote_server import RemoteServer, ServerApi
from features.remote_servers.worker.rules.remote_hosts import RemoteHosts
from features.remote_servers.worker.rules.server_errors import RefusalSource
from features.remote_servers.worker.upstreams import Dialect, Upstream
from services.inference.backend_interface import Watcher
from shared import errors
from shared.api import servers as api
from shared.api.servers import OpenServer, ServerState, TriedServer
from shared.background import tasks as background_tasks
from shared.config_documents import ServerKind
from shared.node import Node, lifecycle
from shared.rpc import RpcCall, serves
from shared.telemetry import logs
from shared.types import NodeId, Role

ASK_SECONDS = 2.0
TRY_SECONDS = 5.0
#: From a change to the next report, and between looks at a removed server's last answers.
_LOOK_SECONDS = 0.2
#: Of models, in a message.
_MAX_NAMES = 10
_DIALECTS = {ServerKind.OPENAI: None, ServerKind.VLLM: Dialect.VLLM, ServerKind.OLLAMA: Dialect.OLLAMA}

log = logs.get()


@dataclass(slots=True)
class _Added:
    terms: OpenServer
    removed: asyncio.Event = field(default_factory=asyncio.Event)
    server: RemoteServer | None = None
    #: Why there is none.
    trouble: str = "connecting"

    @property
    def state(self) -> ServerState:
        if self.server is None:
            return ServerState(self.terms.name, trouble=self.trouble)
        names = tuple(listed.name for listed in self.server.models.listings())
        return ServerState(self.terms.name, names, self.server.models.trouble)


@dataclass(slots=True)
class AddedServers:
    """``slots`` and ``queue`` are per model."""

    node: Node
    backend: RemoteBackend
    hosts: RemoteHosts
    slots: int
    queue: int
    watcher: Watcher
    _added: dict[str, _Added] = field(default_factory=dict)
    _revision: int = -1
    #: Why no gateway gave the servers.
    _refusal: str = ""

    async def run(self) -> None:
        """Ask the gateways until cancelled."""
        async with lifecycle.background() as tasks:
            while True:
                gateways = [entry.node for entry in self.node.directory.usable(Role.GATEWAY)]
                found = [taken for taken in await asyncio.gather(*map(self._ask, gateways)) if taken is not None]
                # One of them may not know the last change yet.
                newest = max(found, key=lambda taken: taken.revision, default=None)
                pause = ASK_SECONDS
                if newest is not None and newest.servers is not None and newest.revision != self._revision:
                    self._revision = newest.revision
                    self._use({server.name: server for server in newest.servers}, tasks)
                    # Then the gateways hear soon what has become of them.
                    pause = _LOOK_SECONDS
                await asyncio.sleep(pause)

    @serves(api.try_server)
    async def try_server(self, request: OpenServer, call: RpcCall) -> TriedServer:
        """List the models of a server. Raises NotAllowed, or BadRequest with what is wrong."""
        source, models_api = self._describe(msgspec.structs.replace(request, models=()))
        try:
            async with asyncio.timeout(TRY_SECONDS), http_server_client.connected(source, self.hosts) as server:
                listed = await server.get(models_api.models_path, models_api.read_models)
        except TimeoutError as error:
            raise errors.BadRequest(f"{source.name} did not list its models within {TRY_SECONDS:g} s", hint="check its URL") from error
        except errors.AimeshError as error:
            raise errors.BadRequest(error.message, hint=error.hint or "check its URL and kind") from error
        names = [model.name for model in listed]
        if missing := set(request.models).difference(names, (model.own_name for model in listed)):
            hint = f"it lists {', '.join(names[:_MAX_NAMES])}" if names else "load one there"
            raise errors.BadRequest(f"{source.name} doesn't list {', '.join(sorted(missing)[:_MAX_NAMES])}", hint=hint)
        if not names:
            raise errors.BadRequest(f"{source.name} lists no models", hint="load one there")
        provider = await remote_models.find_provider(source.upstream)
        wanted = [model for model in listed if not request.models or {model.name, model.own_name} & set(request.models)]
        forwarded = dict.fromkeys(model.provider for model in wanted if model.provider and not provider)
        return TriedServer(provider, tuple(forwarded))

    async def _ask(self, gateway: NodeId) -> api.TakenServers | None:
        request = api.TakeServers(self.node.trust.certificate, self._revision, tuple(one.state for one in self._added.values()))
        try:
            return await self.node.rpc.call(api.take_servers, request, to=gateway, deadline_seconds=ASK_SECONDS)
        except errors.AimeshError as error:
            if error.message != self._refusal:
                self._refusal = error.message
                log.warning("servers_not_taken", gateway=gateway, reason=error.message)
            return None

    def _use(self, wanted: dict[str, OpenServer], tasks: asyncio.TaskGroup) -> None:
        for name, one in list(self._added.items()):
            if wanted.get(name) != one.terms:
                one.removed.set()
                del self._added[name]
        for name, terms in wanted.items():
            if name not in self._added:
                self._added[name] = one = _Added(terms)
                tasks.create_task(background_tasks.keep("added server", partial(self._serve, one)))

    async def _serve(self, one: _Added) -> None:
        """Serve the models of a server until it is removed and its last answers have ended."""
        try:
            source, server_api = self._describe(one.terms)
        except errors.CallerError as error:
            one.trouble = error.message
            return
        models = RemoteModels(self.backend.name, source.upstream, self.slots, self.queue, self.watcher)
        async with remote_server.connected(server_api, source, models, self.hosts) as server:
            one.server = server
            self.backend.add(server)
            await one.removed.wait()
            self.backend.remove(server)
            self.watcher.changed()
            log.info("server_removed", server=source.name)
            while models.in_flight or server.server.running:  # noqa: ASYNC110 - as rare as removals
                await asyncio.sleep(_LOOK_SECONDS)

    def _describe(self, terms: OpenServer) -> tuple[RefusalSource, ServerApi]:
        """Raises NotAllowed, and BadRequest for what can't be a URL or a key."""
        name, setting = f"server {terms.name}", f"the URL of server {terms.name}"
        key = None if terms.key is None else upstreams.Key(terms.key)
        try:
            upstreams.check(name, terms.url, key)
        except errors.BadSettings as error:
            raise errors.BadRequest(error.message) from error
        self.hosts.check(terms.url)
        upstream = Upstream(
            name=terms.name,
            url=terms.url,
            dialect=_DIALECTS[terms.kind] or upstreams.dialect_of(terms.url),
            key=key,
            key_setting=f"the key of {name}",
            # A pattern allows public addresses only.
            external=None if self.hosts.is_named(terms.url) else True,
            only_models=terms.models,
            context=terms.context,
            tools=terms.tools,
        )
        return single_server.describe(upstream, name, setting)
