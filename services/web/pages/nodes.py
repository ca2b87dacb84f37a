"""The machines of the mesh: who is there, why one is not used, and letting them in and cutting them off.

An administrator sees all of them below /admin/nodes; who lends machines sees their own below /nodes. Auth decides whose they are.
"""

import asyncio
from dataclasses import dataclass

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from litestar.response import Stream

from services.web import forms, live, rendering
from services.web.pages.admin import node_lines
from services.web.pages.admin.node_lines import NodeLine, NodeList
from services.web.visits import Page, Visit
from shared import errors
from shared.api import gateway, membership
from shared.api.membership import Member
from shared.types import UserRole

#: The words that a redirect may bring.
_DONE = {
    "approved": "The machine is approved. It comes in by itself within a minute.",
    "revoked": "The machine is cut off. Its key never comes back; it can join again with a new ticket.",
}


class RevokeForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesPage:
    root: str
    is_admin: bool
    nodes: NodeList
    #: What the row of a machine that comes later is made from.
    blank: NodeLine
    #: False where the gateway did not answer, so that nobody knows which are used.
    is_seen: bool
    #: Why auth has no list; None where it has.
    problem: errors.AimeshError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeQuestion:
    """Shall this machine be let in, or cut off?"""

    root: str
    is_admin: bool
    member: Member
    short: str
    typed: str = ""
    problem: errors.AimeshError | None = None


def root_of(visit: Visit) -> str:
    """Where this person's machines are."""
    return "/admin/nodes" if visit.person.user.role is UserRole.ADMIN else "/nodes"


def here_of(visit: Visit) -> str:
    return root_of(visit).split("/")[1]


@get(["/nodes", "/admin/nodes"])
async def show_nodes(visit: NamedDependency[Visit], done: FromQuery[str] = "") -> Page:
    root = root_of(visit)
    if visit.request.scope["path"] != root:
        return visit.redirect(root)
    problem: errors.AimeshError | None = None
    members: tuple[Member, ...] = ()
    rows = asyncio.create_task(_rows(visit)) if False else None
    return visit.redirect(root)
