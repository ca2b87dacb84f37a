"""The in-memory mesh of the page tests answers as the real services do: both get the same calls, step by step."""

import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from uuid import UUID

import msgspec
import pytest

from services.web.mesh_calls import MeshCalls
from shared import errors
from shared.api import accounts, auth, gateway, organizations, usage_report
from shared.api.method import Method, Reply, Request
from shared.types import Credential, ModelName, Role, TenantId
from tests.integration import access_people
from tests.services.web import fake_accounts
from tests.services.web.fake_mesh import FakeMesh
from tests.stacks import RunningStack

PASSWORD, OTHER_PASSWORD = "correct horse battery staple", "another battery of horses"
NOBODY = UUID(int=1)
#: Random values and times: only their presence is compared.
VARIES = frozenset({
    "accessToken", "apiKey", "browser", "client", "codes", "createdAt", "erasedAt", "expiresAt", "expiresIn", "id", "joinedAt",
    "lastUsedAt", "openedAt", "preview", "resetsAt", "secret", "sessionToken", "teamId", "token", "uri", "userId",
})  # fmt: skip


@dataclass(slots=True)
class Side:
    """One of the two meshes, and its answers."""

    mesh: MeshCalls
    #: Returns the code that an authenticator app with this secret shows.
    code_of: Callable[[str], str]
    answers: list[tuple[str, object]] = field(default_factory=list)

    async def ask(self, what: str, method: Method[Request, Reply], request: Request, credential: Credential | None = None) -> Reply | None:
        """Return the reply; None for a caller's error."""
        try:
            reply = await self.mesh.call(method, request, credential=credential)
        except errors.CallerError as error:
            self.answers.append((f"{method.name}: {what}", error.code))
            return None
        self.answers.append((f"{method.name}: {what}", _without_draws(msgspec.to_builtins(reply))))
        return reply


