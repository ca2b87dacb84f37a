"""Manage the tiers and credits of all organizations. Their owners manage the members on another page."""

import asyncio
from dataclasses import dataclass
from uuid import UUID

from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from services.web import paged_search, rendering
from services.web.http import forms
from services.web.paged_search import PagedSearch, Pager
from services.web.pages.admin import credit_form
from services.web.pages.admin.credit_form import NOTHING_TYPED, CreditsForm
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import ledger, organizations
from shared.types import TenantId, Tier, UserId

_DONE = {"tier": "Tier changed. New requests use its limits.", "credits": "Credits updated."}


@dataclass(frozen=True, slots=True, kw_only=True)
class AllOrganizationsPage:
    organisations: tuple[organizations.Organization, ...]
    search: str
    pager: Pager
    tiers: tuple[Tier, ...]
    problem: errors.AimeshError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminOrganizationPage:
    team: organizations.Organization
    #: None if the gateway did not respond.
    account: ledger.Account | None
    tiers: tuple[Tier, ...]
    typed: CreditsForm
    transfer: str
    problem: errors.AimeshError | None = None


@get("/admin/organisations")
async def show_organisations(
    page_request: NamedDependency[PageRequest], search: FromQuery[str] = "", after: FromQuery[str] = "", done: FromQuery[str] = ""
) -> Page:
    view = await _page_of(page_request, paged_search.read(search, after))
    notice = rendering.find_notice(done, _DONE)
    return page_request.page("admin/organizations.html", view, here="admin", notice=notice)


@post("/admin/organisations/{team_id:uuid}/tier")
async def set_team_tier(page_request: NamedDependency[PageRequest], team_id: FromPath[UUID]) -> Page:
    tier = await page_request.read_field("tier")
    try:
        request = organizations.SetTeamTier(TenantId(team_id), forms.read_choice(Tier, tier, "tier"))
        await page_request.submit(organizations.set_team_tier, request)
    except errors.CallerError as error:
        view = await _page_of(page_request, PagedSearch(), error)
        return page_request.page("admin/organizations.html", view, here="admin", problem=error)
    return page_request.redirect("/admin/organisations?done=tier")


@get("/admin/organisations/{team_id:uuid}")
async def show_organisation(page_request: NamedDependency[PageRequest], team_id: FromPath[UUID], done: FromQuery[str] = "") -> Page:
    view = await _page_of_one(page_request, team_id)
    notice = rendering.find_notice(done, _DONE)
    return page_request.page("admin/organization.html", view, here="admin", notice=notice)


@post("/admin/organisations/{team_id:uuid}/credits")
async def give_credits(page_request: NamedDependency[PageRequest], team_id: FromPath[UUID]) -> Page:
    form = await page_request.read_form(CreditsForm)
    try:
        await credit_form.submit_transfer(page_request, team_id, form)
    except errors.CallerError as error:
        view = await _page_of_one(page_request, team_id, form, error)
        return page_request.page("admin/organization.html", view, here="admin", problem=error)
    return page_request.redirect(f"/admin/organisations/{team_id}?done=credits")


async def _page_of_one(
    page_request: PageRequest, team_id: UUID, typed: CreditsForm = NOTHING_TYPED, problem: errors.AimeshError | None = None
) -> AdminOrganizationPage:
    found, account = await asyncio.gather(
        page_request.call(organizations.get_organisation, organizations.GetOrganization(TenantId(team_id))),
        page_request.fetch(ledger.read_account, ledger.ReadAccount(UserId(team_id))),
    )
    return AdminOrganizationPage(
        team=found.organisation,
        account=account,
        tiers=tuple(Tier),
        typed=typed,
        transfer=typed.transfer or credit_form.new_transfer(),
        problem=problem,
    )


async def _page_of(page_request: PageRequest, wanted: PagedSearch, problem: errors.AimeshError | None = None) -> AllOrganizationsPage:
    place = TenantId(wanted.after) if wanted.after else None
    request = organizations.ListAllOrganizations(paged_search.ROWS_OF_A_PAGE, wanted.search, place)
    found = await page_request.call(organizations.list_all_organisations, request)
    teams = found.organisations
    pager = paged_search.pager("/admin/organisations", wanted, teams[-1].id if teams else None, more=found.more)
    return AllOrganizationsPage(organisations=teams, search=wanted.search, pager=pager, tiers=tuple(Tier), problem=problem)


ROUTES = (show_organisations, show_organisation, set_team_tier, give_credits)
