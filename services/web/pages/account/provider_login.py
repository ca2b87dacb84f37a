"""Sign in with the OpenID provider. Auth verifies the response; a cookie binds it to this browser."""

from dataclasses import dataclass

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web import request_context
from services.web.pages.account import provider_redirect, signing_in
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import accounts

#: Auth may have to call the provider twice.
PROVIDER_CALL_SECONDS = 15.0


class BeginForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    then: str = ""
    #: Not empty: the provider must ask for the password again.
    fresh: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderPage:
    #: None without a provider.
    oidc_name: str | None
    then: str
    #: Whether the user confirms a sensitive action.
    is_fresh: bool
    is_signed_in: bool


@get("/login/oidc")
async def show_provider(page_request: NamedDependency[PageRequest], then: FromQuery[str] = "", fresh: FromQuery[str] = "") -> Page:
    """Show only the provider button, to retry or to confirm a sensitive action without a password."""
    await page_request.find_session()
    return await _page(page_request, BeginForm(request_context.own_page(then), fresh))


@post("/login/oidc")
async def begin(page_request: NamedDependency[PageRequest]) -> Page:
    is_person = await page_request.find_session() is not None
    form = await page_request.read_form(BeginForm, by_visitor=not is_person)
    wanted = accounts.BeginOidc(provider_redirect.callback(page_request), then=request_context.own_page(form.then), fresh=bool(form.fresh))
    try:
        start = await page_request.app.caller.call(accounts.begin_oidc, wanted, deadline_seconds=PROVIDER_CALL_SECONDS)
    except errors.CallerError as error:
        return await _page(page_request, form, error)
    return provider_redirect.begin(page_request, start)


@get("/login/oidc/back")
async def finish(page_request: NamedDependency[PageRequest]) -> Page:
    """Handle the provider's redirect. Unknown query parameters are ignored."""
    await page_request.find_session()
    query = page_request.request.query_params
    answer = accounts.FinishOidc(
        state=query.get("state", ""),
        binding=page_request.find_cookie("login") or "",
        code=query.get("code", ""),
        error=query.get("error"),
        issuer=query.get("iss"),
        client=page_request.client(),
    )
    try:
        end = await page_request.app.caller.call(accounts.finish_oidc, answer, deadline_seconds=PROVIDER_CALL_SECONDS)
    except errors.CallerError as refused:
        page_request.set_cookie("login", None)
        return await _page(page_request, BeginForm(), refused)
    # It works once.
    page_request.set_cookie("login", None)
    if end.session is None:
        return page_request.redirect("/settings/security?done=linked")
    # End the previous session: the browser forgets its cookie, so nobody could end it later.
    await signing_in.end_session(page_request)
    page_request.sign_in(end.session)
    return page_request.redirect(signing_in.after_login(end.session, end.then))


async def _page(page_request: PageRequest, form: BeginForm, problem: errors.CallerError | None = None) -> Page:
    options = await signing_in.find_options(page_request)
    is_signed_in = page_request.session is not None
    view = ProviderPage(oidc_name=options.oidc_name, then=form.then, is_fresh=bool(form.fresh), is_signed_in=is_signed_in)
    return page_request.page("login_oidc.html", view, problem=problem)
