"""Manage account security: password, second factor, sessions and linked provider accounts."""

import asyncio
import re
from dataclasses import dataclass

import msgspec
from litestar import get, post
from litestar.di import NamedDependency

from services.web.http import forms
from services.web.pages.account import forgotten_password, iap_login, provider_login, provider_redirect, second_factor, signing_in
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import accounts
from shared.api.accounts import OidcLink, OpenSession, OwnAccount

_HERE = "/settings/security"
_SECOND_FACTOR = f"{_HERE}/second-factor"

_DONE = {
    "password": "Password changed. All other sessions ended.",
    "off": "Second factor disabled. You now sign in with your password only.",
    "ended": "Session ended.",
    "others": "All other sessions ended.",
    "linked": "Account linked. You can now sign in with it.",
    "unlinked": "Link removed. You can no longer sign in with that account.",
}

#: Part of the user agent -> name of the program; the first match wins, because most user agents contain several.
_PROGRAMS = {"Edg": "Edge", "OPR": "Opera", "Firefox": "Firefox", "Chrom": "Chrome", "Safari": "Safari", "aicli": "aicli", "curl": "curl"}
_SYSTEMS = {
    "Android": "Android",
    "iPhone": "iPhone",
    "iPad": "iPad",
    "Windows": "Windows",
    "Mac OS": "Mac",
    "CrOS": "ChromeOS",
    "Linux": "Linux",
}
_MAX_PROGRAM = 40


class PasswordForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    new_password: str
    repeated: str


class LinkForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    issuer: str
    subject: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLine:
    session: OpenSession
    #: Such as "Firefox on Linux".
    program: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityPage:
    account: OwnAccount
    password_min_length: int
    #: This session first, then by last use; None if unavailable.
    sessions: tuple[SessionLine, ...] | None
    #: None if unavailable.
    links: tuple[OidcLink, ...] | None
    #: The login provider's name, or IAP's where the browser comes by it; None without either.
    provider: str | None


@get(_HERE)
async def show_security(page_request: NamedDependency[PageRequest]) -> Page:
    return await _page(page_request)


@post(f"{_HERE}/password")
async def change_password(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(PasswordForm)
    try:
        forgotten_password.check_repeated(form.new_password, form.repeated)
        request = accounts.ChangePassword(form.new_password)
        await page_request.submit(accounts.change_password, request, deadline_seconds=signing_in.PASSWORD_CALL_SECONDS)
    except errors.CallerError as error:
        return await _page(page_request, error)
    return page_request.redirect(f"{_HERE}?done=password")


@post(f"{_SECOND_FACTOR}/begin")
async def begin_second_factor(page_request: NamedDependency[PageRequest]) -> Page:
    """Create and show a seed. This is a POST because a GET must not create one."""
    await page_request.read_form(forms.Confirmation)
    try:
        seed = await page_request.submit(accounts.begin_mfa, accounts.BeginMfa())
    except errors.CallerError as error:
        return await _page(page_request, error)
    return second_factor.show_seed(page_request, second_factor.SeedForm(uri=seed.uri), action=_SECOND_FACTOR)


@post(_SECOND_FACTOR)
async def enable_second_factor(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(second_factor.SeedForm)
    return await second_factor.enable(page_request, form, action=_SECOND_FACTOR, then=_HERE)


@post(f"{_SECOND_FACTOR}/off")
async def disable_second_factor(page_request: NamedDependency[PageRequest]) -> Page:
    code = await page_request.read_field("code")
    try:
        await page_request.submit(accounts.disable_mfa, accounts.DisableMfa(code.strip()))
    except errors.CallerError as error:
        return await _page(page_request, error)
    return page_request.redirect(f"{_HERE}?done=off")


@post(f"{_SECOND_FACTOR}/codes")
async def renew_codes(page_request: NamedDependency[PageRequest]) -> Page:
    await page_request.read_form(forms.Confirmation)
    try:
        codes = await page_request.submit(accounts.renew_recovery_codes, accounts.RenewRecoveryCodes())
    except errors.CallerError as error:
        return await _page(page_request, error)
    return second_factor.show_codes(page_request, codes, then=_HERE, is_new=False)


@post(f"{_HERE}/sessions/end")
async def end_session(page_request: NamedDependency[PageRequest]) -> Page:
    # Empty for all other sessions.
    chosen = await page_request.read_field("id", "")
    try:
        await page_request.call(accounts.end_session, accounts.EndSession(chosen or None))
    except errors.NotFound:
        # The session has already expired.
        pass
    return page_request.redirect(f"{_HERE}?done={'ended' if chosen else 'others'}")


@post(f"{_HERE}/providers/link")
async def link_provider(page_request: NamedDependency[PageRequest]) -> Page:
    await page_request.read_form(forms.Confirmation)
    if (assertion := iap_login.find_assertion(page_request, await signing_in.find_options(page_request))) is not None:
        try:
            await iap_login.link(page_request, assertion)
        except errors.CallerError as error:
            return await _page(page_request, error)
        return page_request.redirect(f"{_HERE}?done=linked")
    wanted = accounts.BeginOidc(provider_redirect.callback(page_request), then=_HERE, session_token=page_request.session_token)
    try:
        start = await page_request.submit(accounts.begin_oidc, wanted, deadline_seconds=provider_login.PROVIDER_CALL_SECONDS)
    except errors.CallerError as error:
        return await _page(page_request, error)
    return provider_redirect.begin(page_request, start)


@post(f"{_HERE}/providers/unlink")
async def unlink_provider(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(LinkForm)
    try:
        await page_request.submit(accounts.remove_oidc_link, accounts.RemoveOidcLink(form.issuer, form.subject))
    except errors.CallerError as error:
        return await _page(page_request, error)
    return page_request.redirect(f"{_HERE}?done=unlinked")


async def _page(page_request: PageRequest, problem: errors.CallerError | None = None) -> Page:
    account, options, sessions, links = await asyncio.gather(
        page_request.call(accounts.get_account, accounts.GetAccount()),
        signing_in.find_options(page_request),
        page_request.fetch(accounts.list_sessions, accounts.ListSessions()),
        page_request.fetch(accounts.list_oidc_links, accounts.ListOidcLinks()),
    )
    view = SecurityPage(
        account=account,
        password_min_length=options.password_min_length,
        sessions=None if sessions is None else session_lines(sessions.sessions),
        links=None if links is None else links.links,
        provider="Google" if iap_login.find_assertion(page_request, options) is not None else account.oidc_name,
    )
    return page_request.page("settings/security.html", view, problem=problem, notices=_DONE)


def session_lines(sessions: tuple[OpenSession, ...]) -> tuple[SessionLine, ...]:
    by_use = sorted(sessions, key=lambda session: (session.is_this, session.last_used_at), reverse=True)
    return tuple(SessionLine(session=session, program=program_of(session.client.agent)) for session in by_use)


def program_of(agent: str) -> str:
    """Return a readable name for a user agent. Unknown ones keep their own name without the version."""
    program = next((name for mark, name in _PROGRAMS.items() if mark in agent), None)
    system = next((name for mark, name in _SYSTEMS.items() if mark in agent), None)
    if program is None:
        program = re.split(r"[/\s]", agent, maxsplit=1)[0][:_MAX_PROGRAM] or "Unknown program"
    return program if system is None else f"{program} on {system}"
