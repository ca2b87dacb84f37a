"""Manage the user's profile and preferences, and verify their address, which needs no session."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web.http import forms
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import accounts, gateway
from shared.api.accounts import OwnAccount
from shared.types import ModelName

_DONE = {"saved": "Changes saved.", "sent": "Email sent. Open its link within 24 hours."}
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


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyPage:
    code: str = ""
    #: What became of a code: verified, or taken by another account.
    done: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencesPage:
    typed: PreferencesForm
    #: The served models and the chosen one; None if the gateway did not respond.
    models: tuple[ModelName, ...] | None
    themes: ClassVar[Mapping[str, str]] = THEMES


@get("/settings")
async def show_profile(page_request: NamedDependency[PageRequest]) -> Page:
    return await _profile(page_request)


@post("/settings")
async def change_profile(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(ProfileForm)
    try:
        await page_request.submit(accounts.change_profile, accounts.ChangeProfile(form.username.strip(), form.email.strip()))
    except errors.CallerError as error:
        return await _profile(page_request, form, error)
    page_request.forget_session()
    return page_request.redirect("/settings?done=saved")


@get("/verify")
async def show_verify(page_request: NamedDependency[PageRequest], done: FromQuery[str] = "") -> Page:
    return page_request.page("verify.html", VerifyPage(done=done), here="login")


@post("/verify")
async def verify(page_request: NamedDependency[PageRequest]) -> Page:
    code = await page_request.read_field("code", by_visitor=True)
    try:
        verified = await page_request.app.caller.call(accounts.verify_address, accounts.VerifyAddress(code.strip()))
    except errors.CallerError as error:
        return page_request.page("verify.html", VerifyPage(code=code), here="login", problem=error)
    return page_request.redirect(f"/verify?done={'verified' if verified.has_free_tokens else 'taken'}")


@post("/settings/verification")
async def send_verification(page_request: NamedDependency[PageRequest]) -> Page:
    await page_request.read_form(forms.Confirmation)
    try:
        await page_request.submit(accounts.send_verification, accounts.SendVerification())
    except errors.CallerError as error:
        return await _profile(page_request, problem=error)
    return page_request.redirect("/settings?done=sent")


@get("/settings/preferences")
async def show_preferences(page_request: NamedDependency[PageRequest]) -> Page:
    account, models = await asyncio.gather(
        page_request.call(accounts.get_account, accounts.GetAccount()), page_request.fetch(gateway.list_models, gateway.ListModels())
    )
    chosen = account.preferences
    typed = PreferencesForm(chosen.default_model or "", chosen.theme, "yes" if chosen.notify_by_mail else "")
    return _preferences(page_request, typed, models)


@post("/settings/preferences")
async def set_preferences(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(PreferencesForm)
    chosen = accounts.Preferences(ModelName(form.default_model) if form.default_model else None, form.theme, bool(form.notify_by_mail))
    try:
        await page_request.submit(accounts.set_preferences, accounts.SetPreferences(chosen))
    except errors.CallerError as error:
        return _preferences(page_request, form, await page_request.fetch(gateway.list_models, gateway.ListModels()), error)
    page_request.forget_session()
    return page_request.redirect("/settings/preferences?done=saved")


async def _profile(page_request: PageRequest, typed: ProfileForm | None = None, problem: errors.CallerError | None = None) -> Page:
    account = await page_request.call(accounts.get_account, accounts.GetAccount())
    view = ProfilePage(
        account=account,
        username=typed.username if typed else account.user.username,
        email=typed.email if typed else account.user.email,
    )
    return page_request.page("settings/profile.html", view, problem=problem, notices=_DONE)


def _preferences(
    page_request: PageRequest,
    typed: PreferencesForm,
    served: gateway.ServedModels | None,
    problem: errors.CallerError | None = None,
) -> Page:
    models = None
    if served is not None:
        names = [model.name for model in served.models if not model.only_embeds]
        chosen = ModelName(typed.default_model)
        models = (*names, *([chosen] if chosen and chosen not in names else []))
    view = PreferencesPage(typed=typed, models=models)
    return page_request.page("settings/preferences.html", view, problem=problem, notices=_DONE)
