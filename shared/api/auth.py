"""auth: users, sessions and API keys."""

from enum import StrEnum
from typing import Annotated

import msgspec

from shared import limits
from shared.api.method import PEOPLE_OR_GATEWAY, Body, Method, Nothing, StreamMethod
from shared.types import Credential, KeyId, MicroCredits, ModelName, Moment, PlanName, Role, TenantId, UserId, UserRole

PEOPLE = PEOPLE_OR_GATEWAY

#: Text to search for, not a pattern. PostgreSQL does not store NUL.
Search = Annotated[str, msgspec.Meta(max_length=200, pattern=r"^[^\x00]*\Z")]


class UserData(Body, frozen=True):
    username: str
    email: str
    password: str


class Every(StrEnum):
    """When a budget is renewed: at the start of each of these in UTC. A budget that isn't renewed covers a whole life."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class Budget(Body, frozen=True):
    """What may be spent, in money."""

    micro: Annotated[MicroCredits, msgspec.Meta(ge=1, le=10**18)]
    every: Every | None = None


class User(Body, frozen=True):
    id: UserId
    username: str
    email: str
    role: UserRole
    tier: PlanName
    is_active: bool
    created_at: Moment
    #: False: it is done, but the recovery log on disk lacks it for now.
    logged: bool = True
    #: Of their own requests, not of those for an organization.
    budget: Budget | None = None
    #: Whether they get the tokens of a plan without a fee. False until they have verified their address, if the mesh asks for it, and for
    #: other accounts with the same address.
    has_free_tokens: bool = True


class Credentials(Body, frozen=True):
    """A password with either `username` or `email`."""

    password: str
    username: str | None = None
    email: str | None = None
    #: Six digits or a recovery code, if the account has a second factor.
    code: str | None = None


class SessionKind(StrEnum):
    #: For programs: each refresh returns a new token. Reusing an old one ends the session.
    PROGRAM = "program"
    #: For web's cookie: the token stays the same. The session ends after an hour without use.
    BROWSER = "browser"


class ClientFacts(Body, frozen=True):
    """Where a client connects from, for the list of sessions and for limits per address."""

    address: str = ""
    #: The user agent.
    agent: str = ""


class RegisterUser(Body, frozen=True):
    user_data: UserData
    client: ClientFacts = ClientFacts()
    #: The code of an invitation to this email address. With it the user may register even if registration is closed.
    invitation: str | None = None


class LoginUser(Body, frozen=True):
    credentials: Credentials
    kind: SessionKind = SessionKind.PROGRAM
    client: ClientFacts = ClientFacts()
    #: The ``browser`` of an earlier session of this browser, if any.
    browser: str = ""


class Step(StrEnum):
    """What a login still lacks. Until it is done, its access token works for that step only."""

    DONE = "done"
    #: ``confirmLogin`` takes the code.
    ENTER_CODE = "enter_code"
    #: For administrators without a second factor: call ``beginMfa`` and ``enableMfa``.
    SET_UP_MFA = "set_up_mfa"


class LoginSession(Body, frozen=True, omit_defaults=False):
    #: A JWT, valid for ``expires_in`` seconds, for `Authorization: Bearer …`.
    access_token: Credential
    expires_in: int
    #: Opaque. Use it with ``refreshSession``, or ``resumeSession`` for a browser session, to get a new access token.
    session_token: str
    user: User
    token_type: str = "Bearer"  # noqa: S105 - defined in RFC 6749
    step: Step = Step.DONE
    #: The organization that the session acts for; None for the user's own.
    team_id: TenantId | None = None
    team_name: str | None = None
    #: light, dark or system; None if the user has not chosen.
    theme: str | None = None
    #: Stored in the browser and sent with the next login, so that strangers who guess passwords cannot lock out a known browser. Grants
    #: no access.
    browser: str | None = None


class RefreshSession(Body, frozen=True):
    """The answer has a new session token; the old one becomes invalid."""

    session_token: str


class ResumeSession(Body, frozen=True):
    """For web's cookie. The token stays the same."""

    session_token: str


