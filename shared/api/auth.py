"""auth: users, sessions and API keys."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec

from shared.api.method import Body, Method, Nothing, StreamMethod
from shared.api.usage_report import UserUsage
from shared.types import Credential, KeyId, MicroCredits, ModelName, Role, TenantId, Tier, UserId, UserRole

PEOPLE = {Role.CLIENT, Role.WEB, Role.GATEWAY, Role.OPERATOR}

#: A part of a text; no pattern. PostgreSQL has no NUL.
Search = Annotated[str, msgspec.Meta(max_length=200, pattern=r"^[^\x00]*\Z")]


class UserData(Body, frozen=True):
    username: str
    email: str
    password: str


class User(Body, frozen=True):
    id: UserId
    username: str
    email: str
    role: UserRole
    tier: Tier
    is_active: bool
    created_at: datetime


class Credentials(Body, frozen=True):
    """A password with the name it belongs to: `username` or `email`, one of them."""

    password: str
    username: str | None = None
    email: str | None = None
    #: Of the second factor, where there is one: six digits, or a recovery code.
    code: str | None = None


class SessionKind(StrEnum):
    """How a session's token is used."""

    #: By a program: each refresh gives a new token and spends the old one; a spent one that comes again ends the session.
    PROGRAM = "program"
    #: By web, from a cookie: the token stays, the session ends when it is not used for an hour.
    BROWSER = "browser"


class ClientFacts(Body, frozen=True):
    """Where somebody comes from, for the list of one's sessions and for what an address may do; as the door says that it saw it."""

    address: str = ""
    #: The browser or program, as it calls itself.
    agent: str = ""


class RegisterUser(Body, frozen=True):
    user_data: UserData
    client: ClientFacts = ClientFacts()
    #: The code of an open invitation to the e-mail address: with it its addressee may register where registration is closed.
    invitation: str | None = None


class LoginUser(Body, frozen=True):
    credentials: Credentials
    kind: SessionKind = SessionKind.PROGRAM
    client: ClientFacts = ClientFacts()
    #: The ``browser`` of an earlier session of this browser; empty where it has none.
    browser: str = ""


class Step(StrEnum):
    """What a login still lacks. Until it is done, its access token is good for that step and nothing else."""

    DONE = "done"
    #: ``confirmLogin`` takes the code.
    ENTER_CODE = "enter_code"
    #: An administrator without a second factor: ``beginMfa`` and ``enableMfa`` set it up.
    SET_UP_MFA = "set_up_mfa"


class LoginSession(Body, frozen=True, omit_defaults=False):
    #: A JWT, good for ``expires_in`` seconds, to be sent as `Authorization: Bearer …`.
    access_token: Credential
    expires_in: int
    #: Opaque; gives a new access token until the session ends: ``refreshSession``, or ``resumeSession`` for a browser's.
    session_token: str
    user: User
    token_type: str = "Bearer"  # noqa: S105 - a word of RFC 6749
    step: Step = Step.DONE
    #: The organisation that it acts for; None for the user's own.
    team_id: TenantId | None = None
    team_name: str | None = None
    #: How the person set the pages up: light, dark or system; None where nothing was chosen.
    theme: str | None = None
    #: For web to keep in the browser and to send with its next login: a browser that has signed in before is not locked out by strangers
    #: who guess the password. Opens nothing.
    browser: str | None = None


class RefreshSession(Body, frozen=True):
    """The answer has a new session token; the one that was sent is spent."""

    session_token: str


class ResumeSession(Body, frozen=True):
    """For web: the session of a cookie. The token stays the same."""

    session_token: str


class ConfirmLogin(Body, frozen=True):
    """The second step of a login. The answer has a new session token; the one of the first step is good for nothing."""

    #: Six digits, or a recovery code.
    code: str


class ConfirmAgain(Body, frozen=True):
    """Makes the login of the call's credential fresh: with the password, or with a code where there is a second factor."""

    password: str | None = None
    code: str | None = None


class LogoutUser(Body, frozen=True):
    session_token: str


class ApiKeyLimits(Body, frozen=True, omit_defaults=False):
    """What one key may use, besides what its user may; None is no limit of its own. The tightest limit holds."""

    requests_per_hour: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    #: Requests that run at once.
    concurrency: int | None = None
    #: What all its requests may cost together.
    budget_micro: MicroCredits | None = None


class KeyKind(StrEnum):
    """What a key is for; it shows in its first letters."""

    #: `aip_live_`: everyday work. Never an administrator's rights.
    LIVE = "live"
    #: `aip_test_`: for CI and examples: runs models and lists them, 60 requests an hour, at most 30 days.
    TEST = "test"
    #: `aip_adm_`: an administrator's, with their rights.
    ADMIN = "adm"


