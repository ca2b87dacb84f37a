"""Manage users: search, new accounts, roles, tiers, credits, second factor, and disabling accounts."""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar
from uuid import UUID

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from services.web import paged_search
from services.web.charts import usage_chart
from services.web.http import forms
from services.web.paged_search import Pager
from services.web.pages import quota_view
from services.web.pages.account import signing_in
from services.web.pages.admin import credit_form
from services.web.pages.admin.credit_form import NOTHING_TYPED, BudgetForm, CreditsForm
from services.web.rendering import Notice
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import accounts, auth, gateway, ledger, usage_report
from shared.lists.columns import Listing, Tone
from shared.lists.users import STATES, USERS
from shared.types import PlanName, TenantId, UserId, UserRole

USAGE_DAYS = 30
_DONE: dict[str, str | Notice] = {
    "role": "Role changed. It applies to new requests.",
    "tier": "Tier changed. New requests use its limits.",
    "closed": "Account disabled. Its keys and sessions no longer work.",
    "opened": "Account enabled. Its keys work again.",
    "credits": "Credits updated.",
    "budget": "Budget changed. New requests use it.",
    "added": "User added. Give them the password in person.",
    "mailed": "User added. We emailed them a link to choose a password.",
    "unmailed": Notice("User added, but the email failed. “Forgot your password?” on the sign-in page sends another one.", "warn"),
    "factor": "Second factor removed and sessions ended. The user can sign in with the password and set up a new one.",
}


class NewUserForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    username: str = ""
    email: str = ""
    #: Empty to email a link for choosing one.
    password: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsersPage:
    users: tuple[auth.User, ...]
    listing: ClassVar[Listing[auth.User]] = USERS
    search: str
    pager: Pager


@dataclass(frozen=True, slots=True, kw_only=True)
class UserPage:
    user: auth.User
    is_self: bool
    #: None if the gateway did not respond; the same below.
    account: ledger.Account | None
    quota: quota_view.HourlyQuotaView | None
    usage: usage_report.UsageSummary | None
    usage_days: ClassVar[int] = USAGE_DAYS
    states: ClassVar[Mapping[bool, tuple[str, Tone]]] = STATES
    roles: ClassVar[tuple[UserRole, ...]] = tuple(UserRole)
    tiers: tuple[PlanName, ...]
    budget: BudgetForm
    typed: CreditsForm
    transfer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewUserPage:
    #: Without the password.
    typed: NewUserForm
    password_min_length: int


@get("/admin/users")
async def show_users(page_request: NamedDependency[PageRequest], search: FromQuery[str] = "", after: FromQuery[str] = "") -> Page:
    wanted = paged_search.read(search, after)
    place = UserId(wanted.after) if wanted.after else None
    found = await page_request.call(auth.list_users, auth.ListUsers(paged_search.ROWS_OF_A_PAGE, wanted.search, place))
    pager = paged_search.pager("/admin/users", wanted, found.users[-1].id if found.users else None, more=found.more)
    return page_request.page("admin/users.html", UsersPage(users=found.users, search=wanted.search, pager=pager))


@get("/admin/users/new")
async def show_new_user(page_request: NamedDependency[PageRequest]) -> Page:
    return await _new_user_page(page_request, NewUserForm())


