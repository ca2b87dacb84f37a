"""What files add to the gateway."""

from collections.abc import Callable, Coroutine
from typing import Any

from features.files.gateway.file_objects import FileObjects
from features.files.gateway.file_routes import FileRoutes
from features.files.gateway.file_storage import FileStorage
from features.files.gateway.store import FileRows
from features.files.settings import FileSettings
from services.gateway import background_jobs
from services.gateway.features import Built, GatewayPart, Site

#: The label of background work on files.
UPKEEP = "files"


def _build(site: Site) -> Built:
    """Raises BadSettings."""
    metrics, rows, url = site.node.metrics, FileRows(site.database), site.settings.of(FileSettings).files_url
    objects = None if url is None else FileObjects.open(url, site.settings, rows, metrics)
    storage = FileStorage(
        rows,
        objects,
        site.node.dispatcher.memory,
        site.audit_reporting,
        items=site.items,
        secret=site.settings.prompt_hash_secret,
    )
    tasks: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {}
    if objects is not None:
        tasks = {"files": lambda: background_jobs.repeat(UPKEEP, 600, storage.clean, metrics), "file store": objects.watch}
    return Built(
        served=[storage],
        routes=FileRoutes(storage, site.owners.file_limit_of).routes(),
        tasks=tasks,
        erase=storage.erase,
        checks=storage.checks,
        offers=[storage],
    )


PART = GatewayPart(_build)
