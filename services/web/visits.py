"""One visit: who asks, over what, with which cookies; and the pages and cookies that it is answered with."""

import asyncio
import re
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from urllib.parse import urlsplit

from litestar import MediaType, Response
from litestar import Request as LitestarRequest
from litestar.datastructures import Cookie, State

from services.web import access, answers, banner, csrf, forms, live, rendering, sessions
from services.web.access import Who
from services.web.caller import Caller
from services.web.crowd import Crowd
from services.web.lookout import Lookout
from services.web.settings import WebSettings
from shared import addresses, errors
from shared.api import accounts, auth
from shared.api.method import Method, Reply, Request
from shared.turns import Turns
from shared.types import UserRole

HttpRequest = LitestarRequest[None, None, State]
Page = Response[bytes]

#: Where a login leads unless a page asked for it.
HOME = "/dashboard"
_OWN_PATH = re.compile(r"(?:/[0-9A-Za-z_-][0-9A-Za-z._-]*)+")
#: The pages that speak of alerts to administrators, as the navigation calls them.
_WITH_BANNER = frozenset({"admin", "dashboard"})
#: A page rather says "not available right now" than keep somebody waiting longer.
PAGE_CALL_SECONDS = 3.0
_LONGEST_AGENT = 200
_BODY_SECONDS = 5.0
#: As long as browsers keep a cookie.
_BROWSER_MARK_SECONDS = 400 * 24 * 3600

_FORM_SESSION = re.compile(r"[0-9A-Za-z_-]{43}")
_HOST = re.compile(r"[0-9A-Za-z._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")


class SignInFirst(Exception):
    """The page is personal and nobody is signed in. Caught by the application, which leads to the login."""


class StepFirst(Exception):
    """The password was right, and the login still lacks a step. Caught by the application, which leads there."""

    def __init__(self, step: auth.Step) -> None:
        super().__init__(step)
        self.step = step


class NotConfirmed(Exception):
    """What was typed to confirm something sensitive was wrong. Caught by the application, which asks again."""

    def __init__(self, error: errors.CallerError) -> None:
        super().__init__(error)
        self.error = error


@dataclass(frozen=True, slots=True)
class Site:
    """What all visits share."""

    settings: WebSettings
    caller: Caller
    sessions: sessions.Sessions
    tokens: csrf.FormTokens
    renderer: rendering.Renderer
    now: Callable[[], datetime]
    followers: Crowd = field(default_factory=live.crowd)
    answers: Crowd = field(default_factory=answers.crowd)
    lookout: Lookout = field(default_factory=lambda: Lookout(time.monotonic))
    #: Of those who register and sign in: what a page or an answer is made of shall come as evenly beside a crowd of them.
    passwords: Turns = field(default_factory=lambda: Turns(8, of_one=4, seconds=20, refusal="too many people sign in at once"))


