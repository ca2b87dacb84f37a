"""Find models, see on which machines they fit, and put them there; administrators also see them arrive."""

import asyncio
from dataclasses import asdict, dataclass
from typing import ClassVar

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web import live_updates
from services.web.http import forms
from services.web.http.event_response import EventResponse
from services.web.request_context import PAGE_CALL_SECONDS, Page, PageRequest
from shared import errors
from shared.api import deployments, model_search
from shared.api.deployments import Deployment
from shared.api.model_search import FoundModel
from shared.config_documents import DeploymentDocument
from shared.lists import deployments as copy_lists
from shared.lists import model_search as search_lists
from shared.lists import nodes
from shared.lists.columns import Listing

#: The hub and the workers have deadlines of their own.
_SEARCH_SECONDS = 20.0
_MOST_TEXT = 100

_DONE = {"deployed": "The model is on its way.", "removed": "The model is being removed.", "changed": "The deployment has changed."}


class DeployForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    source: str
    #: A number, or `all`.
    copies: str = "1"
    #: Such as `gpu=yes, room=3`; empty for any machine.
    labels: str = ""
    preload: str = ""


class ChangeForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    act: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyView:
    """A copy of a model on a machine, for live.js."""

    id: str = ""
    model: str = ""
    node: str = ""
    state: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindPage:
    text: str
    found: tuple[FoundModel, ...]
    listing: Listing[FoundModel]
    #: What could not be searched.
    notes: tuple[str, ...]
    deployments: tuple[Deployment, ...]
    copies: tuple[CopyView, ...]
    blank_copy: ClassVar[CopyView] = CopyView()
    #: Of each found model by name, how it fits each machine.
    fits: dict[str, tuple[str, ...]]
    #: Names of found models that are deployed.
    deployed: frozenset[str]


@get("/models/find")
async def find_models(page_request: NamedDependency[PageRequest], q: FromQuery[str] = "") -> Page:
    return await _page(page_request, q[:_MOST_TEXT])


@post("/models/deployments")
async def deploy(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(DeployForm)
    try:
        request = deployments.DeployModel(form.name, read_document(form))
        await page_request.submit(deployments.deploy_model, request)
    except errors.CallerError as error:
        return await _page(page_request, "", problem=error)
    return page_request.redirect("/models/find?done=deployed")


@post("/models/deployments/change")
async def change(page_request: NamedDependency[PageRequest]) -> Page:
    """Pause, continue or remove a deployment."""
    form = await page_request.read_form(ChangeForm)
    try:
        if form.act == "remove":
            await page_request.submit(deployments.undeploy_model, deployments.UndeployModel(form.name))
            return page_request.redirect("/models/find?done=removed")
        found = [each for each in await _read(page_request) if each.name == form.name]
        if form.act not in {"pause", "continue"} or not found:
            raise errors.BadRequest("unknown action or deployment", hint="reload the page and use its buttons")
        document = msgspec.structs.replace(found[0].document, paused=form.act == "pause")
        await page_request.submit(deployments.deploy_model, deployments.DeployModel(form.name, document))
    except errors.CallerError as error:
        return await _page(page_request, "", problem=error)
    return page_request.redirect("/models/find?done=changed")


@get("/live/models/copies")
async def follow_copies(page_request: NamedDependency[PageRequest]) -> EventResponse:
    """Stream where the copies are to an open page."""

    async def read() -> live_updates.Values:
        return {"copies": [asdict(copy) for copy in _copies(await _read(page_request))]}

    return page_request.follow(read)


def read_document(form: DeployForm) -> DeploymentDocument:
    """Parse the form. Raises BadRequest."""
    pairs = [pair.strip().partition("=") for pair in form.labels.split(",") if pair.strip()]
    if not all(key and equals for key, equals, _ in pairs):
        raise errors.BadRequest("the labels are not readable", hint="write them like gpu=yes, room=3")
    count = 1 if form.copies == "all" else forms.read_number(form.copies, "the number of copies", DeploymentDocument, "copies") or 1
    return DeploymentDocument(
        source=form.source,
        copies="all" if form.copies == "all" else count,
        labels={key.strip(): value.strip() for key, _, value in pairs},
        preload=bool(form.preload),
    )


async def _page(page_request: PageRequest, text: str, *, problem: errors.CallerError | None = None) -> Page:
    request = model_search.SearchModels(text, fits=True)
    try:
        found, deployed = await asyncio.gather(
            page_request.call(model_search.search_models, request, deadline_seconds=_SEARCH_SECONDS), _read(page_request)
        )
    except errors.PeerError as error:
        return page_request.page("models/find.html", _view(text, model_search.FoundModels(()), ()), problem=error)
    return page_request.page("models/find.html", _view(text, found, deployed), problem=problem, notices=_DONE)


def _view(text: str, found: model_search.FoundModels, deployed: tuple[Deployment, ...]) -> FindPage:
    return FindPage(
        text=text,
        found=found.models,
        listing=search_lists.FOUND,
        notes=found.notes,
        deployments=deployed,
        copies=_copies(deployed),
        fits={row.name: tuple(search_lists.explain(row)) for row in found.models},
        deployed=frozenset(each.name for each in deployed),
    )


async def _read(page_request: PageRequest) -> tuple[Deployment, ...]:
    request = deployments.ListDeployments()
    return (await page_request.call(deployments.list_deployments, request, deadline_seconds=PAGE_CALL_SECONDS)).deployments


def _copies(deployed: tuple[Deployment, ...]) -> tuple[CopyView, ...]:
    return tuple(
        CopyView(
            id=f"{row.name}/{row.node or ''}",
            model=row.name,
            node=nodes.short(row.node) if row.node else "–",
            state=copy_lists.describe(row),
            reason=row.reason,
        )
        for row in copy_lists.rows(deployed)
    )
