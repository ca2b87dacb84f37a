"""The fake mesh, account part of auth: second factor, login provider, settings, organizations, own data."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import msgspec

from shared import access_table, errors
from shared.api import accounts, auth, usage_report
from shared.api import accounts as contract
from shared.api.auth import Step
from shared.api.method import Nothing
from shared.types import Credential, MicroCredits, ModelName, RequestId, RequestStatus
from tests.services.web.fake_colleagues import FakeColleagues
from tests.services.web.fake_organisations import NOW, FakeOrganisations

if TYPE_CHECKING:
    from tests.services.web.fake_mesh import Account

#: The code that every authenticator app shows, at all times.
CODE = "123456"
RECOVERY_CODES = tuple(f"0000-0000-{number:04}" for number in range(10))
SEED = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
URI = f"otpauth://totp/aimesh%20test:alice?secret={SEED}&issuer=aimesh%20test&algorithm=SHA1&digits=6&period=30"
#: The code that the login provider issues after a successful login.
GOOD_CODE = "code-of-the-provider"
WRONG_CODE = errors.NotAllowed("the code is wrong, or was used before", hint="wait for the next one, or use a recovery code")


class FakeAccounts(FakeOrganisations, FakeColleagues):
    """Handlers, mixed into ``FakeMesh``. A test reads and writes the attributes."""

    accounts: dict[str, "Account"]
    sessions: dict[str, auth.User]

    def __init__(self) -> None:
        super().__init__()
        self.options = contract.SignInOptions(open_registration=True, password_min_length=8)
        #: Session token -> the login step that is still missing.
        self.steps: dict[str, Step] = {}
        self.themes: dict[str, str] = {}
        #: Usernames, here and below.
        self.with_factor: set[str] = set()
        self.without_password: set[str] = set()
        #: Every login is too old for sensitive actions until the user confirms it.
        self.is_stale = False
        self.seeds_begun = 0
        self.devices: list[auth.WaitingDeviceLogin] = []
        #: User code, username, and whether it was approved.
        self.decided: list[tuple[str, str, bool]] = []
        self.others: list[contract.OpenSession] = []
        self.provider_links: list[contract.OidcLink] = []
        #: Logins started at the provider: state -> request.
        self.begun: dict[str, contract.BeginOidc] = {}
        #: The username that the login provider confirms.
        self.vouched_for = ""
        #: The URL at which the provider ends its session.
        self.ends_at: str | None = None
        self.mails: list[str] = []
        #: Code in such a mail -> username.
        self.reset_codes: dict[str, str] = {}
        self.unverified: set[str] = set()
        #: Code -> whether the account gets the tokens of a free plan.
        self.verification_codes: dict[str, bool] = {}
        self.preferences = contract.Preferences()
        self.erased_at: datetime | None = None
        self.logged: list[usage_report.LoggedRequest] = []
        #: Newest first.

    # --- for tests -------------------------------------------------------------------------------------------------------

    def add_other_session(self, agent: str, address: str = "192.0.2.7", kind: auth.SessionKind = auth.SessionKind.BROWSER) -> str:
        id_ = uuid4().hex
        since = NOW - timedelta(days=2)
        self.others.append(
            contract.OpenSession(id_, kind, since, NOW - timedelta(hours=1), auth.ClientFacts(address, agent), is_this=False)
        )
        return id_

    def add_logged_request(self, model: str, cost: int = 1_500_000) -> None:
        self.logged.append(
            usage_report.LoggedRequest(
                id=RequestId(UUID(int=len(self.logged))), created_at=NOW, user_id=next(iter(self.sessions.values())).id, key_id=None,
                model=ModelName(model), status=RequestStatus.SUCCESS, error_code=None, prompt_tokens=7, completion_tokens=9,
                response_time_ms=120, cost_micro=MicroCredits(cost), cached=False,
            )
        )  # fmt: skip

    def dressed(self, token: str, session: auth.LoginSession) -> auth.LoginSession:
        """Add the login step, organization and theme to the session."""
        team = self.acting.get(token)
        return msgspec.structs.replace(
            session,
            step=self.steps.get(token, Step.DONE),
            team_id=team,
            team_name=self.teams[team].organisation.name if team is not None else None,
            theme=self.themes.get(session.user.username),
        )

    # --- signing in --------------------------------------------------------------------------------------------------------

    def _get_sign_in_options(self, _: contract.GetSignInOptions, __: Credential | None) -> contract.SignInOptions:
        return self.options

    def _confirm_login(self, request: auth.ConfirmLogin, credential: Credential | None) -> auth.LoginSession:
        token = self._token(credential)
        if request.code not in (CODE, *RECOVERY_CODES):
            raise WRONG_CODE
        return self._exchanged(token, Step.DONE)

    def _find_device_login(self, request: auth.FindDeviceLogin, credential: Credential | None) -> auth.WaitingDeviceLogin:
        self._user(credential)
        letters = request.user_code.replace("-", "").upper()
        found = next((each for each in self.devices if each.user_code.replace("-", "") == letters), None)
        if found is None:
            raise errors.NotFound("no login waits with this code", hint="compare it with the terminal")
        return found

    def _decide_device_login(self, request: auth.DecideDeviceLogin, credential: Credential | None) -> Nothing:
        self._check_fresh("auth.decideDeviceLogin")
        found = self._find_device_login(auth.FindDeviceLogin(request.user_code), credential)
        self.devices.remove(found)
        self.decided.append((found.user_code, self._user(credential).username, request.approve))
        return Nothing()

    def _confirm_again(self, request: auth.ConfirmAgain, credential: Credential | None) -> Nothing:
        user = self._user(credential)
        if request.password != self.accounts[user.username].password and request.code != CODE:
            raise errors.NotAllowed("the password is wrong", hint="type it again")
        self.is_stale = False
        return Nothing()

    def _request_password_reset(self, request: contract.RequestPasswordReset, _: Credential | None) -> Nothing:
        self.mails.append(request.name)
        return Nothing()

    def _reset_password(self, request: contract.ResetPassword, _: Credential | None) -> Nothing:
        if len(request.new_password) < self.options.password_min_length:
            raise errors.BadRequest("the password is shorter than 8 characters", hint="choose a longer one")
        username = self.reset_codes.pop(request.token, None)
        if username is None:
            raise errors.NotAuthenticated("this code is wrong, was used, or has expired", hint="request another one")
        self.accounts[username].password = request.new_password
        return Nothing()

    def _begin_oidc(self, request: contract.BeginOidc, _: Credential | None) -> contract.OidcStart:
        if self.options.oidc_name is None:
            raise errors.NotFound("no login provider is set up here", hint="log in with a password")
        if request.session_token is not None:
            self._check_fresh("auth.changePassword")
        state = f"state-{len(self.begun)}"
        self.begun[state] = request
        return contract.OidcStart(f"https://login.example/authorize?state={state}&x=1", f"binding-{state}")

    def _finish_oidc(self, request: contract.FinishOidc, _: Credential | None) -> contract.OidcEnd:
        wanted = self.begun.pop(request.state, None)
        if wanted is None or request.binding != f"binding-{request.state}":
            raise errors.NotAuthenticated("this login was begun in another browser", hint="start the login again")
        if request.error is not None:
            raise errors.NotAllowed("the login provider was not allowed to say who you are", hint="start the login again")
        assert (request.code, request.issuer) == (GOOD_CODE, "https://login.example")
        if wanted.session_token is not None:
            self.provider_links.append(contract.OidcLink("https://login.example", "subject-1", "alice@corp.example", NOW))
            return contract.OidcEnd(None, wanted.then)
        token = self.add_session(self.accounts[self.vouched_for].user)
        if self.vouched_for in self.with_factor:
            self.steps[token] = Step.ENTER_CODE
        return contract.OidcEnd(self._session(token), wanted.then)

    def _login_by_iap(self, request: contract.LoginByIap, _: Credential | None) -> contract.IapEnd:
        if request.assertion != GOOD_CODE:
            raise errors.NotAuthenticated("the header of IAP is invalid: it has expired; check the clocks", hint="reload the page")
        if request.session_token is not None:
            self._check_fresh("auth.changePassword")
            self.provider_links.append(contract.OidcLink("https://cloud.google.com/iap", "subject-1", "alice@corp.example", NOW))
            return contract.IapEnd(None)
        return contract.IapEnd(self._session(self.add_session(self.accounts[self.vouched_for].user)))

    def _leave_oidc(self, _: contract.LeaveOidc, __: Credential | None) -> contract.LeftOidc:
        return contract.LeftOidc(self.ends_at)

    # --- settings ----------------------------------------------------------------------------------------------------------

    def _get_account(self, _: contract.GetAccount, credential: Credential | None) -> contract.OwnAccount:
        user = self._user(credential)
        has_factor = user.username in self.with_factor
        return contract.OwnAccount(
            user=user,
            preferences=self.preferences,
            has_password=user.username not in self.without_password,
            mfa_enabled=has_factor,
            recovery_codes_left=10 if has_factor else 0,
            erased_at=self.erased_at,
            oidc_name=self.options.oidc_name,
            is_verified=user.username not in self.unverified,
        )

    def _send_verification(self, _: contract.SendVerification, credential: Credential | None) -> Nothing:
        self.mails.append(self._user(credential).email)
        return Nothing()

    def _verify_address(self, request: contract.VerifyAddress, _: Credential | None) -> contract.VerifiedAddress:
        if request.token not in self.verification_codes:
            raise errors.NotAuthenticated("this code is wrong, was used, or has expired", hint="request another one")
        return contract.VerifiedAddress(self.verification_codes.pop(request.token))

    def _change_profile(self, request: contract.ChangeProfile, credential: Credential | None) -> auth.User:
        user = self._user(credential)
        if request.username in self.accounts and request.username != user.username:
            raise errors.AlreadyExists(f"the username {request.username!r} is taken", hint="choose another one", field="username")
        if request.email != user.email:
            self._check_fresh("auth.changePassword")
        changed = msgspec.structs.replace(user, username=request.username or user.username, email=request.email or user.email)
        account = self.accounts.pop(user.username)
        account.user = self.accounts.setdefault(changed.username, account).user = changed
        self.sessions.update({token: changed for token, each in self.sessions.items() if each.id == user.id})
        return changed

    def _set_preferences(self, request: contract.SetPreferences, credential: Credential | None) -> contract.Preferences:
        if request.preferences.theme not in ("light", "dark", "system"):
            raise errors.BadRequest("theme: light, dark, system", hint="system follows the setting of the device")
        self.preferences = request.preferences
        self.themes[self._user(credential).username] = request.preferences.theme
        return self.preferences

    def _change_password(self, request: contract.ChangePassword, credential: Credential | None) -> Nothing:
        self._check_fresh("auth.changePassword")
        if len(request.new_password) < self.options.password_min_length:
            raise errors.BadRequest("the password is shorter than 8 characters", hint="choose a longer one")
        self.accounts[self._user(credential).username].password = request.new_password
        self.others.clear()
        return Nothing()

    def _begin_mfa(self, _: contract.BeginMfa, credential: Credential | None) -> contract.MfaSeed:
        self._check_fresh("auth.beginMfa")
        self._user(credential)
        self.seeds_begun += 1
        return contract.MfaSeed(SEED, URI)

    def _enable_mfa(self, request: contract.EnableMfa, credential: Credential | None) -> contract.RecoveryCodes:
        self._check_fresh("auth.enableMfa")
        if request.code != CODE:
            raise errors.BadRequest("code: it does not match this seed", hint="wait for the next one")
        token = self._token(credential)
        self.with_factor.add(self.sessions[token].username)
        session = self._exchanged(token, Step.DONE) if token in self.steps else None
        return contract.RecoveryCodes(RECOVERY_CODES, session)

    def _disable_mfa(self, request: contract.DisableMfa, credential: Credential | None) -> Nothing:
        self._check_fresh("auth.disableMfa")
        if request.code not in (CODE, *RECOVERY_CODES):
            raise WRONG_CODE
        self.with_factor.discard(self._user(credential).username)
        return Nothing()

    def _renew_recovery_codes(self, _: contract.RenewRecoveryCodes, credential: Credential | None) -> contract.RecoveryCodes:
        self._check_fresh("auth.renewRecoveryCodes")
        if self._user(credential).username not in self.with_factor:
            raise errors.NotFound("this account has no second factor", hint="beginMfa sets one up")
        return contract.RecoveryCodes(RECOVERY_CODES)

    def _list_sessions(self, _: contract.ListSessions, credential: Credential | None) -> contract.OpenSessions:
        self._user(credential)
        agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
        this = contract.OpenSession("this", auth.SessionKind.BROWSER, NOW, NOW, auth.ClientFacts("127.0.0.1", agent), is_this=True)
        return contract.OpenSessions((*self.others, this))

    def _end_session(self, request: contract.EndSession, _: Credential | None) -> Nothing:
        if request.id is not None and all(each.id != request.id for each in self.others):
            raise errors.NotFound("you have no open session with this id", hint="listSessions shows them")
        self.others = [each for each in self.others if request.id not in (None, each.id)]
        return Nothing()

    def _list_oidc_links(self, _: contract.ListOidcLinks, __: Credential | None) -> contract.OidcLinks:
        return contract.OidcLinks(tuple(self.provider_links))

    def _remove_oidc_link(self, request: contract.RemoveOidcLink, credential: Credential | None) -> Nothing:
        if self._user(credential).username in self.without_password:
            raise errors.NotAllowed("nothing else opens your account", hint="set a password first, then remove this")
        self.provider_links = [link for link in self.provider_links if link.subject != request.subject]
        return Nothing()

    # --- own data ----------------------------------------------------------------------------------------------------------

    async def _export_account(self, _: accounts.ExportAccount, credential: Credential | None) -> AsyncIterator[accounts.ExportedFile]:
        self._check_fresh("auth.exportAccount")
        user = self._user(credential)
        yield accounts.ExportedFile("README.txt", b"What is in here.\n")
        yield accounts.ExportedFile("account.json", b'[\n{"username": "')
        yield accounts.ExportedFile("account.json", user.username.encode() + b'"}\n]\n')

    async def _export_requests(
        self, _: usage_report.ExportRequests, credential: Credential | None
    ) -> AsyncIterator[usage_report.LoggedRequests]:
        self._user(credential)
        for request in self.logged:
            yield usage_report.LoggedRequests((request,))

    def _get_usage_report(self, _: usage_report.GetUsageReport, credential: Credential | None) -> usage_report.UsageSummary:
        self._user(credential)
        return usage_report.UsageSummary(usage_report.UsageSum(requests=len(self.logged)), (), (), ())

    def _request_erasure(self, _: accounts.RequestErasure, __: Credential | None) -> accounts.Erasure:
        self._check_fresh("auth.requestErasure")
        self.erased_at = NOW + timedelta(days=30)
        return accounts.Erasure(self.erased_at)

    def _cancel_erasure(self, _: accounts.CancelErasure, __: Credential | None) -> Nothing:
        self.erased_at = None
        return Nothing()

    # --- switching organizations -------------------------------------------------------------------------------------------

    def _switch_organisation(self, request: contract.SwitchTeam, credential: Credential | None) -> auth.LoginSession:
        user = self._user(credential)
        if request.team_id is not None and all(page.organisation.id != request.team_id for page in self._teams_of(user)):
            raise errors.NotFound("you are not a member of an organization with this id", hint="listOrganisations shows yours")
        old = self._token(credential)
        token = self.add_session(self.sessions.pop(old))
        if request.team_id is not None:
            self.acting[token] = request.team_id
        return self._session(token)

    # --- helpers -----------------------------------------------------------------------------------------------------------

    def add_session(self, user: auth.User) -> str:
        raise NotImplementedError

    def _user(self, credential: Credential | None) -> auth.User:
        raise NotImplementedError

    def _session(self, token: str) -> auth.LoginSession:
        raise NotImplementedError

    def _token(self, credential: Credential | None) -> str:
        """Return the token of the caller's newest session."""
        user = self._user(credential)
        return [token for token, each in self.sessions.items() if each.id == user.id][-1]

    def _exchanged(self, token: str, step: Step) -> auth.LoginSession:
        """Replace the token of this login, and return the new session."""
        newer = self.add_session(self.sessions.pop(token))
        self.steps.pop(token, None)
        self.steps[newer] = step
        return self._session(newer)

    def _check_fresh(self, method: str) -> None:
        if self.is_stale and access_table.of_method(method).fresh:
            raise errors.ConfirmationNeeded("this is sensitive", hint="confirm it")
