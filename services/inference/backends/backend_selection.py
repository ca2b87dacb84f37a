"""Opens the backend that the settings select."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import assert_never

from services.inference import parent_death
from services.inference.backend_interface import Backend, Watcher
from services.inference.backends import echo, llama
from services.inference.engine import devices, engine_messages
from services.inference.models import memory, model_discovery
from services.inference.models.model_store import ModelStore
from services.inference.settings import InferenceSettings, free_cores
from services.inference.supervision import engine_supervisor
from services.inference.supervision.poison_requests import PoisonRequests
from shared.telemetry import logs

log = logs.get()


def opened(settings: InferenceSettings, watcher: Watcher, print_line: Callable[[str], None] | None) -> AbstractAsyncContextManager[Backend]:
    """``print_line`` writes to the console, if someone watches. Seals this process (`parent_death`). Raises BadSettings."""
    parent_death.seal()
    match settings.backend:
        case "llama":
            return _llama(settings, watcher, print_line)
        case "echo":
            return echo.opened(settings.echo_token_ms, settings.queue, watcher, settings.echo_slots)
        case "ollama":
            # Imported late: 2 MB that the other backends don't need.
            from services.inference.backends.remote import ollama  # noqa: PLC0415

            return ollama.opened(settings.ollama_url, settings.slots, settings.queue, watcher, keep_alive=settings.ollama_keep_alive)
        case "openai":
            from services.inference import upstreams  # noqa: PLC0415
            from services.inference.backends.remote import openai  # noqa: PLC0415

            if settings.openai_upstreams is None:
                servers: tuple[upstreams.Upstream, ...] = (upstreams.single(settings.openai_url, settings.openai_key),)
            else:
                servers = upstreams.read(settings.openai_upstreams, settings.openai_upstream_keys)
            return openai.opened_all(servers, settings.slots, settings.queue, watcher)
        case "http":
            from services.inference.backends.remote import registry  # noqa: PLC0415

            catalog = model_discovery.find(settings.models, settings.models_yaml, settings.models_dir, settings.model_defaults())
            return registry.opened(catalog.elsewhere, settings.slots, settings.queue, watcher)
        case _:
            assert_never(settings.backend)


@asynccontextmanager
async def _llama(settings: InferenceSettings, watcher: Watcher, print_line: Callable[[str], None] | None) -> AsyncIterator[Backend]:
    catalog = model_discovery.find(settings.models, settings.models_yaml, settings.models_dir, settings.model_defaults())
    threads = settings.threads or free_cores()
    wanted = devices.flavour() if settings.gpu_layers else None
    found = None if wanted is None else await devices.probe(engine_supervisor.inherited())
    for line in devices.describe(found, wanted, threads):
        log.info("devices", found=line)
        if print_line is not None:
            print_line(line)
    load = engine_messages.LoadCommand(
        "", settings.slots, settings.context_tokens, threads, settings.gpu_layers, settings.kv_mode, settings.kv_type
    )
    budget = memory.measure(settings.model_memory_bytes, () if found is None else found.devices)
    # All engines share it: a request that crashed one may crash another.
    start = partial(engine_supervisor.SupervisedEngine, poison_requests=PoisonRequests(time.monotonic))
    digests_file = settings.state_file.with_suffix(".digests")
    read_store = partial(model_discovery.in_store, ModelStore(settings.store_path), settings.model_defaults())
    opened_llama = llama.opened(catalog, load, settings.queue, budget, watcher, start=start, digests_file=digests_file)
    async with opened_llama as backend, asyncio.TaskGroup() as tasks:
        following = tasks.create_task(backend.follow(read_store), name="model store")
        try:
            yield backend
        finally:
            following.cancel()