class ConfirmLogin(Body, frozen=True):
    """The second step of a login. The answer has a new session token; the first one becomes invalid."""

    #: Six digits or a recovery code.
    code: str


class ConfirmAgain(Body, frozen=True):
    """Make the login of the call's credential fresh, with the password, or with a code if there is a second factor."""

    password: str | None = None
    code: str | None = None


class LogoutUser(Body, frozen=True):
    session_token: str


@limits.fields(limits.OfKey | None)
class ApiKeyLimits(Body, frozen=True, omit_defaults=False):
    """Limits of one key, in addition to its user's. None means no extra limit. The tightest limit applies."""

    #: What all its requests may cost, in total or until it is renewed.
    budget_micro: MicroCredits | None = None
    budget_every: Every | None = None


class KeyKind(StrEnum):
    """The purpose of a key, visible in its prefix."""

    #: `aip_live_`: everyday use. Never has administrator rights.
    LIVE = "live"
    #: `aip_test_`: for CI and examples. Runs and lists models, 60 requests per hour, expires within 30 days.
    TEST = "test"
    #: `aip_adm_`: for administrators, with their rights.
    ADMIN = "adm"


class KeyBounds(Body, frozen=True, omit_defaults=False):
    """What a key may be used for, and from where."""

    #: See ``shared.types.Permission``; at most those of the creator. Empty in a request: the default of a new key. Empty in
    #: a stored key: everything that its kind may have of its owner's rights.
    scopes: tuple[str, ...] = ()
    #: Allowed models; empty for all that the owner may use.
    models: tuple[ModelName, ...] = ()
    #: Allowed networks in CIDR form; empty for any.
    networks: tuple[str, ...] = ()


#: The default lifetime, and the longest lifetime of test keys.
KEY_DAYS = 90
TEST_KEY_DAYS = 30


class GenerateApiKey(Body, frozen=True):
    """``user_id`` None means the caller. Only administrators may name another user."""

    name: str = "default"
    user_id: UserId | None = None
    limits: ApiKeyLimits = ApiKeyLimits()
    kind: KeyKind = KeyKind.LIVE
    bounds: KeyBounds = KeyBounds()
    #: 0 for a key that never expires; None for the default of its kind.
    days: Annotated[int, msgspec.Meta(ge=0, le=3650)] | None = None
    #: Everything that its kind may have of its owner's rights, now and later. Without it and without scopes, live and test keys may use
    #: models and read usage.
    all_rights: bool = False


class ApiKey(Body, frozen=True):
    """What is shown of a key."""

    id: KeyId
    user_id: UserId
    name: str
    #: The first 12 and the last 4 characters.
    preview: str
    is_active: bool
    created_at: Moment
    last_used_at: Moment | None = None
    limits: ApiKeyLimits = ApiKeyLimits()
    kind: KeyKind = KeyKind.LIVE
    bounds: KeyBounds = KeyBounds()
    #: None for never.
    expires_at: Moment | None = None
    #: The organization that owns the key; None for the user's own.
    team_id: TenantId | None = None
    #: The key that created it; None for a login.
    made_by: KeyId | None = None
    #: False: it is done, but the recovery log on disk lacks it for now.
    logged: bool = True


class RotateApiKey(Body, frozen=True):
    """Create a new secret for the same key. The old secret works until the overlap ends."""

    #: The key's id, or its name if unique among the owner's active keys.
    key: str
    overlap_seconds: Annotated[int, msgspec.Meta(ge=0, le=7 * 24 * 3600)] = 24 * 3600


class RenameApiKey(Body, frozen=True):
    #: The key's id, or its name if unique among the owner's active keys.
    key: str
    name: str


class CreatedApiKey(Body, frozen=True):
    """The only message that contains a whole key."""

    api_key: Credential
    key: ApiKey
    #: False: it is done, but the recovery log on disk lacks it for now.
    logged: bool = True


