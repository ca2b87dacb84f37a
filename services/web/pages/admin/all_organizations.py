"""Manage the tiers and credits of all organizations. Their owners manage the members on another page."""

import asyncio
from dataclasses import dataclass
from typing import ClassVar
from uuid import UUID

from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from services.web import paged_search
from services.web.paged_search import PagedSearch, Pager
from services.web.pages.admin import credit_form
from services.web.pages.admin.credit_form import NOTHING_TYPED, BudgetForm, CreditsForm
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import ledger, organizations
from shared.lists.columns import Column, Listing
from shared.types import PlanName, TenantId, UserId

_DONE = {
    "tier": "Tier changed. New requests use its limits.",
    "credits": "Credits updated.",
    "budget": "Budget changed. New requests use it.",
}

_LISTING: Listing[organizations.Organization] = Listing(
    columns=(
        Column(title="Name", show=lambda row: row.name, wraps=True),
        Column(title="ID", show=lambda row: str(row.id), is_code=True, wraps=True),
        Column(title="Members", show=lambda row: row.members, is_number=True),
        Column(title="Since", show=lambda row: row.created_at, is_day=True),
    ),
    empty="No matching organizations.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllOrganizationsPage:
    organisations: tuple[organizations.Organization, ...]
    listing: ClassVar[Listing[organizations.Organization]] = _LISTING
    search: str
    pager: Pager
    tiers: tuple[PlanName, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminOrganizationPage:
    team: organizations.Organization
    #: None if the gateway did not respond.
    account: ledger.Account | None
    tiers: tuple[PlanName, ...]
    budget: BudgetForm
    typed: CreditsForm
    transfer: str


@get("/admin/organisations")
async def show_organisations(page_request: NamedDependency[PageRequest], search: FromQuery[str] = "", after: FromQuery[str] = "") -> Page:
    return await _list(page_request, paged_search.read(search, after))


@post("/admin/organisations/{team_id:uuid}/tier")
async def set_team_tier(page_request: NamedDependency[PageRequest], team_id: FromPath[UUID]) -> Page:
    tier = await page_request.read_field("tier")
    try:
        await page_request.submit(organizations.set_team_tier, organizations.SetTeamTier(TenantId(team_id), tier))
    except errors.CallerError as error:
        return await _list(page_request, PagedSearch(), error)
    return page_request.redirect("/admin/organisations?done=tier")


@get("/admin/organisations/{team_id:uuid}")
async def show_organisation(page_request: NamedDependency[PageRequest], team_id: FromPath[UUID]) -> Page:
    return await _page(page_request, team_id)


@post("/admin/organisations/{team_id:uuid}/credits")
async def give_credits(page_request: NamedDependency[PageRequest], team_id: FromPath[UUID]) -> Page:
    form = await page_request.read_form(CreditsForm)
    try:
        await credit_form.submit_transfer(page_request, team_id, form)
    except errors.CallerError as error:
        return await _page(page_request, team_id, form, error)
    return page_request.redirect(f"/admin/organisations/{team_id}?done=credits")


@post("/admin/organisations/{team_id:uuid}/budget")
async def set_budget(page_request: NamedDependency[PageRequest], team_id: FromPath[UUID]) -> Page:
    try:
        await credit_form.submit_budget(page_request, team_id)
    except errors.CallerError as error:
        return await _page(page_request, team_id, problem=error)
    return page_request.redirect(f"/admin/organisations/{team_id}?done=budget")


async def _page(
    page_request: PageRequest, team_id: UUID, typed: CreditsForm = NOTHING_TYPED, problem: errors.CallerError | None = None
) -> Page:
    found, account, tiers = await asyncio.gather(
        page_request.call(organizations.get_organisation, organizations.GetOrganization(TenantId(team_id))),
        page_request.fetch(ledger.read_account, ledger.ReadAccount(UserId(team_id))),
        credit_form.find_tiers(page_request),
    )
    transfer = typed.transfer or credit_form.new_transfer()
    view = AdminOrganizationPage(
        team=found.organisation,
        account=account,
        tiers=tiers,
        budget=credit_form.budget_form(found.organisation.budget),
        typed=typed,
        transfer=transfer,
    )
    return page_request.page("admin/organization.html", view, problem=problem, notices=_DONE)


async def _list(page_request: PageRequest, wanted: PagedSearch, problem: errors.CallerError | None = None) -> Page:
    place = TenantId(wanted.after) if wanted.after else None
    request = organizations.ListAllOrganizations(paged_search.ROWS_OF_A_PAGE, wanted.search, place)
    found, tiers = await asyncio.gather(
        page_request.call(organizations.list_all_organisations, request), credit_form.find_tiers(page_request)
    )
    teams = found.organisations
    pager = paged_search.pager("/admin/organisations", wanted, teams[-1].id if teams else None, more=found.more)
    view = AllOrganizationsPage(organisations=teams, search=wanted.search, pager=pager, tiers=tiers)
    return page_request.page("admin/organizations.html", view, problem=problem, notices=_DONE)
