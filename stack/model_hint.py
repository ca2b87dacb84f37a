"""Names the best model of the catalog that this machine could run, while it only has the one that came with it."""

from contextlib import suppress

from cli import connection, profile
from cli.connection import Connect
from shared import errors, model_folder
from shared.api import model_search
from shared.api.model_search import FoundModel, FoundModels, SearchModels
from shared.config_documents import CatalogUse
from shared.identity import node_keys
from shared.types import NodeId
from stack.stack_home import StackHome


async def find(home: StackHome, connect: Connect = connection.open_) -> str:
    """Return a line for the terminal; empty if there is nothing to offer, or no answer."""
    request = SearchModels(limit=model_search.MAX_FOUND, fits=True, hub=False)
    with suppress(errors.AimeshError):
        async with connect(profile.read(home.profile)) as mesh:
            found = await mesh.call(model_search.search_models, request)
        if best := find_best(found, node_keys.load(home.key("worker")).id):
            return f"This machine could run {best.name} ({best.size / 10**9:.1f} GB). aicli run {best.name}"
    return ""


def find_best(found: FoundModels, worker: NodeId) -> FoundModel | None:
    """Return the largest model for chats with tools that fits the worker; None if a model was added already."""
    if any(row.is_served and row.name != model_folder.PACKAGED_MODEL for row in found.models):
        return None
    fitting = [
        (row.model.parameters, row.name, row)
        for row in found.models
        if row.model is not None and row.model.tools and CatalogUse.CHAT in row.model.uses
        if any(fit.worker == worker and fit.fit == "yes" and fit.accepts_models for fit in row.fits)
    ]
    return max(fitting)[2] if fitting else None
