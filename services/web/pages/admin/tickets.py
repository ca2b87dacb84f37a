"""Create, list and revoke tickets, which let nodes join. A new ticket is shown once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import ClassVar

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from services.web.http import forms
from services.web.pages.admin import node_view
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import membership
from shared.api.membership import NewTicket, TicketRow
from shared.identity import install_line
from shared.lists.columns import Listing
from shared.lists.tickets import TICKETS
from shared.types import Role

#: Role -> the command that joins with a ticket, as `aicli admin tickets create` prints it.
COMMANDS = {Role.WORKER: "aicli worker --join", Role.CLIENT: "aicli mesh connect"}
#: They read the ticket from the file of JOIN_TICKET_FILE.
_SERVICES = (Role.GATEWAY, Role.METRICS, Role.WEB)
#: Lifetime of a ticket in seconds -> label.
LIFETIMES = {3600: "In 1 hour", 86_400: "In 1 day", 7 * 86_400: "In 7 days", 90 * 86_400: "In 90 days"}
_DONE = {"revoked": "Ticket revoked. Nodes that already joined with it stay."}


class TicketForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str = Role.WORKER.value
    uses: str = "1"
    lifetime: str = "3600"
    labels: str = ""
    #: Sent if the box is checked.
    approval: str = ""
    owner: str = ""
    active_most: str = ""
    networks: str = ""
    model: str = ""
    #: yes, no, or empty for auth's default.
    accepts: str = ""
    #: here, or elsewhere.
    place: str = "here"


NOTHING_TYPED = TicketForm()


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketsPage:
    root: str
    #: Valid tickets first.
    tickets: tuple[TicketRow, ...]
    roles: tuple[Role, ...]
    lifetimes: ClassVar[Mapping[int, str]] = LIFETIMES
    listing: ClassVar[Listing[TicketRow]] = TICKETS
    typed: TicketForm = NOTHING_TYPED
    created: NewTicket | None = None
    command: str = ""
    #: For workers that share servers of their machine, such as Ollama: on Linux and macOS, and on Windows. Empty if there is none.
    front: str = ""
    powershell: str = ""


@get(["/nodes/tickets", "/admin/nodes/tickets"])
async def show_tickets(page_request: NamedDependency[PageRequest]) -> Page:
    root = f"{node_view.root_of(page_request.person)}/tickets"
    if page_request.request.scope["path"] != root:
        return page_request.redirect(root)
    try:
        listed, problem = await page_request.call(membership.list_tickets, membership.ListTickets()), None
    except errors.PeerError as error:
        listed, problem = None, error
    return page_request.page("admin/tickets.html", _view(page_request, listed), status=HTTPStatus.OK, problem=problem, notices=_DONE)


@post(["/nodes/tickets", "/admin/nodes/tickets"])
async def create_ticket(page_request: NamedDependency[PageRequest]) -> Page:
    """Create a ticket. Responds with the page itself, because a redirect would have to carry the ticket."""
    form = await page_request.read_form(TicketForm)
    try:
        created = await page_request.submit(membership.create_ticket, wanted(form))
    except (errors.CallerError, errors.Unavailable) as error:
        listed = await page_request.fetch(membership.list_tickets, membership.ListTickets())
        return page_request.page("admin/tickets.html", _view(page_request, listed, typed=form), problem=error)
    return await _show_created(page_request, created)


@post("/admin/nodes/tickets/{ticket_id:str}/rotate")
async def rotate_ticket(page_request: NamedDependency[PageRequest], ticket_id: FromPath[str]) -> Page:
    await page_request.read_form(forms.Confirmation)
    return await _show_created(page_request, await page_request.call(membership.rotate_ticket, membership.RotateTicket(ticket_id)))


async def _show_created(page_request: PageRequest, created: NewTicket) -> Page:
    command = f"{COMMANDS[created.row.role]} {created.ticket}" if created.row.role in COMMANDS else created.ticket
    # Show a new ticket even without the list.
    listed = await page_request.fetch(membership.list_tickets, membership.ListTickets())
    view = _view(page_request, listed, created=created, command=command)
    if created.install and created.row.role is Role.WORKER:
        view = replace(view, front=install_line.without_engine(created.install))
        # PowerShell's line trusts only public authorities, and a release has no script for it.
        if page_request.address in created.install and page_request.app.settings.public_key_pin is None:
            view = replace(view, powershell=install_line.make_powershell(page_request.address, created.ticket))
    return page_request.page("admin/tickets.html", view, status=HTTPStatus.CREATED)


@post(["/nodes/tickets/{ticket_id:str}/revoke", "/admin/nodes/tickets/{ticket_id:str}/revoke"])
async def revoke_ticket(page_request: NamedDependency[PageRequest], ticket_id: FromPath[str]) -> Page:
    await page_request.read_form(forms.Confirmation)
    await page_request.call(membership.revoke_ticket, membership.RevokeTicket(ticket_id))
    return page_request.redirect(f"{node_view.root_of(page_request.person)}/tickets?done=revoked")


def wanted(form: TicketForm) -> membership.CreateTicket:
    """Convert the form to a request. Raises BadRequest."""
    uses = forms.read_number(form.uses, "max uses", membership.CreateTicket, "uses")
    active = forms.read_number(form.active_most, "active at once", membership.CreateTicket, "active_most")
    if form.role not in (*COMMANDS, *_SERVICES):
        raise errors.BadRequest("unknown role", hint="choose one from the list")
    if form.lifetime not in map(str, LIFETIMES):
        raise errors.BadRequest("unknown lifetime", hint="choose one from the list")
    return membership.CreateTicket(
        Role(form.role),
        uses=uses if active is not None else uses or 1,
        ttl_seconds=int(form.lifetime),
        labels=forms.read_labels(form.labels),
        needs_approval=bool(form.approval),
        owner=form.owner.strip() or None,
        active_most=active,
        networks=tuple(each.strip() for each in form.networks.split(",") if each.strip()),
        model=form.model.strip(),
        accept_models={"yes": True, "no": False}.get(form.accepts),
        elsewhere=form.place == "elsewhere",
    )


def _view(
    page_request: PageRequest,
    listed: membership.Tickets | None,
    *,
    typed: TicketForm = NOTHING_TYPED,
    created: NewTicket | None = None,
    command: str = "",
) -> TicketsPage:
    """``listed`` is None if auth did not respond."""
    return TicketsPage(
        root=node_view.root_of(page_request.person),
        tickets=tuple(sorted(listed.tickets, key=TICKETS.is_over)) if listed else (),
        # Node owners can add workers only.
        roles=(*COMMANDS, *_SERVICES) if page_request.is_administrator else (Role.WORKER,),
        typed=typed,
        created=created,
        command=command,
    )
