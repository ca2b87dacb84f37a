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
from shared.api.model_search import FoundModel, MachineFit
from shared.config_documents import DeploymentDocument
from shared.lists import deployments as copy_lists
from shared.lists import model_search as search_lists
from shared.lists import nodes
from shared.lists.columns import Listing

#: The hub and the workers have deadlines of their own.
_SEARCH_SECONDS = 20.0

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
    listing: ClassVar[Listing[FoundModel]] = search_lists.FOUND
    #: What could not be searched.
    notes: tuple[str, ...]
    deployments: tuple[Deployment, ...]
    copies: tuple[CopyView, ...]
    blank_copy: ClassVar[CopyView] = CopyView()
    #: The model whose machines are shown, and how it is deployed.
    chosen: FoundModel | None
    present: DeploymentDocument | None
    machines: ClassVar[Listing[MachineFit]] = search_lists.MACHINES


@get("/models/find")
async def find_models(page_request: NamedDependency[PageRequest], q: FromQuery[str] = "", model: FromQuery[str] = "") -> Page:
    return await _page(page_request, q[: model_search.MAX_TEXT_CHARACTERS], model)


@post("/models/deployments")
async def deploy(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(DeployForm)
    try:
        request = deployments.DeployModel(form.name, read_document(form))
        await page_request.submit(deployments.deploy_model, request)
    except errors.CallerError as error:
        return await _page(page_request, "", form.name, problem=error)
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
    count = 1 if form.copies == "all" else forms.read_number(form.copies, "the number of copies", DeploymentDocument, "copies") or 1
    return DeploymentDocument(
        source=form.source,
        copies="all" if form.copies == "all" else count,
        labels=forms.read_labels(form.labels),
        preload=bool(form.preload),
    )


async def _page(page_request: PageRequest, text: str, model: str = "", *, problem: errors.AimeshError | None = None) -> Page:
    request, chosen = model_search.SearchModels(text, fits=True), None
    found, deployed = model_search.FoundModels(()), tuple[Deployment, ...]()
    try:
        found, deployed = await asyncio.gather(
            page_request.call(model_search.search_models, request, deadline_seconds=_SEARCH_SECONDS), _read(page_request)
        )
        if model:
            plan = model_search.PlanModel(model[: model_search.MAX_REFERENCE_CHARACTERS])
            chosen = await page_request.call(model_search.plan_model, plan, deadline_seconds=_SEARCH_SECONDS)
    except (errors.CallerError, errors.PeerError) as error:
        problem = problem or error
    view = FindPage(
        text=text,
        found=found.models,
        notes=found.notes,
        deployments=deployed,
        copies=_copies(deployed),
        chosen=chosen,
        present=next((each.document for each in deployed if chosen is not None and each.name == chosen.name), None),
    )
    return page_request.page("models/find.html", view, problem=problem, notices=_DONE)


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