@post("/admin/users/new")
async def add_user(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(NewUserForm)
    # Nobody knows the random password, so the emailed link is the only way in.
    password = form.password or secrets.token_urlsafe(32)
    try:
        async with page_request.take_turn():
            request = auth.RegisterUser(auth.UserData(form.username.strip(), form.email.strip(), password))
            user = await page_request.submit(auth.register_user, request, deadline_seconds=signing_in.PASSWORD_CALL_SECONDS)
    except errors.CallerError as error:
        return await _new_user_page(page_request, form, error)
    done = "added" if form.password else await _invite(page_request, user)
    return page_request.redirect(f"/admin/users/{user.id}?done={done}")


@get("/admin/users/{user_id:uuid}")
async def show_user(page_request: NamedDependency[PageRequest], user_id: FromPath[UUID]) -> Page:
    return await _page(page_request, user_id)


@post("/admin/users/{user_id:uuid}/role")
async def set_role(page_request: NamedDependency[PageRequest], user_id: FromPath[UUID]) -> Page:
    role = await page_request.read_field("role")
    try:
        await page_request.submit(auth.set_role, auth.SetRole(str(user_id), forms.read_choice(UserRole, role, "role")))
    except errors.CallerError as error:
        return await _page(page_request, user_id, error)
    return page_request.redirect(f"/admin/users/{user_id}?done=role")


@post("/admin/users/{user_id:uuid}/tier")
async def set_tier(page_request: NamedDependency[PageRequest], user_id: FromPath[UUID]) -> Page:
    tier = await page_request.read_field("tier")
    try:
        await page_request.submit(auth.set_tier, auth.SetTier(str(user_id), tier))
    except errors.CallerError as error:
        return await _page(page_request, user_id, error)
    return page_request.redirect(f"/admin/users/{user_id}?done=tier")


@post("/admin/users/{user_id:uuid}/active")
async def set_active(page_request: NamedDependency[PageRequest], user_id: FromPath[UUID]) -> Page:
    is_active = await page_request.read_field("active") == "yes"
    try:
        await page_request.submit(auth.set_active, auth.SetActive(str(user_id), is_active))
    except errors.CallerError as error:
        return await _page(page_request, user_id, error)
    return page_request.redirect(f"/admin/users/{user_id}?done={'opened' if is_active else 'closed'}")


@post("/admin/users/{user_id:uuid}/remove-factor")
async def remove_factor(page_request: NamedDependency[PageRequest], user_id: FromPath[UUID]) -> Page:
    await page_request.read_form(forms.Confirmation)
    try:
        await page_request.submit(auth.remove_mfa, auth.RemoveMfa(str(user_id)))
    except errors.CallerError as error:
        return await _page(page_request, user_id, error)
    return page_request.redirect(f"/admin/users/{user_id}?done=factor")


@post("/admin/users/{user_id:uuid}/credits")
async def give_credits(page_request: NamedDependency[PageRequest], user_id: FromPath[UUID]) -> Page:
    form = await page_request.read_form(CreditsForm)
    try:
        await credit_form.submit_transfer(page_request, user_id, form)
    except errors.CallerError as error:
        return await _page(page_request, user_id, error, form)
    return page_request.redirect(f"/admin/users/{user_id}?done=credits")


@post("/admin/users/{user_id:uuid}/budget")
async def set_budget(page_request: NamedDependency[PageRequest], user_id: FromPath[UUID]) -> Page:
    try:
        await credit_form.submit_budget(page_request, user_id)
    except errors.CallerError as error:
        return await _page(page_request, user_id, error)
    return page_request.redirect(f"/admin/users/{user_id}?done=budget")


async def _invite(page_request: PageRequest, user: auth.User) -> str:
    """Request the email. Returns the `done` parameter. The account exists, so a failure is only reported."""
    try:
        await page_request.call(accounts.request_password_reset, accounts.RequestPasswordReset(user.username, page_request.client()))
    except errors.AimeshError:
        return "unmailed"
    return "mailed"


async def _new_user_page(page_request: PageRequest, form: NewUserForm, problem: errors.CallerError | None = None) -> Page:
    options = await signing_in.find_options(page_request)
    view = NewUserPage(typed=NewUserForm(form.username, form.email), password_min_length=options.password_min_length)
    return page_request.page("admin/new_user.html", view, problem=problem)


async def _page(
    page_request: PageRequest, user_id: UUID, problem: errors.CallerError | None = None, typed: CreditsForm = NOTHING_TYPED
) -> Page:
    user = await page_request.call(auth.get_user_called, auth.GetUserCalled(str(user_id)))
    now = page_request.app.now()
    period = msgspec.structs.replace(usage_chart.last_days(now, USAGE_DAYS), tenant_id=TenantId(user.id))
    account, quota, usage, tiers = await asyncio.gather(
        page_request.fetch(ledger.read_account, ledger.ReadAccount(user.id)),
        page_request.fetch(gateway.get_user_quota, gateway.GetUserQuota(user.id)),
        page_request.fetch(usage_report.get_usage_report, period),
        credit_form.find_tiers(page_request),
    )
    view = UserPage(
        user=user,
        is_self=user.id == page_request.person.user.id,
        account=account,
        quota=quota_view.hourly(quota) if quota else None,
        usage=usage,
        tiers=tiers,
        budget=credit_form.budget_form(user.budget),
        typed=typed,
        transfer=typed.transfer or credit_form.new_transfer(),
    )
    return page_request.page("admin/user.html", view, problem=problem, notices=_DONE)