@dataclass(slots=True)
class Visit:
    """Made for one request and gone with it."""

    site: Site
    request: HttpRequest
    #: Whose visit it is; None for a visitor, and where nobody has looked.
    session: auth.Session | None = None
    #: By what the person can confirm something sensitive, once that was asked for and where auth said it.
    account: accounts.OwnAccount | None = None
    #: The fields of the form that came with it, once they are read.
    posted: dict[str, str] = field(default_factory=dict)
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

    @property
    def browser_mark(self) -> str:
        """What shows auth that this browser has signed in before; empty where it has not."""
        return self.request.cookies.get(self._cookie_name("browser"), "")

    @property
    def person(self) -> auth.Session:
        """Of a page that is for people who have signed in."""
        assert self.session is not None, "services/web/access.py says that nobody comes here unseen"
        return self.session

    async def find_session(self) -> auth.Session | None:
        """Looks, for a page that is for everybody. Raises PeerError while auth is away."""
        if self.session is None:
            self.session = await self.site.sessions.find(self.session_token)
        return self.session

    async def admit(self) -> None:
        """Raises SignInFirst, StepFirst or NotAllowed for who may not open this page, and PeerError while auth is away."""
        who = access.who_may(self.request.scope["path"])
        if who is Who.ANYBODY:
            return
        session = await self.find_session()
        if session is None:
            raise SignInFirst
        if session.step is not auth.Step.DONE and who is not Who.HALFWAY:
            raise StepFirst(session.step)
        access.check(who, session)
        if self.is_administrator:
            # Now, so that the answer is there when the page is: it has questions of its own that it waits for.
            self.site.lookout.want(session.access_token)

    @property
    def is_administrator(self) -> bool:
        session = self.session
        return session is not None and session.step is auth.Step.DONE and session.user.role is UserRole.ADMIN

    def banner_values(self) -> live.Values:
        """For the events of a page that speaks of alerts, and to whom."""
        if not self.is_administrator:
            return {}
        self.site.lookout.want(self.person.access_token)
        return banner.values(self.site.lookout.banner())

    async def call(self, method: Method[Request, Reply], request: Request, *, deadline_seconds: float = 10) -> Reply:
        """Ask auth or the gateway in the person's name. Raises AimeshError."""
        credential = None if self.session is None else self.session.access_token
        try:
            return await self.site.caller.call(method, request, deadline_seconds=deadline_seconds, credential=credential)
        except errors.ConfirmationNeeded:
            await self._find_account()
            raise

    async def _find_account(self) -> None:
        with suppress(errors.AimeshError):
            self.account = await self.ask(accounts.get_account, accounts.GetAccount())

    async def ask(self, method: Method[Request, Reply], request: Request, *, deadline_seconds: float = PAGE_CALL_SECONDS) -> Reply | None:
        """As ``call``, for a part of a page that can be missing: None where it cannot be had now."""
        try:
            return await self.call(method, request, deadline_seconds=deadline_seconds)
        except errors.PeerError:
            return None

    def client(self) -> auth.Client:
        """Where the browser is and what it is, as far as we see."""
        seen = self.request.scope.get("client")
        agent = "".join(letter for letter in self.request.headers.get("user-agent", "") if letter.isprintable())
        return auth.Client(seen[0] if seen else "", agent[:_LONGEST_AGENT])

    def sign_in(self, session: auth.Session) -> None:
        """From the answer on; a session that the browser had is another one now."""
        if self.session_token is not None:
            self.site.sessions.forget(self.session_token)
        self.session = session
        self._cookies[self._cookie_name("session")] = session.session_token
        self._cookies[self._cookie_name("form")] = None
        if session.browser is not None:
            self._cookies[self._cookie_name("browser")] = session.browser

    def sign_out(self) -> None:
        if self.session_token is not None:
            self.site.sessions.forget(self.session_token)
        self.session = None
        self._cookies[self._cookie_name("session")] = None

    async def read_form(self, kind: type[forms.F], *, by_visitor: bool = False) -> forms.F:
        """The fields of a form that the browser sent from our own origin, and that we gave to it for this session; or to a visitor, before
        there is one. With what confirms something sensitive, that is confirmed first: raises NotConfirmed."""
        fields = await self.read_fields()
        token = fields.pop("token", "")
        password, code = fields.pop("confirm_password", ""), fields.pop("confirm_code", "")
        form = forms.convert(fields, kind)
        if by_visitor:
            self.check_visitor(token)
        else:
            self.check_person(token)
        if password or code:
            await self._confirm(password, code)
        return form

    async def read_fields(self) -> dict[str, str]:
        """The fields as they came, from our own origin."""
        self._check_origin()
        if media_type(self.request) != "application/x-www-form-urlencoded":
            raise errors.UnsupportedMedia("this is neither a form nor JSON", hint="use the page, or send application/json")
        self.posted = forms.read_fields(await self.read_body())
        return dict(self.posted)

    async def read_json(self, kind: type[forms.F], *, seconds: float = _BODY_SECONDS) -> forms.F:
        """What a script of ours sent, with the form token in a header."""
        self._check_origin()
        if media_type(self.request) != "application/json":
            raise errors.UnsupportedMedia("this is not JSON", hint="send application/json")
        self.check_person(self.request.headers.get("x-form-token", ""))
        return forms.read_json(await self.read_body(seconds), kind)

    async def read_body(self, seconds: float = _BODY_SECONDS) -> bytes:
        """Raises BadRequest for a slow sender: a form is one packet or two."""
        try:
            async with asyncio.timeout(seconds):
                return await self.request.body()
        except TimeoutError:
            raise errors.BadRequest(f"the body did not arrive within {seconds:.0f} s", hint="send it at once") from None

    def take_turn(self) -> AbstractAsyncContextManager[None]:
        """For a call that makes auth hash a password. Raises Limited in a crowd."""
        client = self.request.client
        return self.site.passwords.take(addresses.household(client.host if client else ""))

    async def _confirm(self, password: str, code: str) -> None:
        try:
            await self.call(auth.confirm_again, auth.ConfirmAgain(password or None, code.strip() or None))
        except errors.CallerError as error:
            await self._find_account()
            raise NotConfirmed(error) from error
        if self.session_token is not None:
            self.site.sessions.forget(self.session_token)

    def _check_origin(self) -> None:
        csrf.check_origin(
            fetch_site=self.request.headers.get("sec-fetch-site"),
            origin=self.request.headers.get("origin"),
            own_hosts=frozenset({self.request.headers.get("host", "").lower(), urlsplit(self.address).netloc.lower()}),
        )

    def check_visitor(self, token: str) -> None:
        """The form was ours, for somebody who was not signed in yet."""
        self.site.tokens.check(token, self.request.cookies.get(self._cookie_name("form")))

    def check_person(self, token: str) -> None:
        """The form was ours, for this session. Says nothing about whether auth still knows the session."""
        self.site.tokens.check(token, self.session_token)

    def page(
        self, template: str, view: object, *, here: str = "", status: int = HTTPStatus.OK, notice: rendering.Notice | None = None
    ) -> Page:
        session = self.session
        is_in = session is not None and session.step is auth.Step.DONE
        frame = rendering.Frame(
            username=session.user.username if session is not None and is_in else None,
            role=session.user.role if session is not None and is_in else None,
            team_name=session.team_name if session is not None else None,
            here=here,
            form_token=self.site.tokens.issue(self._session_binding() if session else self._form_session()),
            theme=(session.theme if session is not None else None) or "system",
            notice=notice,
            banner=self.site.lookout.banner() if self.is_administrator and here in _WITH_BANNER else None,
        )
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
            Cookie(name, value=value or "", max_age=self._max_age(name, value), path="/", secure=self.secure, httponly=True, samesite="lax")
            for name, value in self._cookies.items()
        ]

    def _max_age(self, name: str, value: str | None) -> int | None:
        if not value:
            return 0
        # All others end with the browser.
        return _BROWSER_MARK_SECONDS if name == self._cookie_name("browser") else None


def media_type(request: HttpRequest) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def own_page(path: str) -> str:
    """``path`` if it is one of our pages to be opened after a login; else where everybody goes, so that no link leads out of here."""
    if len(path) > 200 or not _OWN_PATH.fullmatch(path):
        return HOME
    try:
        who = access.who_may(path)
    except ValueError:
        return HOME
    return path if who in (Who.PERSON, Who.NODE_OWNER, Who.ADMIN) and not path.startswith("/live") else HOME
