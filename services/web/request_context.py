"""Handle one browser request: session, forms, cookies, and the page or redirect that answers it."""

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from urllib.parse import urlsplit

from litestar import MediaType, Response
from litestar import Request as LitestarRequest
from litestar.datastructures import Cookie, State

from services.web import agent_setups, alert_banner, csrf, live_updates, page_access, rendering, runbooks, sessions
from services.web.agent_setups import AgentSetup
from services.web.alert_banner import AlertPoller
from services.web.http import forms, json_errors, upload_forms
from services.web.http.event_response import EventResponse
from services.web.http.passthrough import Passthrough
from services.web.http.upload_forms import UploadForm
from services.web.mesh_calls import MeshCalls
from services.web.package_fetcher import PackageFetcher
from services.web.page_access import PageAudience
from services.web.settings import WebSettings
from shared import addresses, errors
from shared.api import accounts, auth
from shared.api.method import Method, Reply, Request
from shared.protocol.request_memory import RequestMemory
from shared.timing.admission_semaphore import AdmissionSemaphore
from shared.timing.concurrency_limit import ConcurrencyLimit
from shared.types import UserRole

HttpRequest = LitestarRequest[None, None, State]
Page = Response[bytes]

#: The page after sign-in, unless the user requested another one.
HOME = "/dashboard"
#: The page of an invitation to the mesh, for visitors as well.
JOIN = "/join"
_OWN_PATH = re.compile(r"(?:/[0-9A-Za-z_-][0-9A-Za-z._-]*)+")
#: The sections that show the alert banner to administrators.
_WITH_BANNER = frozenset({"admin", "dashboard"})
#: After this time a page shows "unavailable" for a part.
PAGE_CALL_SECONDS = 3.0
_MAX_AGENT = 200
_BODY_SECONDS = 5.0
_NO_NOTICES: Mapping[str, str | rendering.Notice] = {}
#: How long browsers keep a cookie; all others end with the browser session. 400 days is the most that browsers allow. Auth remembers a
#: login at the provider for 10 minutes.
_COOKIE_SECONDS = {"browser": 400 * 24 * 3600, "login": 600}

_FORM_SESSION = re.compile(r"[0-9A-Za-z_-]{43}")
_HOST = re.compile(r"[0-9A-Za-z._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")


class SignInFirst(Exception):
    """Raised if a page or a form needs a signed-in user. The application redirects to the sign-in page."""


class StepFirst(Exception):
    """Raised if the sign-in lacks a step. The application redirects to that step."""

    def __init__(self, step: auth.Step) -> None:
        super().__init__(step)
        self.step = step


class ConfirmFirst(Exception):
    """Raised if the user must confirm a sensitive action. The application asks for the password or code."""

    def __init__(self, problem: errors.CallerError | None = None) -> None:
        super().__init__(problem)
        #: Why the previous password or code was rejected; None before the first attempt.
        self.problem = problem


@contextmanager
def form_errors() -> Iterator[None]:
    """Separate the errors that a form shows (CallerError) from those that the application handles.

    Raises SignInFirst for an ended session and ConfirmFirst for a sensitive action.
    """
    try:
        yield
    except errors.NotAuthenticated as error:
        raise SignInFirst from error
    except errors.ConfirmationNeeded as error:
        raise ConfirmFirst from error


@dataclass(frozen=True, slots=True)
class App:
    """The objects that all requests share."""

    settings: WebSettings
    caller: MeshCalls
    sessions: sessions.WebSessions
    tokens: csrf.FormTokens
    renderer: rendering.Renderer
    now: Callable[[], datetime]
    #: Takes uploads; everything else is called over the mesh.
    gateway: Passthrough
    followers: ConcurrencyLimit = field(default_factory=live_updates.follower_limit)
    #: Limits concurrent answers in the playground, in total and per user. The gateway has its own limits.
    answers: ConcurrencyLimit = field(default_factory=lambda: ConcurrencyLimit(200, most_of_one=4))
    #: Limits how many questions are uploaded at once, in total and per user, and the memory of them and of running ones.
    uploads: ConcurrencyLimit = field(default_factory=lambda: ConcurrencyLimit(200, most_of_one=4))
    memory: RequestMemory = field(default_factory=RequestMemory)
    runbooks: Mapping[str, str] = field(default_factory=runbooks.load)
    agent_setups: tuple[AgentSetup, ...] = field(default_factory=agent_setups.load)
    alert_poller: AlertPoller = field(default_factory=lambda: AlertPoller(time.monotonic))
    package_fetcher: PackageFetcher = field(default_factory=PackageFetcher)
    #: Limits concurrent registrations and sign-ins, so that a burst of them does not slow other requests.
    passwords: AdmissionSemaphore = field(
        default_factory=lambda: AdmissionSemaphore(8, of_one=4, seconds=20, refusal="too many users are signing in; try again in a moment")
    )


