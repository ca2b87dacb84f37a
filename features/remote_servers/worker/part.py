"""What other servers add to a worker: three backends, and programs as engines."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from features.remote_servers.settings import OPENAI_URL, ServerSettings
from features.remote_servers.worker import ollama, openai, registry, upstreams
from features.remote_servers.worker.added_servers import AddedServers
from features.remote_servers.worker.program_engine import ProgramEngine
from features.remote_servers.worker.remote_backend import RemoteBackend
from features.remote_servers.worker.rules.remote_hosts import RemoteHosts
from features.remote_servers.worker.upstreams import Dialect, Upstream
from services.inference.backend_interface import Backend
from services.inference.features import Site, WorkerPart
from services.inference.models import model_discovery
from services.inference.models.catalog import SERVER_SLOTS
from services.inference.settings import InferenceSettings
from shared.api.servers import NO_SERVER
from shared.background.tasks import keep


def _slots(settings: InferenceSettings) -> int:
    """Return the slots of a model of a server that doesn't name them."""
    return settings.slots or SERVER_SLOTS


@asynccontextmanager
async def _exposed(site: Site, opened: AbstractAsyncContextManager[RemoteBackend]) -> AsyncIterator[RemoteBackend]:
    async with opened as backend:
        backend.expose(site.node.metrics)
        yield backend


def _ollama(site: Site) -> AbstractAsyncContextManager[Backend]:
    own = site.settings.of(ServerSettings)
    keep_alive, queue = own.ollama_keep_alive, site.settings.queue
    return _exposed(site, ollama.opened(own.ollama_url, _slots(site.settings), queue, site.watcher, keep_alive=keep_alive))


@asynccontextmanager
async def _openai(site: Site) -> AsyncIterator[RemoteBackend]:
    own, slots, queue = site.settings.of(ServerSettings), _slots(site.settings), site.settings.queue
    servers: tuple[Upstream, ...] = ()
    if own.openai_upstreams is not None:
        servers = upstreams.read(own.openai_upstreams, own.openai_upstream_keys)
    elif own.openai_key or not own.remote_model_hosts or own.openai_url != OPENAI_URL:
        servers = (upstreams.single(own.openai_url, own.openai_key),)
    async with _exposed(site, openai.opened_all(servers, slots, queue, site.watcher)) as backend:
        if own.remote_model_hosts:
            site.watcher.lack_models(NO_SERVER)
            added = AddedServers(site.node, backend, RemoteHosts(own.remote_model_hosts), slots, queue, site.watcher)
            site.node.dispatcher.add(added)
            site.node.tasks.create_task(keep("added servers", added.run))
        yield backend


def _http(site: Site) -> AbstractAsyncContextManager[Backend]:
    settings = site.settings
    catalog = model_discovery.find(settings.models, settings.models_yaml, settings.models_dir, settings.model_defaults())
    return _exposed(site, registry.opened(catalog.elsewhere, _slots(settings), settings.queue, site.watcher))


PART = WorkerPart(backends={"ollama": _ollama, "openai": _openai, "http": _http}, start_program=ProgramEngine)
#: The `dialect` of an entry of MODELS_YAML.
DIALECTS = {dialect.value: dialect for dialect in Dialect}
