"""The people of the mesh: find somebody, say what they may do and use, give them credits, close an account."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from services.web import forms, rendering, views
from services.web.pages.admin import choices
from services.web.visits import Page, Visit
from shared import amounts, context, errors
from shared.api import auth, gateway, ledger, usage_report
from shared.types import MicroCredits, RequestId, TenantId, Tier, UserId, UserRole

#: As many as auth gives; the newest.
MOST_USERS = 1000
USAGE_DAYS = 30
_LONGEST_SEARCH = 200
#: The words that a redirect may bring.
_DONE = {
    "role": "The role is changed. It counts from the next request on.",
    "tier": "The tier is changed. Its limits count from the next request on.",
    "closed": "The account is closed. Its keys and sessions do not work any more.",
    "opened": "The account is open again, with its keys.",
    "credits": "The credits are booked.",
    "factor": "The second factor is removed. Their sessions are over; they log in with the password and set a new one up.",
}


class RoleForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str


class TierForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tier: str


class ActiveForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: yes or no.
    active: str


class CreditsForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    amount: str = ""
    note: str = ""
    #: Made with the page: the same form twice, by a reload or a lost answer, is booked once.
    transfer: str = ""


NO_CREDITS = CreditsForm()


@dataclass(frozen=True, slots=True, kw_only=True)
class UsersPage:
    users: tuple[auth.User, ...]
    search: str
    #: Auth has more than it gives, and so the search did not see all.
    is_cut: bool
    problem: errors.AimeshError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UserPage:
    user: auth.User
    is_self: bool
    #: None where the gateway did not answer; so too below.
    account: ledger.Account | None
    quota: views.Quota | None
    usage: usage_report.UsageReport | None
    usage_days: int
    roles: tuple[UserRole, ...]
    tiers: tuple[Tier, ...]
    typed: CreditsForm
    transfer: str
    problem: errors.AimeshError | None = None


@get("/admin/users")
async def show_users(visit: NamedDependency[Visit], search: FromQuery[str] = "") -> Page:
    answer = await visit.call(auth.list_users, auth.ListUsers(limit=MOST_USERS))
    search = search.strip()[:_LONGEST_SEARCH]
    found = matching(answer.users, search)
    is_cut = len(answer.users) >= MOST_USERS
    if search and not found and is_cut:
        found = await _by_exact_name(visit, search)
    view = UsersPage(users=found, search=search, is_cut=is_cut)
    return visit.page("admin/users.html", view, here="admin")


@get("/admin/users/{user_id:uuid}")
async def show_user(visit: NamedDependency[Visit], user_id: FromPath[UUID], done: FromQuery[str] = "") -> Page:
    view = await _page_of(visit, user_id)
    return visit.page("admin/user.html", view, here="admin", notice=rendering.Notice(_DONE[done]) if done in _DONE else None)


@post("/admin/users/{user_id:uuid}/role")
async def set_role(visit: NamedDependency[Visit], user_id: FromPath[UUID]) -> Page:
    form = await visit.read_form(RoleForm)
    try:
        await visit.call(auth.set_role, auth.SetRole(str(user_id), choices.read(UserRole, form.role, "role")))
    except errors.CallerError as error:
        return await _refused(visit, user_id, error)
    return visit.redirect(f"/admin/users/{user_id}?done=role")


@post("/admin/users/{user_id:uuid}/tier")
async def set_tier(visit: NamedDependency[Visit], user_id: FromPath[UUID]) -> Page:
    form = await visit.read_form(TierForm)
    try:
        await visit.call(auth.set_tier, auth.SetTier(str(user_id), choices.read(Tier, form.tier, "tier")))
    except errors.CallerError as error:
        return await _refused(visit, user_id, error)
    return visit.redirect(f"/admin/users/{user_id}?done=tier")


@post("/admin/users/{user_id:uuid}/active")
async def set_active(visit: NamedDependency[Visit], user_id: FromPath[UUID]) -> Page:
    form = await visit.read_form(ActiveForm)
    is_active = form.active == "yes"
    try:
        await visit.call(auth.set_active, auth.SetActive(str(user_id), is_active))
    except errors.CallerError as error:
        return await _refused(visit, user_id, error)
    return visit.redirect(f"/admin/users/{user_id}?done={'opened' if is_active else 'closed'}")


@post("/admin/users/{user_id:uuid}/remove-factor")
async def remove_factor(visit: NamedDependency[Visit], user_id: FromPath[UUID]) -> Page:
    await visit.read_form(forms.Confirmation)
    try:
        await visit.call(auth.remove_mfa, auth.RemoveMfa(str(user_id)))
    except errors.CallerError as error:
        return await _refused(visit, user_id, error)
    return visit.redirect(f"/admin/users/{user_id}?done=factor")


@post("/admin/users/{user_id:uuid}/credits")
async def give_credits(visit: NamedDependency[Visit], user_id: FromPath[UUID]) -> Page:
    form = await visit.read_form(CreditsForm)
    try:
        request = ledger.TopUp(str(user_id), read_amount(form.amount), note=form.note.strip(), transfer_id=read_transfer(form.transfer))
        await visit.call(ledger.top_up, request)
    except errors.CallerError as error:
        return await _refused(visit, user_id, error, form)
    return visit.redirect(f"/admin/users/{user_id}?done=credits")


def matching(users: tuple[auth.User, ...], search: str) -> tuple[auth.User, ...]:
    """By a part of the name or the address, or by the id."""
    wanted = search.casefold()
    return tuple(user for user in users if wanted in f"{user.username}\n{user.email}\n{user.id}".casefold())


def read_amount(text: str) -> MicroCredits:
    """Raises BadRequest. Below zero takes back."""
    try:
        amount = amounts.read(text)
    except ValueError as error:
        raise errors.BadRequest(f"credits: {error}") from error
    if not amount:
        raise errors.BadRequest("credits: 0 changes nothing", hint="an amount below zero takes credits back")
    return amount


def read_transfer(text: str) -> RequestId:
    try:
        return RequestId(UUID(text))
    except ValueError:
        raise errors.BadRequest("the form has lost its number", hint="open the page again and send the form from there") from None


async def _by_exact_name(visit: Visit, name: str) -> tuple[auth.User, ...]:
    try:
        return (await visit.call(auth.get_user_called, auth.GetUserCalled(name)),)
    except errors.NotFound:
        return ()


async def _refused(visit: Visit, user_id: UUID, error: errors.CallerError, typed: CreditsForm = NO_CREDITS) -> Page:
    """The page again, with what was typed and why it was not done. Raises what the application itself has to see."""
    if isinstance(error, errors.ConfirmationNeeded | errors.NotAuthenticated):
        raise error
    view = await _page_of(visit, user_id, typed, error)
    return visit.page("admin/user.html", view, here="admin", status=error.status)


async def _page_of(visit: Visit, user_id: UUID, typed: CreditsForm = NO_CREDITS, problem: errors.AimeshError | None = None) -> UserPage:
    user = await visit.call(auth.get_user_called, auth.GetUserCalled(str(user_id)))
    now = visit.site.now()
    account, quota, usage = await asyncio.gather(
        visit.ask(ledger.read_account, ledger.ReadAccount(user.id)),
        visit.ask(gateway.get_user_quota, gateway.GetUserQuota(user.id)),
        visit.ask(usage_report.get_usage_report, _of_last_days(user.id, now)),
    )
    return UserPage(
        user=user,
        is_self=user.id == visit.person.user.id,
        account=account,
        quota=views.quota(quota, now) if quota else None,
        usage=usage,
        usage_days=USAGE_DAYS,
        roles=tuple(UserRole),
        tiers=tuple(Tier),
        typed=typed,
        transfer=typed.transfer or str(context.new_request_id()),
        problem=problem,
    )


def _of_last_days(user_id: UserId, now: datetime) -> usage_report.GetUsageReport:
    """Of whole days, today's with them."""
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    until = today + timedelta(days=1)
    return usage_report.GetUsageReport(until - timedelta(days=USAGE_DAYS), until, tenant_id=TenantId(user_id))


ROUTES = (show_users, show_user, set_role, set_tier, set_active, remove_factor, give_credits)