class ListApiKeys(Body, frozen=True):
    user_id: UserId | None = None


class ApiKeys(Body, frozen=True):
    keys: tuple[ApiKey, ...]


#: Of one ``FindEndedKeys``.
MAX_FOUND_KEYS = 1_000


class FindEndedKeys(Body, frozen=True):
    """Find the keys that can't be used again: revoked, expired or unknown ones."""

    keys: Annotated[tuple[KeyId, ...], msgspec.Meta(max_length=MAX_FOUND_KEYS)]


class EndedKeys(Body, frozen=True):
    keys: tuple[KeyId, ...]


class RevokeApiKey(Body, frozen=True):
    #: The key's id, or its name if unique among the owner's active keys.
    key: str
    #: Also revoke all keys created with it, directly or indirectly, even if the key itself was revoked before.
    with_made: bool = False


class ValidateApiKey(Body, frozen=True):
    api_key: Credential


class Identify(Body, frozen=True):
    credential: Credential


class IdentifyOwner(Body, frozen=True):
    """Who ordered work that runs later: with a key, or logged in for an organization, or for themselves."""

    user_id: UserId
    key_id: KeyId | None = None
    team_id: TenantId | None = None


class IdentifyPerson(Body, frozen=True):
    """Whom a key names for one request."""

    key_id: KeyId
    #: In lower case.
    address: Annotated[str, msgspec.Meta(max_length=100)]


class Principal(Body, frozen=True, cache_hash=True):
    """The user that a credential belongs to, and what the credential allows."""

    user_id: UserId
    username: str
    role: UserRole
    tier: PlanName
    #: None for an access token.
    key_id: KeyId | None = None
    key_name: str | None = None
    key_limits: ApiKeyLimits = ApiKeyLimits()
    #: The organization that it acts for; None for the user's own.
    team_id: TenantId | None = None
    #: The key's scopes; None for a login, which may do everything its user may.
    scopes: tuple[str, ...] | None = None
    #: The key's allowed models; empty for all.
    models: tuple[ModelName, ...] = ()
    #: The key's allowed networks; empty for any.
    networks: tuple[str, ...] = ()
    #: For a login: what it lacks, and when a password or code was last shown, in seconds since 1970.
    step: Step = Step.DONE
    confirmed_at: float | None = None
    #: When the key or its replaced secret expires, in seconds since 1970; None for never. No cache entry may outlive it.
    expires_at: float | None = None
    #: The founder of an organization that shares the founder's limits and has no included tokens.
    founder_id: UserId | None = None
    #: Of the tenant that pays.
    budget: Budget | None = None
    #: See ``User``; true of requests for an organization.
    has_free_tokens: bool = True
    #: The owner of the key, if that key names this user for a request.
    named_by: UserId | None = None

    def depends_on(self, user_id: UserId) -> bool:
        """Return whether a change of this user or of their keys may change it."""
        return user_id in (self.user_id, self.named_by)

    @property
    def tenant_id(self) -> TenantId:
        """Return who is charged: the organization, or the user."""
        return TenantId(self.user_id) if self.team_id is None else self.team_id

    @property
    def limited_as(self) -> TenantId:
        """Return whose limits apply: the founder's for an organization that shares them."""
        return self.tenant_id if self.founder_id is None else TenantId(self.founder_id)


class SetTier(Body, frozen=True):
    #: A username, an email address or a user id.
    user: str
    tier: PlanName


class SetBudget(Body, frozen=True):
    """Set what all requests of a user or an organization may cost, or remove the budget with None."""

    #: A username, an email address or an id. For an organization, only the id, because names are not unique.
    owner: str
    budget: Budget | None = None


class OwnerBudget(Body, frozen=True, omit_defaults=False):
    owner: TenantId
    #: Of the user or the organization.
    name: str
    budget: Budget | None


class SetRole(Body, frozen=True):
    #: A username, an email address or a user id.
    user: str
    role: UserRole


