"""auth: a user's own account: profile, password, second factor, sessions, preferences, links to an OpenID provider, data export and
erasure; and access reviews for administrators."""

from typing import Annotated

import msgspec

from shared.api.auth import PEOPLE, ClientFacts, LoginSession, SessionKind, User
from shared.api.method import Body, Method, Nothing, StreamMethod
from shared.types import ModelName, Moment, NodeId, Role, TenantId

Text = Annotated[str, msgspec.Meta(max_length=200)]


class Preferences(Body, frozen=True, omit_defaults=False):
    #: None: the mesh's default.
    default_model: ModelName | None = None
    #: light, dark or system.
    theme: str = "system"
    #: Email about new logins, expiring keys and budgets that run out.
    notify_by_mail: bool = True


class GetAccount(Body, frozen=True):
    pass


class OwnAccount(Body, frozen=True, omit_defaults=False):
    """Everything on the settings page."""

    user: User
    preferences: Preferences
    has_password: bool
    mfa_enabled: bool
    recovery_codes_left: int
    #: When the account will be deleted; None if no deletion was requested.
    erased_at: Moment | None = None
    #: The provider's name on the login button; None if there is no provider.
    oidc_name: str | None = None
    #: False if the mesh asks to verify the address, and the user hasn't yet.
    is_verified: bool = True


class ChangeProfile(Body, frozen=True):
    """A field that is None does not change."""

    username: str | None = None
    email: str | None = None


class ChangePassword(Body, frozen=True):
    """Ends all other sessions."""

    new_password: str


class RequestPasswordReset(Body, frozen=True):
    """By user name or address. The answer is the same whether or not the account exists."""

    name: Text
    #: The client as web or the gateway sees it, for limits per address.
    client: ClientFacts = ClientFacts()


class ResetPassword(Body, frozen=True):
    """Ends all sessions. The second factor stays."""

    token: Text
    new_password: str


class SendVerification(Body, frozen=True):
    """Email a code to the caller's address, with which they show that they read it."""


class VerifyAddress(Body, frozen=True):
    token: Text


class VerifiedAddress(Body, frozen=True, omit_defaults=False):
    #: See ``User``.
    has_free_tokens: bool


class SetPreferences(Body, frozen=True):
    preferences: Preferences


class BeginMfa(Body, frozen=True):
    pass


class MfaSeed(Body, frozen=True):
    """For the authenticator app. Takes effect once a code has been confirmed."""

    #: In base32, for typing.
    secret: str
    #: otpauth://…, for a QR code.
    uri: str


class EnableMfa(Body, frozen=True):
    code: Text


class RecoveryCodes(Body, frozen=True, omit_defaults=False):
    """The only message that contains the codes. Each works once in place of an app's code."""

    codes: tuple[str, ...]
    #: The session that replaces a login that lacked its second factor.
    session: LoginSession | None = None


class DisableMfa(Body, frozen=True):
    code: Text


class RenewRecoveryCodes(Body, frozen=True):
    pass


class ListSessions(Body, frozen=True):
    pass


class OpenSession(Body, frozen=True, omit_defaults=False):
    id: str
    kind: SessionKind
    opened_at: Moment
    last_used_at: Moment
    client: ClientFacts
    #: The session that asks.
    is_this: bool


class OpenSessions(Body, frozen=True):
    sessions: tuple[OpenSession, ...]


class EndSession(Body, frozen=True):
    """None ends all sessions except the caller's."""

    id: str | None = None


class BeginOidc(Body, frozen=True):
    #: Where the provider sends the browser back to; one of this mesh's addresses.
    redirect_uri: str
    #: The page to show after the login.
    then: Text = ""
    #: A session to link to the provider's account, instead of logging in.
    session_token: str | None = None
    #: Makes the provider ask for the password again. Users without a password here confirm sensitive actions this way.
    fresh: bool = False


class OidcStart(Body, frozen=True):
    #: Where to send the browser.
    url: str
    #: For a cookie that the returning browser must send.
    binding: str


class FinishOidc(Body, frozen=True):
    state: Text
    binding: Text
    code: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    #: The provider's error, such as access_denied, in place of a code.
    error: Text | None = None
    #: See RFC 9207; None if the provider sends none.
    issuer: str | None = None
    client: ClientFacts = ClientFacts()


class OidcEnd(Body, frozen=True, omit_defaults=False):
    #: None if an account was linked.
    session: LoginSession | None
    then: str


class LoginByIap(Body, frozen=True):
    #: The header X-Goog-IAP-JWT-Assertion.
    assertion: Annotated[str, msgspec.Meta(max_length=8192)]
    client: ClientFacts = ClientFacts()
    #: A session to link to this identity, instead of logging in.
    session_token: str | None = None


class IapEnd(Body, frozen=True, omit_defaults=False):
    #: None if an account was linked.
    session: LoginSession | None


class LeaveOidc(Body, frozen=True):
    """Ask before ``logoutUser`` where to send the browser to end the provider's session as well."""

    session_token: str
    #: Where the provider sends the browser back to.
    then: str


class LeftOidc(Body, frozen=True, omit_defaults=False):
    #: None if the session did not begin at a provider, or the provider has no logout page.
    url: str | None


