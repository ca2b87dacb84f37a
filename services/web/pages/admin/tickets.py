"""Tickets: lines that let a machine in. A new one is in the answer to the form that made it, and nowhere else."""

import re
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from services.web import forms, rendering
from services.web.pages.admin import machine_paths
from services.web.visits import Page, Visit
from shared import errors
from shared.api import membership
from shared.api.membership import NewTicket, TicketRow, TicketState
from shared.types import Role

#: What a machine can join as with a ticket, and the command that does it there; as `aicli admin tickets create` says.
COMMANDS = {Role.WORKER: "aicli worker --join", Role.CLIENT: "aicli mesh connect"}
#: How long a ticket may be good, in seconds -> the words for it.
LIFETIMES = {3600: "1 hour", 86_400: "1 day", 7 * 86_400: "7 days"}
_LABEL = re.compile("[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_MOST_USES = 10_000
#: The words that a redirect may bring.
_DONE = {"revoked": "The ticket is revoked. Machines that came in with it stay."}


class TicketForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str = Role.WORKER.value
    uses: str = "1"
    #: In seconds.
    lifetime: str = "3600"
    labels: str = ""
    #: What a ticked box sends; nothing where it is not ticked.
    approval: str = ""
    owner: str = ""


NOTHING_TYPED = TicketForm()


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketsPage:
    root: str
    is_admin: bool
    #: Good ones first, as auth sorts them otherwise.
    tickets: tuple[TicketRow, ...]
    roles: tuple[Role, ...]
    lifetimes: dict[int, str]
    typed: TicketForm = NOTHING_TYPED
    created: NewTicket | None = None
    #: What to type on the machine.
    command: str = ""
    problem: errors.AimeshError | None = None


@get(["/nodes/tickets", "/admin/nodes/tickets"])
async def show_tickets(visit: NamedDependency[Visit], done: FromQuery[str] = "") -> Page:
    root = f"{machine_paths.root_of(visit)}/tickets"
    if visit.request.scope["path"] != root:
        return visit.redirect(root)
    notice = rendering.Notice(_DONE[done]) if done in _DONE else None
    try:
        view = _view(visit, await _tickets(visit))
    except errors.PeerError as error:
        view = _view(visit, (), problem=error)
    return visit.page("admin/tickets.html", view, here=machine_paths.here_of(visit), notice=notice)


@post(["/nodes/tickets", "/admin/nodes/tickets"])
async def create_ticket(visit: NamedDependency[Visit]) -> Page:
    """Answers with the page itself: a redirect would have to carry the ticket somewhere."""
    form = await visit.read_form(TicketForm)
    try:
        created = await visit.call(membership.create_ticket, wanted(form))
    except (errors.ConfirmationNeeded, errors.NotAuthenticated):
        raise
    except (errors.CallerError, errors.Unavailable) as error:
        return _page(visit, _view(visit, await _tickets_if_there(visit), typed=form, problem=error), error.status)
    command = f"{COMMANDS.get(created.row.role, COMMANDS[Role.WORKER])} {created.ticket}"
    view = _view(visit, await _tickets_if_there(visit), created=created, command=command)
    return _page(visit, view, HTTPStatus.CREATED)


@post(["/nodes/tickets/{ticket_id:str}/revoke", "/admin/nodes/tickets/{ticket_id:str}/revoke"])
async def revoke_ticket(visit: NamedDependency[Visit], ticket_id: FromPath[str]) -> Page:
    await visit.read_form(forms.Confirmation)
    await visit.call(membership.revoke_ticket, membership.RevokeTicket(ticket_id))
    return visit.redirect(f"{machine_paths.root_of(visit)}/tickets?done=revoked")


def wanted(form: TicketForm) -> membership.CreateTicket:
    """Raises BadRequest for what cannot be meant."""
    uses = forms.read_limit(form.uses, "uses") or 1
    if uses > _MOST_USES:
        raise errors.BadRequest(f"uses: at most {_MOST_USES:,}", hint="make another ticket for the rest")
    if form.role not in COMMANDS:
        raise errors.BadRequest("role: a machine joins as a worker or a client", hint="choose one of them")
    if form.lifetime not in map(str, LIFETIMES):
        raise errors.BadRequest("lifetime: not one of those on the page", hint="choose one of them")
    return membership.CreateTicket(
        Role(form.role),
        uses=uses,
        ttl_seconds=int(form.lifetime),
        labels=read_labels(form.labels),
        needs_approval=bool(form.approval),
        owner=form.owner.strip() or None,
    )


def read_labels(text: str) -> dict[str, str]:
    """KEY=VALUE, several with commas. Raises BadRequest."""
    pairs = [each.strip().partition("=")[::2] for each in text.split(",") if each.strip()]
    for key, value in pairs:
        if not (_LABEL.fullmatch(key) and _LABEL.fullmatch(value)):
            hint = "use letters, digits, '.', '_', '/' and '-', as in room=3, gpu=a100"
            raise errors.BadRequest(f"labels: {key[:63]}={value[:63]} is not KEY=VALUE", hint=hint)
    if len(pairs) > 16:
        raise errors.BadRequest("labels: more than 16", hint="leave some out")
    return dict(pairs)


async def _tickets(visit: Visit) -> tuple[TicketRow, ...]:
    return _good_first(await visit.call(membership.list_tickets, membership.ListTickets()))


async def _tickets_if_there(visit: Visit) -> tuple[TicketRow, ...]:
    """Beside what was asked for: the new ticket is shown whether or not the list can be had."""
    answer = await visit.ask(membership.list_tickets, membership.ListTickets())
    return _good_first(answer) if answer else ()


def _good_first(answer: membership.Tickets) -> tuple[TicketRow, ...]:
    return tuple(sorted(answer.tickets, key=lambda row: row.state is not TicketState.GOOD))


def _view(
    visit: Visit,
    tickets: tuple[TicketRow, ...],
    *,
    typed: TicketForm | None = None,
    created: NewTicket | None = None,
    command: str = "",
    problem: errors.AimeshError | None = None,
) -> TicketsPage:
    root = machine_paths.root_of(visit)
    is_admin = root != "/nodes"
    return TicketsPage(
        root=root,
        is_admin=is_admin,
        tickets=tickets,
        # Whoever is no administrator lends machines, and nothing else.
        roles=tuple(COMMANDS) if is_admin else (Role.WORKER,),
        lifetimes=LIFETIMES,
        typed=typed or NOTHING_TYPED,
        created=created,
        command=command,
        problem=problem,
    )


def _page(visit: Visit, view: TicketsPage, status: int) -> Page:
    return visit.page("admin/tickets.html", view, here=machine_paths.here_of(visit), status=status)


ROUTES = (show_tickets, create_ticket, revoke_ticket)
