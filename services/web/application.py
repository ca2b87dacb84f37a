"""Build the Litestar application of the pages: routes and error handlers."""

import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import ModuleType
from urllib.parse import urlencode

from litestar import HttpMethod, Litestar, MediaType
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.types import ExceptionHandlersMap

from services.web import features, page_access, pages, request_context
from services.web.http import forms, json_errors
from services.web.pages.account import signing_in
from services.web.request_context import App, ConfirmFirst, HttpRequest, Page, PageRequest, SignInFirst, StepFirst
from shared import context, errors
from shared.api import accounts
from shared.telemetry import logs

_log = logs.get(part="pages")

#: A parameter in a route pattern, and what each type of it matches.
_PARAMETER = re.compile(r"\{\w+(?::(\w+))?\}")
_KINDS = {"uuid": "[0-9A-Fa-f-]{36}"}


def _own_pages() -> Iterator[ModuleType]:
    """Import every module of ``pages``: those without handlers serve nothing."""
    for found in pkgutil.walk_packages(pages.__path__, f"{pages.__name__}."):
        yield importlib.import_module(found.name)


_PAGES = (*_own_pages(), *(page for part in features.parts() for page in part.pages))
#: Each once, as a module may import another one's.
ROUTES = tuple(dict.fromkeys(handler for page in _PAGES for handler in vars(page).values() if isinstance(handler, HTTPRouteHandler)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmPage:
    #: The action to repeat, and the submitted fields.
    action: str
    fields: Mapping[str, str]
    #: None if auth did not report how this user can confirm an action.
    account: accounts.OwnAccount | None

    @property
    def by_code(self) -> bool:
        return self.account is None or self.account.mfa_enabled

    @property
    def by_password(self) -> bool:
        """Return whether the password can confirm: not with a second factor."""
        return self.account is None or (self.account.has_password and not self.account.mfa_enabled)

    @property
    def provider(self) -> str | None:
        return None if self.account is None or self.account.mfa_enabled else self.account.oidc_name


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorPage:
    status: int
    message: str
    hint: str
    request_id: str


def build(app: App) -> Litestar:
    """Build the application. Raises ValueError for a route without a row in page_access.py."""

    async def page_request(request: HttpRequest) -> PageRequest:
        request.state.page_request = made = PageRequest(app, request)
        await made.admit()
        return made

    failures = Failures(app)
    handlers: ExceptionHandlersMap = {
        SignInFirst: failures.sign_in_first,
        StepFirst: failures.step_first,
        ConfirmFirst: failures.confirm_first,
        errors.NotAuthenticated: failures.sign_in_first,
        errors.ConfirmationNeeded: failures.confirmation_needed,
        errors.AimeshError: failures.refused,
        HTTPException: failures.not_http,
        Exception: failures.bug,
    }
    application = Litestar(
        route_handlers=list(ROUTES),
        dependencies={"page_request": Provide(page_request)},
        exception_handlers=handlers,
        request_max_body_size=forms.MAX_BODY_BYTES,
        signature_types=[PageRequest],
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
    for route in application.routes:
        page_access.find_audience(route.path)
    return application


class Failures:
    """Turns exceptions into error pages, or into JSON for clients that sent JSON."""

    def __init__(self, app: App) -> None:
        self._app = app

    def sign_in_first(self, request: HttpRequest, error: Exception) -> Page:
        if isinstance(error, errors.AimeshError) and _sent_json(request):
            return self.refused(request, error)
        page_request = self._find_page_request(request)
        if page_request.session_token is not None:
            page_request.sign_out()
        path = request.scope["path"]
        words = {}
        if request.method == "GET" and request_context.own_page(path) == path:
            words["then"] = path
        if page_request.session_token is not None:
            # The session was valid earlier, so tell the user that it ended.
            words["done"] = "ended" if request.method == "GET" else "undone"
        return page_request.redirect(f"/login?{urlencode(words, safe='/')}" if words else "/login")

    def step_first(self, request: HttpRequest, error: StepFirst) -> Page:
        page_request = self._find_page_request(request)
        return page_request.redirect(signing_in.after_login(page_request.person, request.scope["path"] if request.method == "GET" else ""))

    def confirmation_needed(self, request: HttpRequest, error: errors.ConfirmationNeeded) -> Page:
        return self.refused(request, error) if _sent_json(request) else self.confirm_first(request, ConfirmFirst())

    def confirm_first(self, request: HttpRequest, error: ConfirmFirst) -> Page:
        """Return the confirmation page. It carries the submitted fields, so the action runs once the user confirms."""
        page_request = self._find_page_request(request)
        kept = {name: value for name, value in page_request.posted.items() if name not in ("token", "confirm_password", "confirm_code")}
        view = ConfirmPage(action=request.scope["path"], fields=kept, account=page_request.account)
        return page_request.page("confirm.html", view, here="", status=HTTPStatus.FORBIDDEN, problem=error.problem)

    def _find_page_request(self, request: HttpRequest) -> PageRequest:
        """Return the PageRequest that the dependency made, or a new one if it failed first."""
        found: PageRequest | None = getattr(request.state, "page_request", None)
        return found or PageRequest(self._app, request)

    def refused(self, request: HttpRequest, error: errors.AimeshError) -> Page:
        if _sent_json(request):
            answer = Page(json_errors.to_json(error), media_type=MediaType.JSON, status_code=json_errors.status(error))
        else:
            current = context.current.get()
            view = ErrorPage(
                status=json_errors.status(error),
                message=error.message,
                hint=error.hint,
                request_id=str(current.request_id) if current else "",
            )
            answer = self._find_page_request(request).page("error.html", view, here="error", status=view.status)
        if after := json_errors.retry_after(error):
            answer.headers["Retry-After"] = after
        return answer

    def not_http(self, request: HttpRequest, error: HTTPException) -> Page:
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and request.method == "GET" and _wants_html(request):
            return self._find_page_request(request).redirect(find_readable_parent(request.scope["path"], _READABLE))
        kind = _KIND_OF_STATUS.get(error.status_code, errors.BadRequest)
        answer = self.refused(request, kind(_MESSAGE_OF_STATUS.get(error.status_code, "this page cannot handle the request")))
        answer.headers.update({name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"})
        return answer

    def bug(self, request: HttpRequest, error: Exception) -> Page:
        """Log an unexpected exception once. The user sees only the request id."""
        _log.error("page failed", path=request.scope["path"], exc_info=error)
        return self.refused(
            request,
            errors.Internal(
                "something went wrong on our side", hint="try again in a moment; if it keeps failing, send an administrator the request ID"
            ),
        )


#: The route patterns that answer GET.
_READABLE = tuple(path for route in ROUTES if HttpMethod.GET in route.http_methods for path in route.paths)
_KIND_OF_STATUS: dict[int, type[errors.AimeshError]] = {
    HTTPStatus.NOT_FOUND: errors.NotFound,
    HTTPStatus.METHOD_NOT_ALLOWED: errors.MethodNotAllowed,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: errors.TooLarge,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: errors.UnsupportedMedia,
    HTTPStatus.INTERNAL_SERVER_ERROR: errors.Internal,
}
_MESSAGE_OF_STATUS: dict[int, str] = {
    HTTPStatus.NOT_FOUND: "page not found",
    HTTPStatus.METHOD_NOT_ALLOWED: "this page does not support that request method",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "the request is too large for this page",
    HTTPStatus.INTERNAL_SERVER_ERROR: "something went wrong on our side",
}


def _wants_html(request: HttpRequest) -> bool:
    """Return whether a browser asks for a page to display. Programs get the error instead."""
    return "text/html" in request.headers.get("accept", "")


def _sent_json(request: HttpRequest) -> bool:
    return request_context.media_type(request) == "application/json"


def find_readable_parent(path: str, readable: Iterable[str]) -> str:
    """Return the page to redirect to when a browser sends GET to a path that only accepts forms, as after a reload in another tab.

    It is the closest parent path that matches a readable route pattern, because that page has the form. The root always matches.
    """
    pages = [_compiled(pattern) for pattern in readable]
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        if any(page.fullmatch(path) for page in pages):
            break
    return path


def _compiled(pattern: str) -> re.Pattern[str]:
    pieces = (
        _KINDS.get(found or "", "[^/]+") if number % 2 else re.escape(found) for number, found in enumerate(_PARAMETER.split(pattern))
    )
    return re.compile("".join(pieces))