class KeyBounds(Body, frozen=True, omit_defaults=False):
    """What a key may be used for and from where; its limits are apart."""

    #: Of ``shared.access.access_table.Permission``; at most those of who makes it. Empty in a request: what is usual for a new key. Empty
    #: in a stored
    #: key: all that its kind may have of its owner's.
    scopes: tuple[str, ...] = ()
    #: Only these; empty for all that its owner may use.
    models: tuple[ModelName, ...] = ()
    #: Only from there, in CIDR form; empty for everywhere.
    networks: tuple[str, ...] = ()


#: How long a key is good where nobody says otherwise; one for tests never for longer.
KEY_DAYS = 90
TEST_KEY_DAYS = 30


class GenerateApiKey(Body, frozen=True):
    """``user_id`` None means the owner of the call's credential; another's only for an admin."""

    name: str = "default"
    user_id: UserId | None = None
    limits: ApiKeyLimits = ApiKeyLimits()
    kind: KeyKind = KeyKind.LIVE
    bounds: KeyBounds = KeyBounds()
    #: 0 for a key that never expires; None for what is usual for its kind.
    days: int | None = None
    #: All that its kind may have of its owner's, now and later; without it and without scopes a live or test key uses models and reads
    #: usage.
    all_rights: bool = False


class ApiKey(Body, frozen=True):
    """What may be shown of a key at any time."""

    id: KeyId
    user_id: UserId
    name: str
    #: The first 12 and the last 4 characters, to recognise a key by.
    preview: str
    is_active: bool
    created_at: datetime
    last_used_at: datetime | None = None
    limits: ApiKeyLimits = ApiKeyLimits()
    kind: KeyKind = KeyKind.LIVE
    bounds: KeyBounds = KeyBounds()
    #: None for never.
    expires_at: datetime | None = None
    #: The organisation whose key it is; None for the user's own.
    team_id: TenantId | None = None
    #: The key that made it; None where a login did.
    made_by: KeyId | None = None


class RotateApiKey(Body, frozen=True):
    """A new secret for the same key; the old one goes on for the overlap and then ends."""

    #: The key's id, or its name where that is unique among the owner's active keys.
    key: str
    overlap_seconds: int = 24 * 3600


class RenameApiKey(Body, frozen=True):
    #: The key's id, or its name where that is unique among the owner's active keys.
    key: str
    name: str


class CreatedApiKey(Body, frozen=True):
    """The only message that ever carries a whole key."""

    api_key: Credential
    key: ApiKey


class ListApiKeys(Body, frozen=True):
    user_id: UserId | None = None


class ApiKeys(Body, frozen=True):
    keys: tuple[ApiKey, ...]


class RevokeApiKey(Body, frozen=True):
    #: The key's id, or its name where that is unique among the owner's active keys.
    key: str
    #: Also the keys that it made, those that they made, and so on; also where the key itself was revoked before.
    with_made: bool = False


class ValidateApiKey(Body, frozen=True):
    api_key: Credential


class Identify(Body, frozen=True):
    credential: Credential


class Principal(Body, frozen=True):
    """Who a credential belongs to and what it carries."""

    user_id: UserId
    username: str
    role: UserRole
    tier: Tier
    #: None where the credential is an access token and not a key.
    key_id: KeyId | None = None
    key_name: str | None = None
    #: Of the key; none where the credential is an access token.
    key_limits: ApiKeyLimits = ApiKeyLimits()
    #: The organisation that it acts for; None for the user's own.
    team_id: TenantId | None = None
    #: Of the key: see ``shared.access.access_table``; None for a login, which may do all that its user may.
    scopes: tuple[str, ...] | None = None
    #: Of the key: only these, where there are any.
    models: tuple[ModelName, ...] = ()
    #: Of the key: only from there, where there are any.
    networks: tuple[str, ...] = ()
    #: Of a login: what it still lacks, and when a password or a code was last shown, in seconds since 1970.
    step: Step = Step.DONE
    confirmed_at: float | None = None
    #: Of a key, and of a secret that was replaced: when it ends, in seconds since 1970; None for never. No cache may outlive it.
    expires_at: float | None = None
    #: Of an organisation that shares its founder's limits, and has no included credits: its founder.
    founder_id: UserId | None = None

    @property
    def tenant_id(self) -> TenantId:
        """Who is charged and shown: the organisation, or the user's own."""
        return TenantId(self.user_id) if self.team_id is None else self.team_id

    @property
    def limited_as(self) -> TenantId:
        """Whose limits its requests count against: its founder's for an organisation that shares them."""
        return self.tenant_id if self.founder_id is None else TenantId(self.founder_id)


class SetTier(Body, frozen=True):
    #: A username, an e-mail address or a user id.
    user: str
    tier: Tier


class SetRole(Body, frozen=True):
    #: A username, an e-mail address or a user id.
    user: str
    role: UserRole


class SetActive(Body, frozen=True):
    """Close an account, or open it again; its keys and sessions stop and work with it."""

    user: str
    is_active: bool


