"""A phone with an authenticator app, a clock that can be moved, and an audit log to inspect."""

import base64
import time
from dataclasses import dataclass, field
from typing import cast

from services.auth.dependencies import Dependencies
from services.auth.logins import LoginRpc
from services.auth.mfa import totp
from services.auth.mfa.mfa_enrollment import MfaEnrollment
from shared.api import accounts, auth
from shared.api.audit import AuditedAct
from shared.stores.database import Transaction
from shared.types import NodeId, Peer, Role
from tests.services.auth.surroundings import CLIENT, PASSWORD, Surroundings

WEB = Peer(Role.WEB, NodeId("U" + "W" * 55))


@dataclass
class Clock:
    """The real time plus ``ahead``. Valkey and PostgreSQL use their own clocks."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@dataclass
class KeptTrail:
    acts: list[AuditedAct] = field(default_factory=list)

    async def add(self, transaction: Transaction, act: AuditedAct) -> None:
        self.acts.append(act)

    def note(self, act: AuditedAct) -> None:
        self.acts.append(act)

    def actions(self, *wanted: str) -> list[str]:
        return [act.action for act in self.acts if act.action in wanted]


@dataclass
class Phone:
    """Shows a code that changes every thirty seconds."""

    seed: bytes
    clock: Clock

    def code(self, steps: int = 0) -> str:
        return totp.code_at(self.seed, totp.step_at(self.clock()) + steps)

    def next_code(self) -> str:
        """Advance the clock, and return a code that was not used yet."""
        self.clock.ahead += totp.STEP_SECONDS
        return self.code()


@dataclass
class ApiClient:
    """A running auth, with helpers for logins and second factors."""

    world: Surroundings
    clock: Clock = field(default_factory=Clock)
    trail: KeptTrail = field(default_factory=KeptTrail)

    def __post_init__(self) -> None:
        enrolment = cast("MfaEnrollment", self._serving(accounts.begin_mfa.name))
        for handler in (self.logins, enrolment):
            handler._trail = self.trail
            handler._factors._clock = self.clock
            handler._opening._trail = self.trail

    @property
    def logins(self) -> LoginRpc:
        return cast("LoginRpc", self._serving(auth.login_user.name))

    @property
    def parts(self) -> Dependencies:
        return self.world.service._wiring._parts

    def _serving(self, method: str) -> object:
        return self.world.dispatcher.find(method, CLIENT).function.__self__  # type: ignore[attr-defined]

    async def login(
        self, name: str = "anna", password: str = PASSWORD, code: str | None = None, *, peer: Peer | None = None, **changed: object
    ) -> auth.LoginSession:
        request = auth.LoginUser(auth.Credentials(password, username=name, code=code), **changed)  # type: ignore[arg-type]
        return await self.world.ask(auth.login_user, request, peer=peer)

    async def browse(
        self, name: str = "anna", password: str = PASSWORD, code: str | None = None, *, browser: str = ""
    ) -> auth.LoginSession:
        """Log in on the web page."""
        client = auth.ClientFacts("203.0.113.7", "Mozilla/5.0")
        return await self.login(name, password, code, peer=WEB, kind=auth.SessionKind.BROWSER, client=client, browser=browser)

    async def identify(self, session: auth.LoginSession) -> auth.Principal:
        return await self.world.ask(auth.identify, auth.Identify(session.access_token))

    async def begin(self, session: auth.LoginSession) -> Phone:
        made = await self.world.ask(accounts.begin_mfa, accounts.BeginMfa(), session.access_token)
        return Phone(base64.b32decode(made.secret + "=" * (-len(made.secret) % 8)), self.clock)

    async def enable(self, session: auth.LoginSession, code: str) -> accounts.RecoveryCodes:
        return await self.world.ask(accounts.enable_mfa, accounts.EnableMfa(code), session.access_token)

    async def confirm(self, session: auth.LoginSession, code: str) -> auth.LoginSession:
        return await self.world.ask(auth.confirm_login, auth.ConfirmLogin(code), session.access_token)

    async def confirm_again(self, session: auth.LoginSession, password: str | None = None, code: str | None = None) -> None:
        await self.world.ask(auth.confirm_again, auth.ConfirmAgain(password, code), session.access_token)

    async def with_factor(self, name: str = "anna") -> tuple[auth.LoginSession, Phone, tuple[str, ...]]:
        """Register a user with a second factor. Returns the login, the phone and the recovery codes."""
        await self.world.register(name)
        session = await self.login(name)
        phone = await self.begin(session)
        return session, phone, (await self.enable(session, phone.code())).codes
