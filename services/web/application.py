"""The Litestar application of the pages: its routes, and what happens when one of them raises."""

from http import HTTPStatus

from litestar import Litestar, MediaType
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.types import ExceptionHandlersMap

from services.web import accounts, api_keys, forms, pages, problems, views, visits
from services.web.visits import HttpRequest, Page, SignInFirst, Site, Visit
from shared import context, errors
from shared.telemetry import logs

_log = logs.get(part="pages")

ROUTES = (
    pages.landing,
    pages.dashboard,
    pages.static,
    accounts.show_register,
    accounts.register,
    accounts.show_login,
    accounts.login,
    accounts.logout,
    accounts.show_login_link,
    accounts.redeem_login_link,
    api_keys.show_api_keys,
    api_keys.create_api_key,
    api_keys.ask_revoke,
    api_keys.revoke_api_key,
)


def build(site: Site) -> Litestar:
    def visit(request: HttpRequest) -> Visit:
        return Visit(site, request)

    failures = Failures(site)
    handlers: ExceptionHandlersMap = {
        SignInFirst: failures.sign_in_first,
        errors.NotAuthenticated: failures.sign_in_first,
        errors.AimeshError: failures.refused,
        HTTPException: failures.not_http,
        Exception: failures.bug,
    }
    return Litestar(
        route_handlers=list(ROUTES),
        dependencies={"visit": Provide(visit, sync_to_thread=False)},
        exception_handlers=handlers,
        request_max_body_size=forms.MAX_BODY_BYTES,
        signature_types=[Visit],
        openapi_config=None,
        logging_config=None,
        debug=False,
    )


class Failures:
    """Answers for requests that a page could not answer: a page in the same look, or JSON to those who sent JSON."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def sign_in_first(self, request: HttpRequest, error: Exception) -> Page:
        if isinstance(error, errors.AimeshError) and _sent_json(request):
            return self.refused(request, error)
        visit = Visit(self._site, request)
        if visit.session_token is not None:
            visit.sign_out()
        path = request.scope["path"]
        return visit.redirect(f"/login?then={path}" if path in visits.AFTER_LOGIN else "/login")

    def refused(self, request: HttpRequest, error: errors.AimeshError) -> Page:
        if _sent_json(request):
            answer = Page(problems.to_json(error), media_type=MediaType.JSON, status_code=problems.status(error))
        else:
            answer = self._page(request, problems.status(error), error.message, error.hint)
        if after := problems.retry_after(error):
            answer.headers["Retry-After"] = after
        return answer

    def not_http(self, request: HttpRequest, error: HTTPException) -> Page:
        kind = _KIND_OF_STATUS.get(error.status_code, errors.BadRequest)
        answer = self.refused(request, kind(_MESSAGE_OF_STATUS.get(error.status_code, "the request does not fit this page")))
        answer.headers.update({name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"})
        return answer

    def bug(self, request: HttpRequest, error: Exception) -> Page:
        """The last resort: logged once here, and the visitor learns only the request id."""
        _log.error("page failed", path=request.scope["path"], exc_info=error)
        return self.refused(request, errors.Internal("something went wrong on our side", hint="try again in a moment"))

    def _page(self, request: HttpRequest, status: int, message: str, hint: str) -> Page:
        current = context.current.get()
        request_id = str(current.request_id) if current else ""
        view = views.ErrorPage(status=status, message=message, hint=hint, request_id=request_id)
        return Visit(self._site, request).page("error.html", view, here="error", status=status)


_KIND_OF_STATUS: dict[int, type[errors.AimeshError]] = {
    HTTPStatus.NOT_FOUND: errors.NotFound,
    HTTPStatus.METHOD_NOT_ALLOWED: errors.MethodNotAllowed,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: errors.TooLarge,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: errors.UnsupportedMedia,
    HTTPStatus.INTERNAL_SERVER_ERROR: errors.Internal,
}
_MESSAGE_OF_STATUS: dict[int, str] = {
    HTTPStatus.NOT_FOUND: "there is no such page",
    HTTPStatus.METHOD_NOT_ALLOWED: "this page cannot be asked for in this way",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: f"the form is larger than {forms.MAX_BODY_BYTES // 1024} KiB",
    HTTPStatus.INTERNAL_SERVER_ERROR: "something went wrong on our side",
}


def _sent_json(request: HttpRequest) -> bool:
    return visits.media_type(request) == "application/json"