class RemoveMfa(Body, frozen=True):
    """Takes the second factor of somebody who has lost it, with the recovery codes; their sessions end, their keys go on."""

    user: str


class GetUser(Body, frozen=True):
    user_id: UserId


class GetUserCalled(Body, frozen=True):
    """For administrators."""

    #: A username, an e-mail address or a user id.
    user: str


class ListUsers(Body, frozen=True):
    """The newest first."""

    limit: int = 100
    #: A part of the name or the address, in any case of its letters, or a whole id; empty finds all.
    search: Search = ""
    #: The last one of the page before; None for the first page.
    after: UserId | None = None


class Users(Body, frozen=True):
    users: tuple[User, ...]
    #: There are older ones.
    more: bool = False


class GetUserUsage(Body, frozen=True):
    user_id: UserId | None = None


class GetSigningKeys(Body, frozen=True):
    pass


class SigningKey(Body, frozen=True, omit_defaults=False):
    """The public half of a key that signs access tokens, as RFC 8037 writes it."""

    kid: str
    x: str


class SigningKeys(Body, frozen=True):
    keys: tuple[SigningKey, ...]


class RotateSigningKeys(Body, frozen=True):
    """A new key signs after it has been published for a while; ``at_once`` also forgets the present one, for one that leaked."""

    at_once: bool = False


class WatchChanges(Body, frozen=True):
    #: The last sequence number seen; 0 for everything from now on.
    since: int = 0


class Change(Body, frozen=True):
    """Something that a cached Principal may depend on has changed; ``user_id`` None means: forget everything."""

    sequence: int
    user_id: UserId | None = None


class CreateLoginLink(Body, frozen=True):
    """A one-time token that logs its bearer in on the dashboard within a minute."""


class LoginLink(Body, frozen=True):
    token: str
    expires_in: int


class RedeemLoginLink(Body, frozen=True):
    token: str
    client: ClientFacts = ClientFacts()


register_user = Method("auth.registerUser", RegisterUser, User, callers=PEOPLE)
login_user = Method("auth.loginUser", LoginUser, LoginSession, callers=PEOPLE)
refresh_session = Method("auth.refreshSession", RefreshSession, LoginSession, callers=PEOPLE)
resume_session = Method("auth.resumeSession", ResumeSession, LoginSession, callers={Role.WEB})
confirm_login = Method("auth.confirmLogin", ConfirmLogin, LoginSession, callers=PEOPLE)
confirm_again = Method("auth.confirmAgain", ConfirmAgain, Nothing, callers=PEOPLE)
logout_user = Method("auth.logoutUser", LogoutUser, Nothing, callers=PEOPLE)
create_login_link = Method("auth.createLoginLink", CreateLoginLink, LoginLink, callers={Role.CLIENT})
redeem_login_link = Method("auth.redeemLoginLink", RedeemLoginLink, LoginSession, callers={Role.WEB})
generate_api_key = Method("auth.generateApiKey", GenerateApiKey, CreatedApiKey, callers=PEOPLE)
rotate_api_key = Method("auth.rotateApiKey", RotateApiKey, CreatedApiKey, callers=PEOPLE)
rename_api_key = Method("auth.renameApiKey", RenameApiKey, ApiKey, callers=PEOPLE)
list_api_keys = Method("auth.listApiKeys", ListApiKeys, ApiKeys, callers=PEOPLE)
revoke_api_key = Method("auth.revokeApiKey", RevokeApiKey, ApiKey, callers=PEOPLE)
validate_api_key = Method("auth.validateApiKey", ValidateApiKey, Principal, callers={Role.GATEWAY, Role.WEB, Role.OPERATOR})
identify = Method("auth.identify", Identify, Principal, callers={Role.GATEWAY, Role.METRICS, Role.WEB})
get_user_usage = Method("auth.getUserUsage", GetUserUsage, UserUsage, callers=PEOPLE)
set_tier = Method("auth.setTier", SetTier, User, callers=PEOPLE)
set_role = Method("auth.setRole", SetRole, User, callers=PEOPLE)
set_active = Method("auth.setActive", SetActive, User, callers=PEOPLE)
remove_mfa = Method("auth.removeMfa", RemoveMfa, User, callers=PEOPLE)
get_user = Method("auth.getUser", GetUser, User, callers={Role.GATEWAY})
get_user_called = Method("auth.getUserCalled", GetUserCalled, User, callers=PEOPLE)
list_users = Method("auth.listUsers", ListUsers, Users, callers=PEOPLE)
get_signing_keys = Method("auth.getSigningKeys", GetSigningKeys, SigningKeys, callers={Role.GATEWAY, Role.WEB})
rotate_signing_keys = Method("auth.rotateSigningKeys", RotateSigningKeys, SigningKeys, callers=PEOPLE)
watch_changes = StreamMethod("auth.watchChanges", WatchChanges, item=Change, end=Nothing, callers={Role.GATEWAY, Role.WEB})