class SetActive(Body, frozen=True):
    """Close or reopen an account. Its keys and sessions don't work while it is closed."""

    user: str
    is_active: bool


class RemoveMfa(Body, frozen=True):
    """Remove the second factor of a user who lost it and the recovery codes. Ends their sessions; keys keep working."""

    user: str


class GetUser(Body, frozen=True):
    user_id: UserId


class GetUserCalled(Body, frozen=True):
    """For administrators."""

    #: A username, an email address or a user id.
    user: str


class ListUsers(Body, frozen=True):
    """Newest first."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    #: Part of the name or address, ignoring case, or a whole id; empty for all.
    search: Search = ""
    #: The last user of the previous page; None for the first page.
    after: UserId | None = None


class Users(Body, frozen=True):
    users: tuple[User, ...]
    #: There are older users.
    more: bool = False


class GetSigningKeys(Body, frozen=True):
    pass


class SigningKey(Body, frozen=True, omit_defaults=False):
    """The public half of a key that signs access tokens, as in RFC 8037."""

    kid: str
    x: str


class SigningKeys(Body, frozen=True):
    keys: tuple[SigningKey, ...]
    #: False: it is done, but the recovery log on disk lacks it for now.
    logged: bool = True


class RotateSigningKeys(Body, frozen=True):
    """The new key is published first and signs later. ``at_once`` also revokes the current key, in case it leaked."""

    at_once: bool = False


class WatchChanges(Body, frozen=True):
    #: The last sequence number seen; 0 to start now.
    since: int = 0


class Change(Body, frozen=True):
    """Cached principals of ``user_id`` may be outdated; None means all."""

    sequence: int
    user_id: UserId | None = None


class CreateLoginLink(Body, frozen=True):
    """Create a one-time token that logs the bearer in on the dashboard. Valid for one minute."""


class LoginLink(Body, frozen=True):
    token: str
    expires_in: int


class RedeemLoginLink(Body, frozen=True):
    token: str
    client: ClientFacts = ClientFacts()
    #: As in ``LoginUser``.
    browser: str = ""


#: A name that a machine gives itself. PostgreSQL does not store NUL.
MachineName = Annotated[str, msgspec.Meta(max_length=100, pattern=r"^[^\x00]*\Z")]


#: The page of web that approves the login of a program.
DEVICE_PAGE = "/device"


class BeginDeviceLogin(Body, frozen=True):
    """Begin a login that a person approves in a browser, possibly on another machine (RFC 8628)."""

    #: Shown to the person who approves it.
    machine: MachineName = ""
    client: ClientFacts = ClientFacts()


class DeviceLogin(Body, frozen=True, omit_defaults=False):
    #: Secret: it gets the session once the login is approved.
    device_code: str
    #: The person compares it with the page, or enters it there.
    user_code: str
    #: The page to approve it on, and the same with the code filled in; empty if PUBLIC_URL is not set.
    verification_uri: str
    verification_uri_complete: str
    expires_in: int
    #: Seconds between two polls. Faster polls are answered with `slow_down`.
    interval: int


class PollDeviceLogin(Body, frozen=True):
    """Get the session of an approved login. Raises AuthorizationPending and SlowDown, whose ``retry_after_seconds`` is the time to wait,
    and DeviceLoginDenied and DeviceLoginExpired."""

    device_code: str
    client: ClientFacts = ClientFacts()


class FindDeviceLogin(Body, frozen=True):
    """Show who asks, before the person decides."""

    user_code: str


class WaitingDeviceLogin(Body, frozen=True, omit_defaults=False):
    user_code: str
    #: As the machine calls itself.
    machine: str
    #: The address or the node that asked.
    address: str
    asked_at: Moment


class DecideDeviceLogin(Body, frozen=True):
    user_code: str
    approve: bool


register_user = Method("auth.registerUser", RegisterUser, User, callers=PEOPLE)
login_user = Method("auth.loginUser", LoginUser, LoginSession, callers=PEOPLE)
refresh_session = Method("auth.refreshSession", RefreshSession, LoginSession, callers=PEOPLE)
resume_session = Method("auth.resumeSession", ResumeSession, LoginSession, callers={Role.WEB}, asks_another=True)
confirm_login = Method("auth.confirmLogin", ConfirmLogin, LoginSession, callers=PEOPLE)
confirm_again = Method("auth.confirmAgain", ConfirmAgain, Nothing, callers=PEOPLE)
logout_user = Method("auth.logoutUser", LogoutUser, Nothing, callers=PEOPLE)
create_login_link = Method("auth.createLoginLink", CreateLoginLink, LoginLink, callers={Role.CLIENT, Role.GATEWAY})
redeem_login_link = Method("auth.redeemLoginLink", RedeemLoginLink, LoginSession, callers={Role.WEB})
begin_device_login = Method("auth.beginDeviceLogin", BeginDeviceLogin, DeviceLogin, callers=PEOPLE)
poll_device_login = Method("auth.pollDeviceLogin", PollDeviceLogin, LoginSession, callers=PEOPLE)
find_device_login = Method("auth.findDeviceLogin", FindDeviceLogin, WaitingDeviceLogin, callers={Role.WEB})
decide_device_login = Method("auth.decideDeviceLogin", DecideDeviceLogin, Nothing, callers={Role.WEB})
generate_api_key = Method("auth.generateApiKey", GenerateApiKey, CreatedApiKey, callers=PEOPLE)
rotate_api_key = Method("auth.rotateApiKey", RotateApiKey, CreatedApiKey, callers=PEOPLE)
rename_api_key = Method("auth.renameApiKey", RenameApiKey, ApiKey, callers=PEOPLE)
list_api_keys = Method("auth.listApiKeys", ListApiKeys, ApiKeys, callers=PEOPLE)
revoke_api_key = Method("auth.revokeApiKey", RevokeApiKey, ApiKey, callers=PEOPLE)
find_ended_keys = Method("auth.findEndedKeys", FindEndedKeys, EndedKeys, callers={Role.GATEWAY})
validate_api_key = Method(
    "auth.validateApiKey", ValidateApiKey, Principal, callers={Role.GATEWAY, Role.WEB, Role.OPERATOR}, asks_another=True
)
identify = Method("auth.identify", Identify, Principal, callers={Role.GATEWAY, Role.METRICS, Role.WEB}, asks_another=True)
identify_owner = Method("auth.identifyOwner", IdentifyOwner, Principal, callers={Role.GATEWAY}, asks_another=True)
identify_person = Method("auth.identifyPerson", IdentifyPerson, Principal, callers={Role.GATEWAY}, asks_another=True)
set_tier = Method("auth.setTier", SetTier, User, callers=PEOPLE)
set_budget = Method("auth.setBudget", SetBudget, OwnerBudget, callers=PEOPLE)
set_role = Method("auth.setRole", SetRole, User, callers=PEOPLE)
set_active = Method("auth.setActive", SetActive, User, callers=PEOPLE)
remove_mfa = Method("auth.removeMfa", RemoveMfa, User, callers=PEOPLE)
get_user = Method("auth.getUser", GetUser, User, callers={Role.GATEWAY})
get_user_called = Method("auth.getUserCalled", GetUserCalled, User, callers=PEOPLE)
list_users = Method("auth.listUsers", ListUsers, Users, callers=PEOPLE)
get_signing_keys = Method("auth.getSigningKeys", GetSigningKeys, SigningKeys, callers={Role.GATEWAY, Role.WEB})
rotate_signing_keys = Method("auth.rotateSigningKeys", RotateSigningKeys, SigningKeys, callers=PEOPLE)
watch_changes = StreamMethod("auth.watchChanges", WatchChanges, item=Change, end=Nothing, callers={Role.GATEWAY, Role.WEB})
