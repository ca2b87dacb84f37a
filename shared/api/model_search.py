"""gateway: the models that people can find, and the machines on which they fit."""

from typing import Annotated, Literal

from msgspec import Meta

from shared.api.inference import ModelFit
from shared.api.method import PEOPLE, Body, Method
from shared.config_documents import CatalogDocument
from shared.types import NodeId

#: The memory for which ``FoundModel.room`` is computed, in GB.
ROOM_GIGABYTES = (12, 24, 48)
MAX_FOUND = 50
MAX_TEXT_CHARACTERS, MAX_REFERENCE_CHARACTERS = 100, 400

Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARACTERS)]
Limit = Annotated[int, Meta(ge=1, le=MAX_FOUND)]


class MachineFit(ModelFit, frozen=True, kw_only=True, omit_defaults=False):
    """How a model fits a worker."""

    worker: NodeId
    #: Whether administrators may put models on it.
    accepts_models: bool = True


class FoundModel(Body, frozen=True, kw_only=True, omit_defaults=False):
    #: What `aicli run` takes.
    name: str
    origin: Literal["catalog", "mesh", "hub"]
    is_served: bool = False
    #: None for a model that is served and not in the catalog. Without a size there, the hub was not asked.
    model: CatalogDocument | None = None
    #: Bytes of its files, estimated if ``model`` has no size; 0 if unknown.
    size: int = 0
    #: The context that fits beside the weights in each of ROOM_GIGABYTES, estimated; 0 if the weights don't.
    room: tuple[int, ...] = ()
    #: In the last month, at the hub.
    downloads: int = 0
    #: The best machine first; empty unless asked for.
    fits: tuple[MachineFit, ...] = ()


class SearchModels(Body, frozen=True):
    """Find models whose names, sources or uses contain all words; all of the catalog without any."""

    text: Text = ""
    limit: Limit = 20
    #: Also ask the workers where the models fit.
    fits: bool = False
    #: Also ask the Hugging Face hub, if the gateway's settings allow it.
    hub: bool = True


class FoundModels(Body, frozen=True, omit_defaults=False):
    models: tuple[FoundModel, ...]
    #: What could not be searched, for people.
    notes: tuple[str, ...] = ()


class PlanModel(Body, frozen=True):
    """Find where one model fits. Raises UnknownModel, which suggests names."""

    #: A name or alias of the catalog, or what `aicli models pull` takes.
    reference: Annotated[str, Meta(min_length=1, max_length=MAX_REFERENCE_CHARACTERS)]


class RefreshCatalog(Body, frozen=True):
    """Ask the hub for the size, SHA-256 and context of the catalog's models, and write them to the configuration. For administrators."""


class RefreshedCatalog(Body, frozen=True, omit_defaults=False):
    changed: tuple[str, ...]
    #: Name: what is wrong, for each model that could not be checked.
    problems: tuple[str, ...]


search_models = Method("gateway.searchModels", SearchModels, FoundModels, callers=PEOPLE)
plan_model = Method("gateway.planModel", PlanModel, FoundModel, callers=PEOPLE)
refresh_catalog = Method("gateway.refreshCatalog", RefreshCatalog, RefreshedCatalog, callers=PEOPLE)
