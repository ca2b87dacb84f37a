"""auth: users, sessions and API keys."""

from datetime import datetime

from shared.api.method import Body, Method, Nothing, StreamMethod
from shared.api.usage import UserUsage
from shared.types import Credential, KeyId, MicroCredits, Role, Tier, UserId, UserRole

PEOPLE = {Role.CLIENT, Role.WEB, Role.GATEWAY, Role.OPERATOR}


class UserData(Body, frozen=True):
    username: str
    email: str
    password: str


class RegisterUser(Body, frozen=True):
    user_data: UserData


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


class LoginUser(Body, frozen=True):
    credentials: Credentials


class Session(Body, frozen=True, omit_defaults=False):
    #: A JWT, good for ``expires_in`` seconds, to be sent as `Authorization: Bearer …`.
    access_token: Credential
    expires_in: int
    #: Opaque; ``refreshSession`` gives a new access token for it until the session ends.
    session_token: str
    user: User
    token_type: str = "Bearer"  # noqa: S105 - a word of RFC 6749


class RefreshSession(Body, frozen=True):
    session_token: str


class LogoutUser(Body, frozen=True):
    session_token: str


class KeyLimits(Body, frozen=True, omit_defaults=False):
    """What one key may use, besides what its user may; None is no limit of its own. The tightest limit holds."""

    requests_per_hour: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    #: Requests that run at once.
    concurrency: int | None = None
    #: What all its requests may cost together.
    budget_micro: MicroCredits | None = None


class GenerateApiKey(Body, frozen=True):
    """``user_id`` None means the owner of the call's credential; another's only for an admin."""

    name: str = "default"
    user_id: UserId | None = None
    limits: KeyLimits = KeyLimits()


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
    limits: KeyLimits = KeyLimits()


class NewApiKey(Body, frozen=True):
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
    key_limits: KeyLimits = KeyLimits()


class SetTier(Body, frozen=True):
    #: A username, an e-mail address or a user id.
    user: str
    tier: Tier


class SetActive(Body, frozen=True):
    """Close an account, or open it again; its keys and sessions stop and work with it."""

    user: str
    is_active: bool


class GetUser(Body, frozen=True):
    user_id: UserId


class GetUserCalled(Body, frozen=True):
    """For administrators."""

    #: A username, an e-mail address or a user id.
    user: str


class ListUsers(Body, frozen=True):
    limit: int = 100


class Users(Body, frozen=True):
    users: tuple[User, ...]


class GetUserUsage(Body, frozen=True):
    user_id: UserId | None = None


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


register_user = Method("auth.registerUser", RegisterUser, User, callers=PEOPLE)
login_user = Method("auth.loginUser", LoginUser, Session, callers=PEOPLE)
refresh_session = Method("auth.refreshSession", RefreshSession, Session, callers=PEOPLE)
logout_user = Method("auth.logoutUser", LogoutUser, Nothing, callers=PEOPLE)
create_login_link = Method("auth.createLoginLink", CreateLoginLink, LoginLink, callers={Role.CLIENT})
redeem_login_link = Method("auth.redeemLoginLink", RedeemLoginLink, Session, callers={Role.WEB})
generate_api_key = Method("auth.generateApiKey", GenerateApiKey, NewApiKey, callers=PEOPLE)
list_api_keys = Method("auth.listApiKeys", ListApiKeys, ApiKeys, callers=PEOPLE)
revoke_api_key = Method("auth.revokeApiKey", RevokeApiKey, ApiKey, callers=PEOPLE)
validate_api_key = Method("auth.validateApiKey", ValidateApiKey, Principal, callers={Role.GATEWAY, Role.WEB, Role.OPERATOR})
identify = Method("auth.identify", Identify, Principal, callers={Role.GATEWAY, Role.WEB})
get_user_usage = Method("auth.getUserUsage", GetUserUsage, UserUsage, callers=PEOPLE)
set_tier = Method("auth.setTier", SetTier, User, callers=PEOPLE)
set_active = Method("auth.setActive", SetActive, User, callers=PEOPLE)
get_user = Method("auth.getUser", GetUser, User, callers={Role.GATEWAY})
get_user_called = Method("auth.getUserCalled", GetUserCalled, User, callers=PEOPLE)
list_users = Method("auth.listUsers", ListUsers, Users, callers=PEOPLE)
watch_changes = StreamMethod("auth.watchChanges", WatchChanges, item=Change, end=Nothing, callers={Role.GATEWAY, Role.WEB})
