"""One visit: who asks, over what, with which cookies; and the pages and cookies that it is answered with."""

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from urllib.parse import urlsplit

from litestar import MediaType, Request, Response
from litestar.datastructures import Cookie, State

from services.web import csrf, forms, rendering, sessions
from services.web.caller import Caller
from services.web.settings import WebSettings
from shared import errors
from shared.api import auth

HttpRequest = Request[None, None, State]
Page = Response[bytes]

#: The pages that a login may lead to; a `then` that is none of them is ignored, so that no link leads out of here.
AFTER_LOGIN = ("/dashboard", "/api-keys")

_FORM_SESSION = re.compile(r"[0-9A-Za-z_-]{43}")
_HOST = re.compile(r"[0-9A-Za-z._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")


class SignInFirst(Exception):
    """The page is personal and nobody is signed in. Caught by the application, which leads to the login."""


@dataclass(frozen=True, slots=True)
class Site:
    """What all visits share."""

    settings: WebSettings
    caller: Caller
    sessions: sessions.Sessions
    tokens: csrf.FormTokens
    renderer: rendering.Renderer
    now: Callable[[], datetime]


@dataclass(slots=True)
class Visit:
    """Made for one request and gone with it."""

    site: Site
    request: HttpRequest
    #: Cookies that the answer will set; a value of None deletes.
    _cookies: dict[str, str | None] = field(default_factory=dict)

    @property
    def secure(self) -> bool:
        return self.request.scope["scheme"] == "https" or self.site.settings.public_url.startswith("https://")

    @property
    def address(self) -> str:
        """What people type to come here, without a slash at the end."""
        if self.site.settings.public_url:
            return self.site.settings.public_url.rstrip("/")
        host = self.request.headers.get("host", "")
        scheme = "https" if self.secure else "http"
        return f"{scheme}://{host}" if _HOST.fullmatch(host) else f"{scheme}://127.0.0.1:{self.site.settings.port}"

    @property
    def session_token(self) -> str | None:
        return self.request.cookies.get(self._cookie_name("session"))

    async def find_session(self) -> auth.Session | None:
        return await self.site.sessions.find(self.session_token)

    async def get_session(self) -> auth.Session:
        """Raises SignInFirst where there is none, and PeerError while auth is away."""
        session = await self.find_session()
        if session is None:
            raise SignInFirst
        return session

    def sign_in(self, session: auth.Session) -> None:
        self._cookies[self._cookie_name("session")] = session.session_token
        self._cookies[self._cookie_name("form")] = None

    def sign_out(self) -> None:
        if self.session_token is not None:
            self.site.sessions.forget(self.session_token)
        self._cookies[self._cookie_name("session")] = None

    async def read_form(self, kind: type[forms.F]) -> forms.F:
        """The fields of a form that the browser sent from our own origin. Its token is checked by whoever knows the session."""
        csrf.check_origin(
            fetch_site=self.request.headers.get("sec-fetch-site"),
            origin=self.request.headers.get("origin"),
            own_hosts=frozenset({self.request.headers.get("host", "").lower(), urlsplit(self.address).netloc.lower()}),
        )
        if media_type(self.request) != "application/x-www-form-urlencoded":
            raise errors.UnsupportedMedia("this is neither a form nor JSON", hint="use the page, or send application/json")
        return forms.read_form(await self.request.body(), kind)

    def check_visitor(self, token: str) -> None:
        """The form was ours, for somebody who was not signed in yet."""
        self.site.tokens.check(token, self.request.cookies.get(self._cookie_name("form")))

    def check_person(self, token: str) -> None:
        """The form was ours, for this session. Says nothing about whether auth still knows the session."""
        self.site.tokens.check(token, self.session_token)

    def page(
        self, template: str, view: object, *, session: auth.Session | None = None, here: str = "", status: int = HTTPStatus.OK
    ) -> Page:
        token = self.site.tokens.issue(self._session_binding() if session else self._form_session())
        frame = rendering.Frame(username=session.user.username if session else None, here=here, form_token=token)
        return Response(
            self.site.renderer.render(template, frame, view),
            media_type=MediaType.HTML,
            status_code=status,
            cookies=self._set_cookies(),
        )

    def redirect(self, path: str) -> Page:
        return Response(
            b"", status_code=HTTPStatus.SEE_OTHER, headers={"Location": path}, cookies=self._set_cookies(), media_type=MediaType.TEXT
        )

    def _session_binding(self) -> str:
        # The cookie as the browser will send it back with the form.
        return self._cookies.get(self._cookie_name("session")) or self.session_token or ""

    def _form_session(self) -> str:
        """The secret that binds a visitor's forms to the browser, before there is a session to bind them to."""
        name = self._cookie_name("form")
        present = self.request.cookies.get(name, "")
        if _FORM_SESSION.fullmatch(present):
            return present
        return self._cookies.setdefault(name, secrets.token_urlsafe(32)) or ""

    def _cookie_name(self, purpose: str) -> str:
        # `__Host-` makes the browser refuse the cookie from any other host or over plain HTTP; it needs Secure, and so HTTPS.
        return f"__Host-aimesh_{purpose}" if self.secure else f"aimesh_{purpose}"

    def _set_cookies(self) -> list[Cookie]:
        return [
            Cookie(name, value=value or "", max_age=None if value else 0, path="/", secure=self.secure, httponly=True, samesite="lax")
            for name, value in self._cookies.items()
        ]


def media_type(request: HttpRequest) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
