"""Manage the tiers and credits of all organizations. Their owners manage the members on another page."""

import asyncio
from dataclasses import dataclass
from uuid import UUID

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from services.web import rendering, searched_lists
from services.web.pages.admin import choices, crediting
from services.web.pages.admin.crediting import NOTHING_TYPED, CreditsForm
from services.web.searched_lists import Pager, Wanted
from services.web.visits import Page, Visit
from shared import errors
from shared.api import ledger, organizations
from shared.types import TenantId, Tier, UserId

#: `done` parameter of a redirect -> notice.
_DONE = {"tier": "Tier changed. New requests use its limits.", "credits": "Credits updated."}


class TeamTierForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tier: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganisationsPage:
    organisations: tuple[organizations.Organization, ...]
    search: str
    pager: Pager
    tiers: tuple[Tier, ...]
    problem: errors.AimeshError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganisationPage:
    team: organizations.Organization
    #: None if the gateway did not respond.
    account: ledger.Account | None
    tiers: tuple[Tier, ...]
    typed: CreditsForm
    transfer: str
    problem: errors.AimeshError | None = None


@get("/admin/organisations")
async def show_organisations(
    visit: NamedDependency[Visit], search: FromQuery[str] = "", after: FromQuery[str] = "", done: FromQuery[str] = ""
) -> Page:
    view = await _page_of(visit, searched_lists.read(search, after))
    notice = rendering.Notice(_DONE[done]) if done in _DONE else None
    return visit.page("admin/organisations.html", view, here="admin", notice=notice)


@post("/admin/organisations/{team_id:uuid}/tier")
async def set_team_tier(visit: NamedDependency[Visit], team_id: FromPath[UUID]) -> Page:
    form = await visit.read_form(TeamTierForm)
    try:
        request = organizations.SetTeamTier(TenantId(team_id), choices.read(Tier, form.tier, "tier"))
        await visit.call(organizations.set_team_tier, request)
    except (errors.ConfirmationNeeded, errors.NotAuthenticated):
        raise
    except errors.CallerError as error:
        view = await _page_of(visit, Wanted(), error)
        return visit.page("admin/organisations.html", view, here="admin", status=error.status)
    return visit.redirect("/admin/organisations?done=tier")


@get("/admin/organisations/{team_id:uuid}")
async def show_organisation(visit: NamedDependency[Visit], team_id: FromPath[UUID], done: FromQuery[str] = "") -> Page:
    view = await _page_of_one(visit, team_id)
    notice = rendering.Notice(_DONE[done]) if done in _DONE else None
    return visit.page("admin/organisation.html", view, here="admin", notice=notice)


@post("/admin/organisations/{team_id:uuid}/credits")
async def give_credits(visit: NamedDependency[Visit], team_id: FromPath[UUID]) -> Page:
    form = await visit.read_form(CreditsForm)
    try:
        await crediting.book(visit, team_id, form)
    except (errors.ConfirmationNeeded, errors.NotAuthenticated):
        raise
    except errors.CallerError as error:
        view = await _page_of_one(visit, team_id, form, error)
        return visit.page("admin/organisation.html", view, here="admin", status=error.status)
    return visit.redirect(f"/admin/organisations/{team_id}?done=credits")


async def _page_of_one(
    visit: Visit, team_id: UUID, typed: CreditsForm = NOTHING_TYPED, problem: errors.AimeshError | None = None
) -> OrganisationPage:
    found, account = await asyncio.gather(
        visit.call(organizations.get_organisation, organizations.GetOrganization(TenantId(team_id))),
        visit.ask(ledger.read_account, ledger.ReadAccount(UserId(team_id))),
    )
    return OrganisationPage(
        team=found.organisation,
        account=account,
        tiers=tuple(Tier),
        typed=typed,
        transfer=typed.transfer or crediting.new_transfer(),
        problem=problem,
    )


async def _page_of(visit: Visit, wanted: Wanted, problem: errors.AimeshError | None = None) -> OrganisationsPage:
    place = TenantId(wanted.after) if wanted.after else None
    request = organizations.ListAllOrganizations(searched_lists.ROWS_OF_A_PAGE, wanted.search, place)
    found = await visit.call(organizations.list_all_organisations, request)
    teams = found.organisations
    pager = searched_lists.pager("/admin/organisations", wanted, teams[-1].id if teams else None, more=found.more)
    return OrganisationsPage(organisations=teams, search=wanted.search, pager=pager, tiers=tuple(Tier), problem=problem)


ROUTES = (show_organisations, show_organisation, set_team_tier, give_credits)
