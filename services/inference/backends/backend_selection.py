"""Opens the backend that the settings select."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial

from services.inference import gpus
from services.inference.backend_interface import Backend, WarningTopic, Watcher
from services.inference.backends import echo, llama
from services.inference.backends.model_cache import JudgeModel, StartProgram
from services.inference.engine import devices, engine_messages
from services.inference.models import memory, model_discovery
from services.inference.models.catalog import CatalogEntry
from services.inference.models.memory import MemoryBudget
from services.inference.models.model_store import ModelStore
from services.inference.settings import InferenceSettings, free_cores
from services.inference.supervision import engine_supervisor
from services.inference.supervision.poison_requests import PoisonRequests
from shared import errors
from shared.background.tasks import keep
from shared.node import lifecycle
from shared.telemetry import logs

log = logs.get()


def opened(
    settings: InferenceSettings,
    watcher: Watcher,
    print_line: Callable[[str], None] | None,
    judge: JudgeModel,
    find_program_starter: Callable[[], StartProgram | None],
) -> AbstractAsyncContextManager[Backend]:
    """``print_line`` writes to the console, if someone watches. Raises BadSettings."""
    if settings.backend == "echo":
        return echo.opened(settings.echo_token_ms, settings.queue, watcher, settings.echo_slots)
    return _llama(settings, watcher, print_line, judge, find_program_starter)


async def find_devices(settings: InferenceSettings) -> tuple[list[str], str, MemoryBudget]:
    """Return sentences about the devices, why a GPU is not used (empty if none is unused), and the memory for models."""
    facts = gpus.look() if settings.gpu_layers else gpus.GpuFacts(None, frozenset())
    # Not every GPU has a device file, such as those of WSL2.
    found = await devices.probe() if settings.gpu_layers and (facts.kind or devices.plug_ins()) else None
    lines = list(devices.describe(found, facts, settings.threads or free_cores()))
    usable = () if found is None else found.devices
    unused = devices.why_unused(found, facts)
    return lines, unused, memory.measure(settings.model_memory_bytes, usable, cache=settings.prompt_cache_bytes)


@asynccontextmanager
async def _llama(
    settings: InferenceSettings,
    watcher: Watcher,
    print_line: Callable[[str], None] | None,
    judge: JudgeModel,
    find_program_starter: Callable[[], StartProgram | None],
) -> AsyncIterator[Backend]:
    pulls, defaults = bool(settings.models_pull), settings.model_defaults()
    catalog = model_discovery.find(settings.models, settings.models_yaml, settings.models_dir, defaults, pulls=pulls)
    # Only then, because it takes 2 MB.
    with_program = next((entry for entry in catalog.entries if entry.program is not None), None)
    start_program = None if with_program is None else find_program_starter()
    if with_program is not None and start_program is None:
        raise errors.BadSettings(f"{with_program.place}: no feature of this worker runs programs", hint="delete the entry")
    lines, unused_gpu, budget = await find_devices(settings)
    watcher.warn(unused_gpu, WarningTopic.DEVICES)
    watcher.memory_found(budget.fast_bytes)
    for line in lines:
        log.info("devices", found=line)
        if print_line is not None:
            print_line(line)
    engines = max(1, sum(entry.replicas or 1 for entry in catalog.entries))
    # Each model's plan replaces the numbers.
    threads = settings.threads or free_cores()
    load = engine_messages.LoadCommand(
        "", 1, 1, threads, settings.gpu_layers, settings.kv_mode, prompt_cache_bytes=budget.prompt_cache // engines
    )
    # All engines share it: a request that crashed one may crash another.
    engine = partial(engine_supervisor.SupervisedEngine, poison_requests=PoisonRequests(time.monotonic))
    programs = replace(llama.PROGRAMS, engine=engine, start_program=start_program)
    digests_file = settings.state_file.with_suffix(".digests")
    store = ModelStore(settings.store_path)

    def read_later() -> tuple[CatalogEntry, ...]:
        put = () if settings.models_dir is None else model_discovery.find_later(settings.models_dir, catalog.entries, defaults)
        return (*model_discovery.in_store(store, defaults, settings.models_pull), *put)

    opened_llama = llama.opened(
        catalog,
        load,
        settings.queue,
        budget,
        watcher,
        programs=programs,
        digests_file=digests_file,
        swap_seconds=settings.swap_seconds,
        judge=judge,
    )
    async with opened_llama as backend, lifecycle.background() as tasks:
        backend.print_plans(print_line)
        tasks.create_task(keep("later models", partial(backend.follow, read_later)))
        yield backend
