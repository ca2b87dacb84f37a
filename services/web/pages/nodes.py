"""List the nodes of the mesh with their state, and approve or revoke them.

Administrators see all nodes under /admin/nodes. Node owners see their own under /nodes. Auth decides who owns a node.
"""

import asyncio
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import ClassVar

from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from services.web import live_updates
from services.web.http import forms
from services.web.http.event_response import EventResponse
from services.web.pages.admin import node_view
from services.web.pages.admin.node_view import ModelOnNode, NodeList, NodeRowView
from services.web.request_context import PAGE_CALL_SECONDS, Page, PageRequest
from shared import errors
from shared.api import deployments, gateway, membership
from shared.api.deployments import CopyState
from shared.api.gateway import NodeRow
from shared.api.membership import Member, MemberState
from shared.lists import deployments as copy_lists
from shared.lists import nodes as lists
from shared.lists.deployments import DeployedCopy
from shared.types import ModelName

_DONE = {
    "approved": "Node approved. It joins within a minute.",
    "accepts": "Administrators can now put models on the node.",
    "refuses": "Administrators can no longer put models on the node. It keeps the models that it has.",
    "removed": "Model removed. The mesh doesn’t put it there again.",
    "revoked": "Node revoked. Its key can never rejoin. To add it again, create a new ticket.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesPage:
    root: str
    nodes: NodeList
    #: The template for rows added later.
    blank: ClassVar[NodeRowView] = NodeRowView()
    #: False if the gateway did not respond, so states are unknown.
    is_seen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfirmationPage:
    """The confirmation page for approving or revoking a node."""

    root: str
    member: Member
    short: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeModelsPage:
    root: str
    member: Member
    short: str
    row: NodeRow
    models: tuple[ModelOnNode, ...]
    #: What deployments would put there, and why they don't.
    missing: tuple[DeployedCopy, ...]
    #: Whether the person decides if administrators may put models on it.
    decides: bool


@get(["/nodes", "/admin/nodes"])
async def show_nodes(page_request: NamedDependency[PageRequest]) -> Page:
    root = node_view.root_of(page_request.person)
    if page_request.request.scope["path"] != root:
        return page_request.redirect(root)
    answer, problem = await _members(page_request)
    rows = await page_request.fetch(gateway.list_nodes, gateway.ListNodes())
    nodes = node_view.join(answer, rows.nodes if rows else None, page_request.person)
    view = NodesPage(root=root, nodes=nodes, is_seen=rows is not None)
    return page_request.page("nodes.html", view, status=HTTPStatus.OK, problem=problem, notices=_DONE)


@get("/live/nodes")
async def follow_nodes(page_request: NamedDependency[PageRequest]) -> EventResponse:
    """Stream the rows to an open page."""

    async def read() -> live_updates.Values:
        members, rows = await asyncio.gather(
            page_request.call(membership.list_members, membership.ListMembers(), deadline_seconds=PAGE_CALL_SECONDS),
            page_request.call(gateway.list_nodes, gateway.ListNodes(), deadline_seconds=PAGE_CALL_SECONDS),
        )
        found = node_view.join(members.members, rows.nodes, page_request.person)
        return {"nodes": [asdict(line) for line in found.lines], "summary": found.summary, "no_nodes": not found.lines}

    return page_request.follow(read)


@get("/admin/nodes/{node_id:str}/approve")
async def confirm_approve(page_request: NamedDependency[PageRequest], node_id: FromPath[str]) -> Page:
    member = await _member(page_request, node_id)
    if member.state is not MemberState.PENDING:
        raise errors.NotFound("this node is not waiting for approval", hint="choose one from the list of nodes")
    return page_request.page("admin/node_approve.html", _question(page_request, member))


@post("/admin/nodes/{node_id:str}/approve")
async def approve(page_request: NamedDependency[PageRequest], node_id: FromPath[str]) -> Page:
    await page_request.read_form(forms.Confirmation)
    await page_request.call(membership.approve_member, membership.ApproveMember(node_id))
    return page_request.redirect(f"{node_view.root_of(page_request.person)}?done=approved")


@get(["/nodes/{node_id:str}/revoke", "/admin/nodes/{node_id:str}/revoke"])
async def confirm_revoke(page_request: NamedDependency[PageRequest], node_id: FromPath[str]) -> Page:
    return page_request.page("admin/node_revoke.html", _question(page_request, await _member(page_request, node_id)))


@post(["/nodes/{node_id:str}/revoke", "/admin/nodes/{node_id:str}/revoke"])
async def revoke(page_request: NamedDependency[PageRequest], node_id: FromPath[str]) -> Page:
    reason = await page_request.read_field("reason", "")
    member = await _member(page_request, node_id)
    try:
        await page_request.submit(membership.revoke_member, membership.RevokeMember(node_id, reason=reason.strip()))
    except errors.CallerError as error:
        return page_request.page("admin/node_revoke.html", _question(page_request, member, reason), problem=error)
    return page_request.redirect(f"{node_view.root_of(page_request.person)}?done=revoked")


@get(["/nodes/{worker_id:str}/models", "/admin/nodes/{worker_id:str}/models"])
async def show_models(page_request: NamedDependency[PageRequest], worker_id: FromPath[str]) -> Page:
    return page_request.page("admin/node_models.html", await _models(page_request, worker_id), notices=_DONE)


@post(["/nodes/{worker_id:str}/models", "/admin/nodes/{worker_id:str}/models"])
async def set_models(page_request: NamedDependency[PageRequest], worker_id: FromPath[str]) -> Page:
    accepts = await page_request.read_field("accepts") == "yes"
    view = await _models(page_request, worker_id)
    try:
        await page_request.submit(gateway.set_model_consent, gateway.ConsentOnWorker(view.member.id, accepts))
    except errors.CallerError as error:
        return page_request.page("admin/node_models.html", view, problem=error)
    return page_request.redirect(f"{view.root}?done={'accepts' if accepts else 'refuses'}")


@post(["/nodes/{worker_id:str}/models/remove", "/admin/nodes/{worker_id:str}/models/remove"])
async def remove_model(page_request: NamedDependency[PageRequest], worker_id: FromPath[str]) -> Page:
    model = await page_request.read_field("model")
    view = await _models(page_request, worker_id)
    try:
        await page_request.submit(gateway.remove_model, gateway.RemoveFromWorker(view.member.id, ModelName(model)))
    except errors.CallerError as error:
        return page_request.page("admin/node_models.html", view, problem=error)
    return page_request.redirect(f"{view.root}/{view.member.id}/models?done=removed")


async def _models(page_request: PageRequest, node_id: str) -> NodeModelsPage:
    member = await _member(page_request, node_id)
    rows = await page_request.call(gateway.list_nodes, gateway.ListNodes(), deadline_seconds=PAGE_CALL_SECONDS)
    row = next((row for row in rows.nodes if row.id == member.id), None)
    if row is None or not node_view.may_manage(member, row):
        raise errors.NotFound("this is no worker of yours that is up", hint="its models are listed while it is up")
    found = await page_request.fetch(deployments.list_deployments, deployments.ListDeployments())
    copies = copy_lists.rows(found.deployments if found else ())
    return NodeModelsPage(
        root=node_view.root_of(page_request.person),
        member=member,
        short=lists.short(member.id),
        row=row,
        models=node_view.models_of(row),
        missing=tuple(copy for copy in copies if copy.node == member.id and copy.state is CopyState.REFUSED),
        decides=node_view.may_consent(member, row, page_request.person),
    )


async def _members(page_request: PageRequest) -> tuple[tuple[Member, ...], errors.PeerError | None]:
    try:
        answer = await page_request.call(membership.list_members, membership.ListMembers(), deadline_seconds=PAGE_CALL_SECONDS)
    except errors.PeerError as error:
        return (), error
    return answer.members, None


async def _member(page_request: PageRequest, node_id: str) -> Member:
    answer = await page_request.call(membership.list_members, membership.ListMembers())
    member = next((member for member in answer.members if member.id == node_id and member.state is not MemberState.REVOKED), None)
    if member is None:
        raise errors.NotFound("there is no such node in the mesh", hint="choose one from the list of nodes")
    return member


def _question(page_request: PageRequest, member: Member, reason: str = "") -> NodeConfirmationPage:
    root, short = node_view.root_of(page_request.person), lists.short(member.id)
    return NodeConfirmationPage(root=root, member=member, short=short, reason=reason)