class GetSignInOptions(Body, frozen=True):
    pass


class SignInOptions(Body, frozen=True, omit_defaults=False):
    """What the sign-in pages need."""

    open_registration: bool
    password_min_length: int
    #: The provider's name on the login button; None if there is no provider.
    oidc_name: str | None = None
    #: Whether web passes on the header of IAP.
    iap: bool = False


class ListOidcLinks(Body, frozen=True):
    pass


class OidcLink(Body, frozen=True):
    issuer: str
    subject: str
    email: str
    linked_at: Moment


class OidcLinks(Body, frozen=True):
    links: tuple[OidcLink, ...]


class RemoveOidcLink(Body, frozen=True):
    issuer: str
    subject: str


class SwitchTeam(Body, frozen=True):
    """Switch to another organization, or with None to the user's own. The answer has a new session token."""

    team_id: TenantId | None = None


class ExportAccount(Body, frozen=True):
    """Export everything that auth stores about the caller. web adds what the gateway stores."""


class ExportedFile(Body, frozen=True):
    """A file of the export, or a part of one. The parts of a file arrive in order."""

    name: str
    content: bytes


class RequestErasure(Body, frozen=True):
    """Delete all personal data in 30 days; the ledger's sums remain. A login cancels the erasure."""


class Erasure(Body, frozen=True):
    erased_at: Moment


class CancelErasure(Body, frozen=True):
    pass


class ReviewAccess(Body, frozen=True):
    """List what was not used for this many days."""

    days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 90


class StaleKey(Body, frozen=True, omit_defaults=False):
    id: str
    name: str
    owner: str
    kind: str
    created_at: Moment
    last_used_at: Moment | None
    #: Why it is listed, such as: never used, never expires, owner is closed.
    why: str


class StaleUser(Body, frozen=True, omit_defaults=False):
    username: str
    role: str
    created_at: Moment
    last_seen_at: Moment | None
    why: str


class StaleNode(Body, frozen=True, omit_defaults=False):
    id: NodeId
    name: str
    role: str
    owner: str
    last_seen_at: Moment
    why: str


class AccessReview(Body, frozen=True):
    keys: tuple[StaleKey, ...]
    users: tuple[StaleUser, ...]
    nodes: tuple[StaleNode, ...]


get_account = Method("auth.getAccount", GetAccount, OwnAccount, callers=PEOPLE)
change_profile = Method("auth.changeProfile", ChangeProfile, User, callers=PEOPLE)
change_password = Method("auth.changePassword", ChangePassword, Nothing, callers=PEOPLE)
request_password_reset = Method("auth.requestPasswordReset", RequestPasswordReset, Nothing, callers=PEOPLE)
reset_password = Method("auth.resetPassword", ResetPassword, Nothing, callers=PEOPLE)
send_verification = Method("auth.sendVerification", SendVerification, Nothing, callers=PEOPLE)
verify_address = Method("auth.verifyAddress", VerifyAddress, VerifiedAddress, callers=PEOPLE)
set_preferences = Method("auth.setPreferences", SetPreferences, Preferences, callers=PEOPLE)
begin_mfa = Method("auth.beginMfa", BeginMfa, MfaSeed, callers=PEOPLE)
enable_mfa = Method("auth.enableMfa", EnableMfa, RecoveryCodes, callers=PEOPLE)
disable_mfa = Method("auth.disableMfa", DisableMfa, Nothing, callers=PEOPLE)
renew_recovery_codes = Method("auth.renewRecoveryCodes", RenewRecoveryCodes, RecoveryCodes, callers=PEOPLE)
list_sessions = Method("auth.listSessions", ListSessions, OpenSessions, callers=PEOPLE)
end_session = Method("auth.endSession", EndSession, Nothing, callers=PEOPLE)
begin_oidc = Method("auth.beginOidc", BeginOidc, OidcStart, callers={Role.WEB})
finish_oidc = Method("auth.finishOidc", FinishOidc, OidcEnd, callers={Role.WEB})
login_by_iap = Method("auth.loginByIap", LoginByIap, IapEnd, callers={Role.WEB})
leave_oidc = Method("auth.leaveOidc", LeaveOidc, LeftOidc, callers={Role.WEB})
get_sign_in_options = Method("auth.getSignInOptions", GetSignInOptions, SignInOptions, callers=PEOPLE)
list_oidc_links = Method("auth.listOidcLinks", ListOidcLinks, OidcLinks, callers=PEOPLE)
remove_oidc_link = Method("auth.removeOidcLink", RemoveOidcLink, Nothing, callers=PEOPLE)
switch_organisation = Method("auth.switchOrganisation", SwitchTeam, LoginSession, callers=PEOPLE)
export_account = StreamMethod("auth.exportAccount", ExportAccount, item=ExportedFile, end=Nothing, callers=PEOPLE)
request_erasure = Method("auth.requestErasure", RequestErasure, Erasure, callers=PEOPLE)
cancel_erasure = Method("auth.cancelErasure", CancelErasure, Nothing, callers=PEOPLE)
review_access = Method("auth.reviewAccess", ReviewAccess, AccessReview, callers=PEOPLE)
