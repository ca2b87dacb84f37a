"""All organisations of the mesh, and the tier of each. Who belongs to one is its owners' to say, on a page of their own."""

from dataclasses import dataclass
from uuid import UUID

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from services.web import rendering
from services.web.pages.admin import choices
from services.web.visits import Page, Visit
from shared import errors
from shared.api import organisations
from shared.types import TenantId, Tier

#: As many as auth gives.
MOST_ORGANISATIONS = 1000
_LONGEST_SEARCH = 200
#: The words that a redirect may bring.
_DONE = {"tier": "The tier is changed. Its limits count from the next request on."}


class TeamTierForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tier: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganisationsPage:
    organisations: tuple[organisations.Organisation, ...]
    search: str
    #: Auth has more than it gives.
    is_cut: bool
    tiers: tuple[Tier, ...]
    problem: errors.AimeshError | None = None


@get("/admin/organisations")
async def show_organisations(visit: NamedDependency[Visit], search: FromQuery[str] = "", done: FromQuery[str] = "") -> Page:
    view = await _page_of(visit, search.strip()[:_LONGEST_SEARCH])
    notice = rendering.Notice(_DONE[done]) if done in _DONE else None
    return visit.page("admin/organisations.html", view, here="admin", notice=notice)


@post("/admin/organisations/{team_id:uuid}/tier")
async def set_team_tier(visit: NamedDependency[Visit], team_id: FromPath[UUID]) -> Page:
    form = await visit.read_form(TeamTierForm)
    try:
        request = organisations.SetTeamTier(TenantId(team_id), choices.read(Tier, form.tier, "tier"))
        await visit.call(organisations.set_team_tier, request)
    except (errors.ConfirmationNeeded, errors.NotAuthenticated):
        raise
    except errors.CallerError as error:
        view = await _page_of(visit, "", error)
        return visit.page("admin/organisations.html", view, here="admin", status=error.status)
    return visit.redirect("/admin/organisations?done=tier")


async def _page_of(visit: Visit, search: str, problem: errors.AimeshError | None = None) -> OrganisationsPage:
    answer = await visit.call(organisations.list_all_organisations, organisations.ListAllOrganisations(limit=MOST_ORGANISATIONS))
    wanted = search.casefold()
    found = tuple(each for each in answer.organisations if wanted in f"{each.name}\n{each.id}".casefold())
    is_cut = len(answer.organisations) >= MOST_ORGANISATIONS
    return OrganisationsPage(organisations=found, search=search, is_cut=is_cut, tiers=tuple(Tier), problem=problem)


ROUTES = (show_organisations, set_team_tier)
