"""What auth reads from its environment."""

from typing import Annotated

from services.auth import passwords
from shared import errors, node
from shared.config import Variable

_SHORTEST_PEPPER = 32


class AuthSettings(node.NodeSettings, frozen=True, kw_only=True):
    port: Annotated[int, Variable("AUTH_SERVICE_PORT", "the port of auth's health and metrics")] = 3001
    database_url: Annotated[str | None, Variable("DATABASE_URL", "PostgreSQL, for all services", secret=True)] = None
    auth_database_url: Annotated[
        str | None, Variable("AUTH_DATABASE_URL", "PostgreSQL for auth alone; DATABASE_URL where it is not set", secret=True)
    ] = None
    redis_url: Annotated[str, Variable("REDIS_URL", "Redis or Valkey, for sessions and failed logins", secret=True)]
    jwt_signing_key: Annotated[
        str,
        Variable(
            "JWT_SIGNING_KEY", "the Ed25519 private key that signs access tokens, PEM (PKCS8); rather JWT_SIGNING_KEY_FILE", secret=True
        ),
    ]
    api_key_pepper: Annotated[
        str, Variable("API_KEY_PEPPER", "key of the HMAC that stands for an API key in the database, at least 32 characters", secret=True)
    ]
    session_timeout_seconds: Annotated[int, Variable("SESSION_TIMEOUT", "seconds after which an unused session ends")] = 3600
    session_longest_seconds: Annotated[int, Variable("SESSION_LONGEST", "seconds after which every session ends, used or not")] = 43_200
    password_min_length: Annotated[
        int, Variable("PASSWORD_MIN_LENGTH", "shortest password; NIST SP 800-63B-4 asks for 15 where there is no second factor")
    ] = 8
    open_registration: Annotated[bool, Variable("OPEN_REGISTRATION", "anybody may register; false leaves it to administrators")] = True
    admin_password: Annotated[
        str | None, Variable("ADMIN_PASSWORD", "if there is no administrator yet, `admin` is made with this password", secret=True)
    ] = None

    def __post_init__(self) -> None:
        mistakes = []
        if not (self.database_url or self.auth_database_url):
            mistakes.append("DATABASE_URL is not set (or AUTH_DATABASE_URL for this service alone)")
        if len(self.api_key_pepper) < _SHORTEST_PEPPER:
            mistakes.append(f"API_KEY_PEPPER has fewer than {_SHORTEST_PEPPER} characters")
        if self.session_timeout_seconds < 1 or self.session_longest_seconds < self.session_timeout_seconds:
            mistakes.append("SESSION_TIMEOUT must be at least 1, and SESSION_LONGEST no shorter")
        if not passwords.SHORTEST_MINIMUM <= self.password_min_length <= passwords.LONGEST:
            mistakes.append(f"PASSWORD_MIN_LENGTH must be between {passwords.SHORTEST_MINIMUM} and {passwords.LONGEST}")
        if mistakes:
            raise errors.BadSettings("the settings cannot work:\n  " + "\n  ".join(mistakes), hint="see docs/reference/settings.md")

    @property
    def store_url(self) -> str:
        url = self.auth_database_url or self.database_url
        assert url is not None  # __post_init__ has seen to it
        return url
