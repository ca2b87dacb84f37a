"""Manage the user's profile and preferences."""

import asyncio
from dataclasses import dataclass

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web import rendering
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import accounts, gateway
from shared.api.accounts import OwnAccount
from shared.types import ModelName

_DONE = {"saved": "Changes saved."}
THEMES = {"system": "Match device", "light": "Light", "dark": "Dark"}


class ProfileForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    username: str
    email: str


class PreferencesForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: Empty for the mesh default.
    default_model: str = ""
    theme: str = "system"
    #: Sent if the box is checked.
    notify_by_mail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilePage:
    account: OwnAccount
    username: str
    email: str
    problem: errors.AimeshError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencesPage:
    typed: PreferencesForm
    #: The served models and the chosen one; None if the gateway did not respond.
    models: tuple[ModelName, ...] | None
    themes: dict[str, str]
    problem: errors.AimeshError | None = None


@get("/settings")
async def show_profile(page_request: NamedDependency[PageRequest], done: FromQuery[str] = "") -> Page:
    return await _profile(page_request, notice=rendering.find_notice(done, _DONE))


@post("/settings")
async def change_profile(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(ProfileForm)
    try:
        await page_request.submit(accounts.change_profile, accounts.ChangeProfile(form.username.strip(), form.email.strip()))
    except errors.CallerError as error:
        return await _profile(page_request, typed=form, problem=error)
    page_request.forget_session()
    return page_request.redirect("/settings?done=saved")


@get("/settings/preferences")
async def show_preferences(page_request: NamedDependency[PageRequest], done: FromQuery[str] = "") -> Page:
    account, models = await asyncio.gather(
        page_request.call(accounts.get_account, accounts.GetAccount()), page_request.fetch(gateway.list_models, gateway.ListModels())
    )
    chosen = account.preferences
    typed = PreferencesForm(chosen.default_model or "", chosen.theme, "yes" if chosen.notify_by_mail else "")
    return _preferences(page_request, typed, models, notice=rendering.find_notice(done, _DONE))


@post("/settings/preferences")
async def set_preferences(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(PreferencesForm)
    chosen = accounts.Preferences(ModelName(form.default_model) if form.default_model else None, form.theme, bool(form.notify_by_mail))
    try:
        await page_request.submit(accounts.set_preferences, accounts.SetPreferences(chosen))
    except errors.CallerError as error:
        return _preferences(page_request, form, await page_request.fetch(gateway.list_models, gateway.ListModels()), problem=error)
    page_request.forget_session()
    return page_request.redirect("/settings/preferences?done=saved")


async def _profile(
    page_request: PageRequest,
    *,
    typed: ProfileForm | None = None,
    problem: errors.CallerError | None = None,
    notice: rendering.Notice | None = None,
) -> Page:
    account = await page_request.call(accounts.get_account, accounts.GetAccount())
    view = ProfilePage(
        account=account,
        username=typed.username if typed else account.user.username,
        email=typed.email if typed else account.user.email,
        problem=problem,
    )
    return page_request.page("settings/profile.html", view, here="settings", problem=problem, notice=notice)


def _preferences(
    page_request: PageRequest,
    typed: PreferencesForm,
    served: gateway.ServedModels | None,
    *,
    problem: errors.CallerError | None = None,
    notice: rendering.Notice | None = None,
) -> Page:
    models = None
    if served is not None:
        names = [model.name for model in served.models if not model.only_embeds]
        chosen = ModelName(typed.default_model)
        models = (*names, *([chosen] if chosen and chosen not in names else []))
    view = PreferencesPage(typed=typed, models=models, themes=THEMES, problem=problem)
    return page_request.page("settings/preferences.html", view, here="settings", problem=problem, notice=notice)


ROUTES = (show_profile, change_profile, show_preferences, set_preferences)
