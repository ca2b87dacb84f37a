"""What a machine's own servers add to a worker: a backend for one of them."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from features.front import contract
from features.front.contract import Build, NameModels
from features.front.rules import local_servers
from features.front.rules.local_servers import SharedServer
from features.front.settings import FrontSettings
from features.front.worker import look
from features.remote_servers.worker import remote_server, single_server, upstreams
from features.remote_servers.worker.remote_backend import RemoteBackend
from features.remote_servers.worker.remote_models import RemoteModels
from features.remote_servers.worker.upstreams import Dialect, Upstream
from services.inference.features import Site, WorkerPart
from services.inference.models.catalog import SERVER_SLOTS
from shared import errors
from shared.background.tasks import keep
from shared.node import lifecycle
from shared.telemetry import logs
from shared.types import ModelName

log = logs.get()

NAME = "front"
_LOOK_SECONDS = 10.0
_LIST_SECONDS = 0.5
#: How late a worker learns that an older one has another model of the same name.
_NAMES_SECONDS = 30.0
_ASK_SECONDS = 10.0


@asynccontextmanager
async def _opened(site: Site) -> AsyncIterator[RemoteBackend]:
    shared = _read(site.settings.of(FrontSettings).server_file)
    upstream = _upstream(shared, {})
    upstreams.check("FRONT_SERVER_FILE", upstream.url, upstream.key)
    backend = RemoteBackend(NAME, [])
    backend.expose(site.node.metrics)

    async def serve() -> None:
        site.watcher.lack_models(f"another worker of this machine serves {local_servers.title_of(shared.kind)}")
        while (place := _claim(upstream.url)) is None:  # noqa: ASYNC110 - the other worker is another process
            await asyncio.sleep(_LOOK_SECONDS)
        names: dict[str, str] = {}
        with place:
            while True:
                names = await _serve(site, backend, shared, names)

    async with lifecycle.background() as tasks:
        tasks.create_task(keep("local server", serve))
        yield backend


async def _serve(site: Site, backend: RemoteBackend, shared: SharedServer, names: dict[str, str]) -> dict[str, str]:
    """Serve the server's models under ``names`` until others are due, and the last answers have ended. Return those."""
    source, api = single_server.describe(_upstream(shared, names), local_servers.title_of(shared.kind), "FRONT_SERVER_FILE")
    models = RemoteModels(NAME, source.upstream, site.settings.slots or SERVER_SLOTS, site.settings.queue, site.watcher)
    async with remote_server.connected(api, source, models) as server:
        site.watcher.lack_models(f"{source.name}: {models.trouble}")
        while not models.listings():
            await asyncio.sleep(_LIST_SECONDS)
            site.watcher.lack_models(f"{source.name}: {models.trouble}")
        if (found := await _names(site, models, names)) != names:
            return found
        backend.add(server)
        site.watcher.changed()
        while found == names:
            await asyncio.sleep(_NAMES_SECONDS)
            found = await _names(site, models, names)
        backend.remove(server)
        site.watcher.changed()
        while models.in_flight or server.server.running:  # noqa: ASYNC110 - as rare as a change of names
            await asyncio.sleep(_LIST_SECONDS)
        return found


async def _names(site: Site, models: RemoteModels, names: dict[str, str]) -> dict[str, str]:
    """Ask a gateway which models have other names, and keep those that have: callers use them."""
    listed = models.listings()
    plain = [model.name.partition("/")[2] if model.own_name in names else model.name for model in listed]
    builds = tuple(Build(ModelName(name), model.digest, model.quantization) for name, model in zip(plain, listed, strict=True))
    machine = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname()).strip("-._")[:64] or "machine"
    try:
        reply = await site.node.rpc.call(contract.name_models, NameModels(machine, builds), deadline_seconds=_ASK_SECONDS)
    except errors.AimeshError as error:
        if not names:
            log.info("names_not_asked", reason=error.message)
        return names
    return names | {model.own_name: new for model, name, new in zip(listed, plain, reply.names, strict=True) if new != name}


def _upstream(shared: SharedServer, names: dict[str, str]) -> Upstream:
    key = look.read_key(Path(shared.key_file)) if shared.key_file else None
    return look.upstream_of(Dialect(shared.kind), shared.url, shared.models, key, names)


def _read(path: Path | None) -> SharedServer:
    """Raises BadSettings."""
    if path is None:
        raise errors.BadSettings("FRONT_SERVER_FILE is not set", hint="aicli worker --share KIND writes it, and starts such a worker")
    try:
        return msgspec.json.decode(path.read_bytes(), type=SharedServer)
    except (OSError, msgspec.MsgspecError) as error:
        raise errors.BadSettings(f"FRONT_SERVER_FILE: cannot read {path}: {error}", hint="aicli worker --share KIND writes it") from error


def _claim(url: str) -> socket.socket | None:
    """Return what shows other workers of this machine that the server is served; None if it is. Nobody needs the UDP port of its number,
    and it is free when the process ends."""
    found = socket.socket(type=socket.SOCK_DGRAM)
    try:
        found.bind(("127.0.0.1", urlsplit(url).port or 80))
    except OSError:
        found.close()
        return None
    return found


PART = WorkerPart(backends={NAME: _opened})