@dataclass(slots=True)
class PageRequest:
    """One request and the response to it."""

    app: App
    request: HttpRequest
    #: None if nobody is signed in, or the session was not looked up.
    session: auth.LoginSession | None = None
    #: Says how the user can confirm a sensitive action; None until needed, or if auth is down.
    account: accounts.OwnAccount | None = None
    posted: dict[str, str] = field(default_factory=dict)
    #: Cookies that the response sets, by purpose; None deletes a cookie.
    _cookies: dict[str, str | None] = field(default_factory=dict)

    @property
    def secure(self) -> bool:
        return self.request.scope["scheme"] == "https" or self.app.settings.public_url.startswith("https://")

    @property
    def address(self) -> str:
        """Return the public URL, without a trailing slash."""
        if self.app.settings.public_url:
            return self.app.settings.public_url.rstrip("/")
        host = self.request.headers.get("host", "")
        scheme = "https" if self.secure else "http"
        return f"{scheme}://{host}" if _HOST.fullmatch(host) else f"{scheme}://127.0.0.1:{self.app.settings.port}"

    @property
    def session_token(self) -> str | None:
        return self.find_cookie("session")

    @property
    def invitation(self) -> str:
        """Return the code of the invitation to the mesh that this browser opened; empty for none."""
        return self.find_cookie("invitation") or ""

    def keep_invitation(self, code: str | None) -> None:
        """Keep the code through registration, sign-in and the login provider, which see no fragment; None drops it."""
        self.set_cookie("invitation", code)

    def find_cookie(self, purpose: str) -> str | None:
        return self.request.cookies.get(self._cookie_name(purpose))

    def set_cookie(self, purpose: str, value: str | None) -> None:
        """Set a cookie in the response; None deletes it."""
        self._cookies[purpose] = value

    @property
    def person(self) -> auth.LoginSession:
        """Return the session, on a page that requires one."""
        assert self.session is not None, "services/web/page_access.py allows anonymous access to this page"
        return self.session

    async def find_session(self) -> auth.LoginSession | None:
        """Look up the session, for a public page. Raises PeerError while auth is down."""
        if self.session is None:
            self.session = await self.app.sessions.find(self.session_token)
        return self.session

    async def admit(self) -> None:
        """Raise SignInFirst, StepFirst or NotAllowed if the user may not open this page, or PeerError while auth is down."""
        audience = page_access.find_audience(self.request.scope["path"])
        if audience is PageAudience.ANYBODY:
            return
        session = await self.find_session()
        if session is None:
            raise SignInFirst
        if session.step is not auth.Step.DONE and audience is not PageAudience.HALFWAY:
            raise StepFirst(session.step)
        page_access.check(audience, session)
        if self.is_administrator:
            # Start the refresh now; it runs while the page waits for its own calls.
            self.app.alert_poller.want(session.access_token)

    @property
    def sells(self) -> bool:
        """Return whether this mesh sells plans and credits, and has a page for them."""
        return self.app.settings.money == "on"

    @property
    def is_administrator(self) -> bool:
        session = self.session
        return session is not None and session.step is auth.Step.DONE and session.user.role is UserRole.ADMIN

    def _banner_values(self) -> live_updates.Values:
        """Return the banner values for live events; empty unless the user is an administrator."""
        if not self.is_administrator:
            return {}
        self.app.alert_poller.want(self.person.access_token)
        return alert_banner.values(self.app.alert_poller.banner())

    def follow(self, read: live_updates.Read) -> EventResponse:
        """Stream what ``read`` returns, and the alert banner, to the open page."""

        async def read_all() -> live_updates.Values:
            return {"connection": ""} | self._banner_values() | await read()

        return live_updates.answer(self.app.followers, str(self.person.user.id), read_all)

    async def call(self, method: Method[Request, Reply], request: Request, *, deadline_seconds: float = 10) -> Reply:
        """Call auth or the gateway with the user's credential. Raises AimeshError."""
        credential = None if self.session is None else self.session.access_token
        try:
            return await self.app.caller.call(method, request, deadline_seconds=deadline_seconds, credential=credential)
        except errors.ConfirmationNeeded:
            await self._find_account()
            raise

    async def submit(self, method: Method[Request, Reply], request: Request, *, deadline_seconds: float = 10) -> Reply:
        """Call a method for a submitted form, which shows any CallerError. Raises what ``form_errors`` raises."""
        with form_errors():
            return await self.call(method, request, deadline_seconds=deadline_seconds)

    async def _find_account(self) -> None:
        with suppress(errors.AimeshError):
            self.account = await self.fetch(accounts.get_account, accounts.GetAccount())

    async def fetch(self, method: Method[Request, Reply], request: Request, *, deadline_seconds: float = PAGE_CALL_SECONDS) -> Reply | None:
        """Call a method for an optional part of a page. Returns None if it is unavailable, or unknown to an earlier release."""
        try:
            return await self.call(method, request, deadline_seconds=deadline_seconds)
        except (errors.PeerError, errors.UnknownMethod):
            return None

    def client(self) -> auth.ClientFacts:
        """Return the browser's address and user agent."""
        seen = self.request.scope.get("client")
        agent = "".join(letter for letter in self.request.headers.get("user-agent", "") if letter.isprintable())
        return auth.ClientFacts(seen[0] if seen else "", agent[:_MAX_AGENT])

    def sign_in(self, session: auth.LoginSession) -> None:
        """Set the cookies of a new session, replacing any previous one."""
        self.forget_session()
        self.session = session
        self.set_cookie("session", session.session_token)
        self.set_cookie("form", None)
        if session.browser is not None:
            # Shows auth that this browser has signed in before.
            self.set_cookie("browser", session.browser)

    def forget_session(self) -> None:
        """Drop the cached session, so that the next page gets the user's new name, theme and rights."""
        if self.session_token is not None:
            self.app.sessions.forget(self.session_token)

    def sign_out(self) -> None:
        self.forget_session()
        self.session = None
        self.set_cookie("session", None)

    async def read_form(self, kind: type[forms.F], *, by_visitor: bool = False) -> forms.F:
        """Read a form, after checking its origin and token. If it carries a password or code, confirm that first; raises ConfirmFirst.

        ``by_visitor`` checks the token of a visitor without a session.
        """
        fields = await self.read_fields()
        token = fields.pop("token", "")
        password, code = fields.pop("confirm_password", ""), fields.pop("confirm_code", "")
        form = forms.convert(fields, kind)
        if by_visitor:
            self.app.tokens.check(token, self.find_cookie("form"))
        else:
            self.check_person(token)
        if password or code:
            await self._confirm(password, code)
        return form

    async def read_field(self, name: str, default: str | None = None, *, by_visitor: bool = False) -> str:
        """Read a form with one field, like ``read_form``. The field is required without a default."""
        form = await self.read_form(forms.of_one_field(name, default), by_visitor=by_visitor)
        return str(getattr(form, name))

    async def read_fields(self) -> dict[str, str]:
        """Read the form fields, after checking the origin only."""
        self._check_origin()
        if media_type(self.request) != "application/x-www-form-urlencoded":
            raise errors.UnsupportedMedia("the content type is neither a form nor JSON", hint="use the page, or send application/json")
        self.posted = forms.read_fields(await self.read_body())
        return dict(self.posted)

    async def read_json(self, kind: type[forms.F], *, seconds: float = _BODY_SECONDS) -> forms.F:
        """Read a JSON body that one of our scripts sent, with the form token in a header."""
        self._check_origin()
        if media_type(self.request) != "application/json":
            raise errors.UnsupportedMedia("the content type is not JSON", hint="send application/json")
        self.check_person(self.request.headers.get("x-form-token", ""))
        return forms.read_json(await self.read_body(seconds), kind)

    async def read_body(self, seconds: float = _BODY_SECONDS) -> bytes:
        """Read the body. Raises BadRequest if it arrives too slowly."""
        try:
            async with asyncio.timeout(seconds):
                return await self.request.body()
        except TimeoutError:
            raise errors.BadRequest(f"the body did not arrive within {seconds:.0f} s", hint="send the request again") from None

    async def read_upload(self) -> UploadForm:
        """Return a form with a file, after checking its origin and token. It arrives as it is read."""
        self._check_origin()
        if media_type(self.request) != "multipart/form-data":
            raise errors.UnsupportedMedia("the content type is not a form with a file", hint="use the page")
        headers = self.request.headers
        form = await upload_forms.begin(self.request.stream(), headers["content-type"], headers.get("content-length", ""))
        self.check_person(form.token)
        return form

    def take_turn(self) -> AbstractAsyncContextManager[None]:
        """Wait for a turn to make auth hash a password. Raises Limited if too many wait."""
        client = self.request.client
        return self.app.passwords.take(addresses.client_network(client.host if client else ""))

    async def _confirm(self, password: str, code: str) -> None:
        try:
            await self.call(auth.confirm_again, auth.ConfirmAgain(password or None, code.strip() or None))
        except errors.CallerError as error:
            await self._find_account()
            raise ConfirmFirst(error) from error
        self.forget_session()

    def _check_origin(self) -> None:
        csrf.check_origin(
            fetch_site=self.request.headers.get("sec-fetch-site"),
            origin=self.request.headers.get("origin"),
            own_hosts=frozenset({self.request.headers.get("host", "").lower(), urlsplit(self.address).netloc.lower()}),
        )

    def check_person(self, token: str) -> None:
        """Check a form token that was issued for this session. The session itself may have expired."""
        self.app.tokens.check(token, self.session_token)

    def page(
        self,
        template: str,
        view: object = None,
        *,
        here: str | None = None,
        status: int | None = None,
        problem: errors.AimeshError | None = None,
        notices: Mapping[str, str | rendering.Notice] = _NO_NOTICES,
    ) -> Page:
        """Render a page. ``here`` is the section that the navigation marks; by default, the first word of the path. ``problem`` is shown,
        and gives the status unless ``status`` does. ``notices``: what to show after a redirect, by its `done` parameter."""
        session = self.session
        is_in = session is not None and session.step is auth.Step.DONE
        here = self.request.scope["path"].split("/")[1] if here is None else here
        frame = rendering.PageFrame(
            user=session.user if session is not None and is_in else None,
            team_name=session.team_name if session is not None else None,
            here=here,
            address=self.address,
            form_token=self.app.tokens.issue(self._session_binding() if session else self._form_session()),
            theme=(session.theme if session is not None else None) or "system",
            problem=problem,
            notice=self._find_notice(notices),
            banner=self.app.alert_poller.banner() if self.is_administrator and here in _WITH_BANNER else None,
        )
        if status is None:
            status = HTTPStatus.OK if problem is None else json_errors.status(problem)
        content = self.app.renderer.render(template, frame, view)
        return Response(content, media_type=MediaType.HTML, status_code=status, cookies=self._set_cookies())

    def _find_notice(self, notices: Mapping[str, str | rendering.Notice]) -> rendering.Notice | None:
        if not notices or self.request.method != "GET":
            return None
        found = notices.get(self.request.query_params.get("done", ""))
        return rendering.Notice(found) if isinstance(found, str) else found

    def redirect(self, path: str) -> Page:
        return Response(
            b"", status_code=HTTPStatus.SEE_OTHER, headers={"Location": path}, cookies=self._set_cookies(), media_type=MediaType.TEXT
        )

    def _session_binding(self) -> str:
        # The cookie value that the browser will send with the form.
        return self._cookies.get("session") or self.session_token or ""

    def _form_session(self) -> str:
        present = self.find_cookie("form") or ""
        if _FORM_SESSION.fullmatch(present):
            return present
        return self._cookies.setdefault("form", secrets.token_urlsafe(32)) or ""

    def _cookie_name(self, purpose: str) -> str:
        # `__Host-` prevents other hosts and plain HTTP from setting the cookie. It requires Secure, so HTTPS.
        return f"__Host-aimesh_{purpose}" if self.secure else f"aimesh_{purpose}"

    def _set_cookies(self) -> list[Cookie]:
        return [
            Cookie(
                self._cookie_name(purpose),
                value=value or "",
                max_age=_COOKIE_SECONDS.get(purpose) if value else 0,
                path="/",
                secure=self.secure,
                httponly=True,
                samesite="lax",
            )
            for purpose, value in self._cookies.items()
        ]


def media_type(request: HttpRequest) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def own_page(path: str) -> str:
    """Return ``path`` if it is a page that can follow a sign-in, else the home page. Prevents open redirects."""
    if len(path) > 200 or not _OWN_PATH.fullmatch(path):
        return HOME
    try:
        audience = page_access.find_audience(path)
    except ValueError:
        return HOME
    is_own = path == JOIN or audience in (PageAudience.PERSON, PageAudience.NODE_OWNER, PageAudience.ADMIN)
    return path if is_own and not path.startswith("/live") else HOME
