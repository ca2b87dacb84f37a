"""What the fixtures and the tests of logins with a provider share."""

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import services.auth
from services.auth.oidc.discovery import ClientRegistration
from services.auth.oidc.oidc_login import OidcLogins

AUTH = Path(services.auth.__file__).parent

OpenOidc = Callable[[ClientRegistration], AbstractAsyncContextManager[OidcLogins]]


class Clock:
    """Seconds since 1970. A test moves it ahead."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead
