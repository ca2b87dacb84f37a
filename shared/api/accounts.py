"""auth: what people do with their own account: profile, password, second factor, sessions, preferences, links to a provider."""

from datetime import datetime
from typing import Annotated

import msgspec

from shared.api.auth import PEOPLE, ClientFacts, LoginSession, SessionKind, User
from shared.api.method import Body, Method, Nothing
from shared.types import ModelName, Role, TenantId

Text = Annotated[str, msgspec.Meta(max_length=200)]


class Preferences(Body, frozen=True, omit_defaults=False):
    #: None: the mesh's own default.
    default_model: ModelName | None = None
    #: light, dark or system.
    theme: str = "system"
    #: Mail about new logins, expiring keys and budgets that run out.
    notify_by_mail: bool = True


class GetAccount(Body, frozen=True):
    pass


class OwnAccount(Body, frozen=True, omit_defaults=False):
    """All that the settings page shows."""

    user: User
    preferences: Preferences
    has_password: bool
    mfa_enabled: bool
    recovery_codes_left: int
    #: The account is deleted then; None where nobody asked for that.
    erased_at: datetime | None = None
    #: The name of the provider on the login button; None where there is none.
    oidc_name: str | None = None


class ChangeProfile(Body, frozen=True):
    """None leaves it as it is."""

    username: str | None = None
    email: str | None = None


class ChangePassword(Body, frozen=True):
    """Ends all other sessions."""

    new_password: str


class RequestPasswordReset(Body, frozen=True):
    """By user name or address; the answer is the same whether or not there is such an account."""

    name: Text
    #: From where, as web and the gateway see it: so many of one address are enough.
    client: ClientFacts = ClientFacts()


class ResetPassword(Body, frozen=True):
    """Ends all sessions. The second factor stays."""

    token: Text
    new_password: str


class SetPreferences(Body, frozen=True):
    preferences: Preferences


class BeginMfa(Body, frozen=True):
    pass


class MfaSeed(Body, frozen=True):
    """For the authenticator app; not in force before a code has been shown."""

    #: In base32, to be typed.
    secret: str
    #: otpauth://…, for a QR code.
    uri: str


class EnableMfa(Body, frozen=True):
    code: Text


class RecoveryCodes(Body, frozen=True, omit_defaults=False):
    """The only message that ever carries them; each works once in place of a code."""

    codes: tuple[str, ...]
    #: The login that set up what it lacked goes on with this one.
    session: LoginSession | None = None


class DisableMfa(Body, frozen=True):
    code: Text


class RenewRecoveryCodes(Body, frozen=True):
    pass


class ListSessions(Body, frozen=True):
    pass


class OpenSession(Body, frozen=True, omit_defaults=False):
    """What may be shown of a session."""

    id: str
    kind: SessionKind
    opened_at: datetime
    last_used_at: datetime
    client: ClientFacts
    #: The one that asks.
    is_this: bool


class OpenSessions(Body, frozen=True):
    sessions: tuple[OpenSession, ...]


class EndSession(Body, frozen=True):
    """None ends all but the one that asks."""

    id: str | None = None


class BeginOidc(Body, frozen=True):
    #: Where the provider shall send the browser back to; one of this mesh's own addresses.
    redirect_uri: str
    #: Shown to the page after the login.
    then: Text = ""
    #: A session that shall be linked to the provider's account, in place of logging in.
    session_token: str | None = None
    #: The provider shall ask for the password anew: how somebody without one here confirms something sensitive.
    fresh: bool = False


class OidcStart(Body, frozen=True):
    #: Where to send the browser.
    url: str
    #: For a cookie: whoever comes back has to bring it.
    binding: str


class FinishOidc(Body, frozen=True):
    state: Text
    binding: Text
    code: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    #: What the provider says in place of a code, such as access_denied.
    error: Text | None = None
    #: As it came, RFC 9207; None where the provider sends none.
    issuer: str | None = None
    client: ClientFacts = ClientFacts()


class OidcEnd(Body, frozen=True, omit_defaults=False):
    #: None where an account was linked.
    session: LoginSession | None
    then: str


class LeaveOidc(Body, frozen=True):
    """Before ``logoutUser``: where to send the browser so that the provider's session ends, too."""

    session_token: str
    #: Where the provider shall send the browser back to.
    then: str


class LeftOidc(Body, frozen=True, omit_defaults=False):
    #: None where the session did not begin at a provider, or it has no such place.
    url: str | None


class GetSignInOptions(Body, frozen=True):
    pass


class SignInOptions(Body, frozen=True, omit_defaults=False):
    """What the pages for visitors have to know."""

    open_registration: bool
    password_min_length: int
    #: The name on the button of the provider; None where there is none.
    oidc_name: str | None = None


class ListOidcLinks(Body, frozen=True):
    pass


class OidcLink(Body, frozen=True):
    issuer: str
    subject: str
    email: str
    linked_at: datetime


class OidcLinks(Body, frozen=True):
    links: tuple[OidcLink, ...]


class RemoveOidcLink(Body, frozen=True):
    issuer: str
    subject: str


class SwitchTeam(Body, frozen=True):
    """Go on as another organisation, or with None as oneself. The answer has a new session token."""

    team_id: TenantId | None = None


get_account = Method("auth.getAccount", GetAccount, OwnAccount, callers=PEOPLE)
change_profile = Method("auth.changeProfile", ChangeProfile, User, callers=PEOPLE)
change_password = Method("auth.changePassword", ChangePassword, Nothing, callers=PEOPLE)
request_password_reset = Method("auth.requestPasswordReset", RequestPasswordReset, Nothing, callers=PEOPLE)
reset_password = Method("auth.resetPassword", ResetPassword, Nothing, callers=PEOPLE)
set_preferences = Method("auth.setPreferences", SetPreferences, Preferences, callers=PEOPLE)
begin_mfa = Method("auth.beginMfa", BeginMfa, MfaSeed, callers=PEOPLE)
enable_mfa = Method("auth.enableMfa", EnableMfa, RecoveryCodes, callers=PEOPLE)
disable_mfa = Method("auth.disableMfa", DisableMfa, Nothing, callers=PEOPLE)
renew_recovery_codes = Method("auth.renewRecoveryCodes", RenewRecoveryCodes, RecoveryCodes, callers=PEOPLE)
list_sessions = Method("auth.listSessions", ListSessions, OpenSessions, callers=PEOPLE)
end_session = Method("auth.endSession", EndSession, Nothing, callers=PEOPLE)
begin_oidc = Method("auth.beginOidc", BeginOidc, OidcStart, callers={Role.WEB})
finish_oidc = Method("auth.finishOidc", FinishOidc, OidcEnd, callers={Role.WEB})
leave_oidc = Method("auth.leaveOidc", LeaveOidc, LeftOidc, callers={Role.WEB})
get_sign_in_options = Method("auth.getSignInOptions", GetSignInOptions, SignInOptions, callers=PEOPLE)
list_oidc_links = Method("auth.listOidcLinks", ListOidcLinks, OidcLinks, callers=PEOPLE)
remove_oidc_link = Method("auth.removeOidcLink", RemoveOidcLink, Nothing, callers=PEOPLE)
switch_organisation = Method("auth.switchOrganisation", SwitchTeam, LoginSession, callers=PEOPLE)
