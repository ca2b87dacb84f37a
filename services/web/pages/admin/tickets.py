"""Create, list and revoke tickets, which let nodes join. A new ticket is shown once."""

import re
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from services.web import rendering
from services.web.http import forms
from services.web.pages.admin import node_view
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import membership
from shared.api.membership import NewTicket, TicketRow, TicketState
from shared.types import Role

#: Role -> the command that joins with a ticket, as `aicli admin tickets create` prints it.
COMMANDS = {Role.WORKER: "aicli worker --join", Role.CLIENT: "aicli mesh connect"}
#: They read the ticket from the file of JOIN_TICKET_FILE.
_SERVICES = (Role.GATEWAY, Role.METRICS, Role.WEB)
#: Lifetime of a ticket in seconds -> label.
LIFETIMES = {3600: "In 1 hour", 86_400: "In 1 day", 7 * 86_400: "In 7 days", 90 * 86_400: "In 90 days"}
_LABEL = re.compile("[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_MOST_USES = 10_000
_DONE = {"revoked": "Ticket revoked. Nodes that already joined with it stay."}


class TicketForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str = Role.WORKER.value
    uses: str = "1"
    lifetime: str = "3600"
    labels: str = ""
    #: Sent if the box is checked.
    approval: str = ""
    owner: str = ""
    active: str = ""
    networks: str = ""


NOTHING_TYPED = TicketForm()


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketsPage:
    root: str
    is_admin: bool
    #: Valid tickets first.
    tickets: tuple[TicketRow, ...]
    roles: tuple[Role, ...]
    lifetimes: dict[int, str]
    typed: TicketForm = NOTHING_TYPED
    created: NewTicket | None = None
    command: str = ""
    problem: errors.AimeshError | None = None


@get(["/nodes/tickets", "/admin/nodes/tickets"])
async def show_tickets(page_request: NamedDependency[PageRequest], done: FromQuery[str] = "") -> Page:
    root = f"{node_view.root_of(page_request.person)}/tickets"
    if page_request.request.scope["path"] != root:
        return page_request.redirect(root)
    notice = rendering.find_notice(done, _DONE)
    try:
        view = _view(page_request, await _tickets(page_request))
    except errors.PeerError as error:
        view = _view(page_request, (), problem=error)
    return page_request.page("admin/tickets.html", view, here=node_view.section(page_request.person), notice=notice)


@post(["/nodes/tickets", "/admin/nodes/tickets"])
async def create_ticket(page_request: NamedDependency[PageRequest]) -> Page:
    """Create a ticket. Responds with the page itself, because a redirect would have to carry the ticket."""
    form = await page_request.read_form(TicketForm)
    try:
        created = await page_request.submit(membership.create_ticket, wanted(form))
    except (errors.CallerError, errors.Unavailable) as error:
        view = _view(page_request, await _tickets_if_there(page_request), typed=form, problem=error)
        return page_request.page("admin/tickets.html", view, here=node_view.section(page_request.person), problem=error)
    return await _show_created(page_request, created)


@post("/admin/nodes/tickets/{ticket_id:str}/rotate")
async def rotate_ticket(page_request: NamedDependency[PageRequest], ticket_id: FromPath[str]) -> Page:
    await page_request.read_form(forms.Confirmation)
    return await _show_created(page_request, await page_request.call(membership.rotate_ticket, membership.RotateTicket(ticket_id)))


async def _show_created(page_request: PageRequest, created: NewTicket) -> Page:
    command = f"{COMMANDS[created.row.role]} {created.ticket}" if created.row.role in COMMANDS else created.ticket
    view = _view(page_request, await _tickets_if_there(page_request), created=created, command=command)
    return page_request.page("admin/tickets.html", view, here=node_view.section(page_request.person), status=HTTPStatus.CREATED)


@post(["/nodes/tickets/{ticket_id:str}/revoke", "/admin/nodes/tickets/{ticket_id:str}/revoke"])
async def revoke_ticket(page_request: NamedDependency[PageRequest], ticket_id: FromPath[str]) -> Page:
    await page_request.read_form(forms.Confirmation)
    await page_request.call(membership.revoke_ticket, membership.RevokeTicket(ticket_id))
    return page_request.redirect(f"{node_view.root_of(page_request.person)}/tickets?done=revoked")


def wanted(form: TicketForm) -> membership.CreateTicket:
    """Convert the form to a request. Raises BadRequest."""
    uses, active = forms.read_limit(form.uses, "max uses"), forms.read_limit(form.active, "active at once")
    if uses is not None and uses > _MOST_USES:
        raise errors.BadRequest(f"a ticket can have at most {_MOST_USES:,} uses", hint="create several tickets")
    if form.role not in (*COMMANDS, *_SERVICES):
        raise errors.BadRequest("unknown role", hint="choose one from the list")
    if form.lifetime not in map(str, LIFETIMES):
        raise errors.BadRequest("unknown lifetime", hint="choose one from the list")
    return membership.CreateTicket(
        Role(form.role),
        uses=uses if active is not None else uses or 1,
        ttl_seconds=int(form.lifetime),
        labels=read_labels(form.labels),
        needs_approval=bool(form.approval),
        owner=form.owner.strip() or None,
        active_most=active,
        networks=tuple(each.strip() for each in form.networks.split(",") if each.strip()),
    )


def read_labels(text: str) -> dict[str, str]:
    """Parse labels such as `room=3, gpu=a100`. Raises BadRequest."""
    pairs = [each.strip().partition("=")[::2] for each in text.split(",") if each.strip()]
    for key, value in pairs:
        if not (_LABEL.fullmatch(key) and _LABEL.fullmatch(value)):
            hint = "use letters, digits, '.', '_', '/' and '-', such as room=3, gpu=a100"
            raise errors.BadRequest(f"invalid label: {key[:63]}={value[:63]}", hint=hint)
    if len(pairs) > 16:
        raise errors.BadRequest("a ticket can have at most 16 labels", hint="remove some")
    return dict(pairs)


async def _tickets(page_request: PageRequest) -> tuple[TicketRow, ...]:
    return _good_first(await page_request.call(membership.list_tickets, membership.ListTickets()))


async def _tickets_if_there(page_request: PageRequest) -> tuple[TicketRow, ...]:
    """Return the tickets, or none if auth is down: show a new ticket even without the list."""
    answer = await page_request.fetch(membership.list_tickets, membership.ListTickets())
    return _good_first(answer) if answer else ()


def _good_first(answer: membership.Tickets) -> tuple[TicketRow, ...]:
    return tuple(sorted(answer.tickets, key=lambda row: row.state is not TicketState.GOOD))


def _view(
    page_request: PageRequest,
    tickets: tuple[TicketRow, ...],
    *,
    typed: TicketForm | None = None,
    created: NewTicket | None = None,
    command: str = "",
    problem: errors.AimeshError | None = None,
) -> TicketsPage:
    root = node_view.root_of(page_request.person)
    is_admin = root != "/nodes"
    return TicketsPage(
        root=root,
        is_admin=is_admin,
        tickets=tickets,
        # Node owners can add workers only.
        roles=(*COMMANDS, *_SERVICES) if is_admin else (Role.WORKER,),
        lifetimes=LIFETIMES,
        typed=typed or NOTHING_TYPED,
        created=created,
        command=command,
        problem=problem,
    )


ROUTES = (show_tickets, create_ticket, revoke_ticket, rotate_ticket)