def _without_draws(value: object) -> object:
    if isinstance(value, dict):
        return {name: bool(part) if name in VARIES else _without_draws(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_draws(part) for part in value]
    return value


def sure(reply: Reply | None) -> Reply:
    assert reply is not None, "this call had to succeed, because the next ones need its answer"
    return reply


async def register(side: Side, name: str) -> None:
    data = auth.UserData(name, f"{name}@example.org", PASSWORD)
    await side.ask("with a short password", auth.register_user, auth.RegisterUser(msgspec.structs.replace(data, password="short")))
    await side.ask("somebody new", auth.register_user, auth.RegisterUser(data))
    await side.ask("the same name again", auth.register_user, auth.RegisterUser(data))


async def log_in(side: Side, name: str, password: str = PASSWORD) -> auth.LoginSession:
    client = auth.ClientFacts("192.0.2.7", "a browser")
    asked = auth.LoginUser(auth.Credentials(password, name), kind=auth.SessionKind.BROWSER, client=client)
    return sure(await side.ask("the right password", auth.login_user, asked))


async def use_sessions(side: Side, name: str) -> auth.LoginSession:
    """Return the session that is still open at the end."""
    await side.ask("anybody", accounts.get_sign_in_options, accounts.GetSignInOptions())
    for what, found in (("wrong password", auth.Credentials("wrong", name)), ("nobody", auth.Credentials(PASSWORD, "no-such-person"))):
        await side.ask(what, auth.login_user, auth.LoginUser(found, kind=auth.SessionKind.BROWSER))
    by_mail = auth.Credentials(PASSWORD, email=f"{name}@example.org")
    first = sure(await side.ask("by email", auth.login_user, auth.LoginUser(by_mail, kind=auth.SessionKind.BROWSER)))
    await side.ask("an open one", auth.resume_session, auth.ResumeSession(first.session_token))
    await side.ask("an open one", auth.logout_user, auth.LogoutUser(first.session_token))
    await side.ask("one that was ended", auth.resume_session, auth.ResumeSession(first.session_token))
    await side.ask("one that was ended", auth.logout_user, auth.LogoutUser(first.session_token))
    await side.ask("a code that is none", auth.redeem_login_link, auth.RedeemLoginLink("made-up"))
    return await log_in(side, name)


async def use_keys(side: Side, mine: Credential, others: Credential) -> None:
    await side.ask("without a name", auth.generate_api_key, auth.GenerateApiKey(""), mine)
    made = sure(await side.ask("with a name", auth.generate_api_key, auth.GenerateApiKey("laptop", all_rights=True), mine))
    await side.ask("the same name again", auth.generate_api_key, auth.GenerateApiKey("laptop"), mine)
    await side.ask("without a login", auth.generate_api_key, auth.GenerateApiKey("stray"), Credential("made-up"))
    await side.ask("one", auth.list_api_keys, auth.ListApiKeys(), mine)
    await side.ask("somebody else's are not shown", auth.list_api_keys, auth.ListApiKeys(), others)
    key = str(made.key.id)
    await side.ask("another name", auth.rename_api_key, auth.RenameApiKey(key, "desktop"), mine)
    await side.ask("no name", auth.rename_api_key, auth.RenameApiKey(key, ""), mine)
    await side.ask("no key", auth.rename_api_key, auth.RenameApiKey(str(NOBODY), "x"), mine)
    await side.ask("somebody else's", auth.revoke_api_key, auth.RevokeApiKey(key), others)
    await side.ask("one's own", auth.rotate_api_key, auth.RotateApiKey(key), mine)
    await side.ask("one's own", auth.revoke_api_key, auth.RevokeApiKey(key), mine)
    await side.ask("one that was revoked", auth.rotate_api_key, auth.RotateApiKey(key), mine)


async def use_account(side: Side, session: auth.LoginSession, name: str, taken: str) -> None:
    mine = session.access_token
    await side.ask("one's own", accounts.get_account, accounts.GetAccount(), mine)
    await side.ask("without a login", accounts.get_account, accounts.GetAccount())
    await side.ask("dark", accounts.set_preferences, accounts.SetPreferences(accounts.Preferences(theme="dark")), mine)
    await side.ask("no theme", accounts.set_preferences, accounts.SetPreferences(accounts.Preferences(theme="pink")), mine)
    await side.ask("with a theme", auth.resume_session, auth.ResumeSession(session.session_token))
    await side.ask("a name that is taken", accounts.change_profile, accounts.ChangeProfile(username=taken), mine)
    await side.ask("another address", accounts.change_profile, accounts.ChangeProfile(email=f"{name}@example.net"), mine)
    await side.ask("a short one", accounts.change_password, accounts.ChangePassword("short"), mine)
    await side.ask("a good one", accounts.change_password, accounts.ChangePassword(OTHER_PASSWORD), mine)
    await side.ask("the old one", auth.confirm_again, auth.ConfirmAgain(password=PASSWORD), mine)
    await side.ask("the new one", auth.confirm_again, auth.ConfirmAgain(password=OTHER_PASSWORD), mine)
    await side.ask("one's own", accounts.list_sessions, accounts.ListSessions(), mine)
    await side.ask("none", accounts.end_session, accounts.EndSession("made-up"), mine)
    await side.ask("no provider", accounts.list_oidc_links, accounts.ListOidcLinks(), mine)
    await side.ask("no provider", accounts.begin_oidc, accounts.BeginOidc("http://127.0.0.1/login/oidc/back"))
    await side.ask("somebody", accounts.request_password_reset, accounts.RequestPasswordReset(name))
    await side.ask("nobody", accounts.request_password_reset, accounts.RequestPasswordReset("no-such-person"))
    await side.ask("a code that is none", accounts.reset_password, accounts.ResetPassword("made-up", PASSWORD))


async def use_factor(side: Side, mine: Credential) -> None:
    await side.ask("without a factor", accounts.renew_recovery_codes, accounts.RenewRecoveryCodes(), mine)
    seed = sure(await side.ask("none yet", accounts.begin_mfa, accounts.BeginMfa(), mine))
    await side.ask("a wrong code", accounts.enable_mfa, accounts.EnableMfa("000000"), mine)
    made = sure(await side.ask("the right code", accounts.enable_mfa, accounts.EnableMfa(side.code_of(seed.secret)), mine))
    await side.ask("with a factor", accounts.get_account, accounts.GetAccount(), mine)
    await side.ask("with a factor", accounts.renew_recovery_codes, accounts.RenewRecoveryCodes(), mine)
    await side.ask("a wrong code", accounts.disable_mfa, accounts.DisableMfa("000000"), mine)
    assert len(made.codes) == 10


async def use_organisations(side: Side, mine: Credential, others: Credential, address: str) -> None:
    await side.ask("none", organizations.list_organisations, organizations.ListOrganizations(), mine)
    await side.ask("without a name", organizations.create_organisation, organizations.CreateOrganization("\n"), mine)
    team = sure(await side.ask("a new one", organizations.create_organisation, organizations.CreateOrganization("Lab"), mine)).id
    await side.ask("one's own", organizations.get_organisation, organizations.GetOrganization(team), mine)
    await side.ask("somebody else's", organizations.get_organisation, organizations.GetOrganization(team), others)
    await side.ask("somebody else's", accounts.switch_organisation, accounts.SwitchTeam(team), others)
    await side.ask("no address", organizations.invite_member, organizations.InviteMember(team, "nowhere"), mine)
    made = sure(await side.ask("an address", organizations.invite_member, organizations.InviteMember(team, address), mine))
    await side.ask("a code that is none", organizations.read_invitation, organizations.ReadInvitation("made-up"), others)
    await side.ask("without a login", organizations.read_invitation, organizations.ReadInvitation(made.token))
    await side.ask("the code", organizations.read_invitation, organizations.ReadInvitation(made.token), others)
    await side.ask("a code that is none", organizations.accept_invitation, organizations.AcceptInvitation("made-up"), others)
    await side.ask("the code", organizations.accept_invitation, organizations.AcceptInvitation(made.token), others)
    await side.ask("a member", organizations.rename_organisation, organizations.RenameOrganization(team, "Ours"), others)
    await side.ask("an owner", organizations.rename_organisation, organizations.RenameOrganization(team, "Ours"), mine)
    code = organizations.ReadColleagueInvitation("made-up")
    await side.ask("a code that is none", organizations.read_colleague_invitation, code)
    accepted = organizations.AcceptColleagueInvitation("made-up")
    await side.ask("a code that is none", organizations.accept_colleague_invitation, accepted, mine)
    none = organizations.WithdrawInvitation(team, "made-up")
    await side.ask("none", organizations.withdraw_invitation, none, mine)
    await side.ask("no organisation", organizations.get_organisation, organizations.GetOrganization(TenantId(NOBODY)), mine)


async def use_gateway(side: Side, mine: Credential) -> None:
    await side.ask("one's own", usage_report.get_user_usage, usage_report.GetUserUsage(), mine)
    await side.ask("without a login", usage_report.get_user_usage, usage_report.GetUserUsage())
    await side.ask("without a login", gateway.get_user_quota, gateway.GetUserQuota())
    await side.ask("none", usage_report.list_requests, usage_report.ListRequests(), mine)
    await side.ask("no order of a user", gateway.load_model, gateway.LoadOnWorker(ModelName("echo")), mine)


async def erase(side: Side, mine: Credential) -> None:
    await side.ask("in a month", accounts.request_erasure, accounts.RequestErasure(), mine)
    await side.ask("after a change of mind", accounts.cancel_erasure, accounts.CancelErasure(), mine)


async def live(side: Side, name: str) -> None:
    """Use everything that the pages offer, as two users."""
    other = f"{name}-b"
    await register(side, name)
    await register(side, other)
    session, others = await use_sessions(side, name), (await log_in(side, other)).access_token
    mine = session.access_token
    await use_keys(side, mine, others)
    await use_organisations(side, mine, others, f"{other}@example.org")
    await use_gateway(side, mine)
    await use_account(side, session, name, other)
    await use_factor(side, mine)
    await erase(side, others)


@pytest.fixture
async def real(stack: RunningStack) -> AsyncIterator[Side]:
    async with access_people.node(stack, Role.WEB) as web:
        yield Side(web.rpc, access_people.code)


async def test_the_fake_mesh_answers_as_the_services_do(real: Side) -> None:
    fake = Side(FakeMesh(), lambda _: fake_accounts.CODE)
    name = f"both-{secrets.token_hex(4)}"
    await live(real, name)
    await live(fake, name)
    assert len(real.answers) >= 60
    pairs = zip(real.answers, fake.answers, strict=True)
    different = [f"{what}\n  services: {answer}\n  fake:     {other}" for (what, answer), (_, other) in pairs if answer != other]
    assert not different, "\n".join(different)
