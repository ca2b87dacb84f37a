"""The words that the fixtures and the tests of logins with a provider share."""

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import services.auth
from services.auth.oidc.login import Oidc
from services.auth.oidc.registration import Registration
from tests.services.auth import by_hand

AUTH = Path(services.auth.__file__).parent

OpenOidc = Callable[[Registration], AbstractAsyncContextManager[Oidc]]


class Clock:
    """Seconds since 1970, moved on by hand."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


async def ensure_table(url: str) -> None:
    if await by_hand.value(url, "SELECT to_regclass('auth.oidc_identities')") is None:
        migration = (AUTH / "oidc" / "migration.sql").read_text(encoding="utf-8")
        await by_hand.run(url, f"SET search_path TO auth; {migration}")
