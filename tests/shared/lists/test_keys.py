from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import pytest

from shared.api.auth import ApiKey, ApiKeyLimits, KeyBounds, KeyKind
from shared.lists.columns import Tone
from shared.lists.keys import SCOPES, list_keys, permissions
from shared.types import KeyId, MicroCredits, ModelName, Permission, UserId

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
KEY = ApiKey(KeyId(UUID(int=1)), UserId(UUID(int=2)), "laptop", "aip_live_abc…wxyz", True, NOW - timedelta(days=3))
COLUMNS = {column.title: column for column in list_keys(NOW).columns}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ("Full access",)),
        ({"kind": KeyKind.TEST}, ("Test key", "run models")),
        ({"kind": KeyKind.ADMIN}, ("Administration",)),
        ({"bounds": KeyBounds(("inference:execute", "usage:read"))}, ("Run models", "read usage")),
        # A scope from a newer auth.
        ({"bounds": KeyBounds(("inference:execute", "moon:fly"))}, ("Run models", "moon:fly")),
        (
            {"bounds": KeyBounds((), (ModelName("small"), ModelName("large")), ("192.0.2.0/24",))},
            ("Full access", "only small, large", "from 192.0.2.0/24"),
        ),
    ],
)
def test_permissions_of_a_key_in_words(change: dict[str, object], words: tuple[str, ...]) -> None:
    assert permissions(msgspec.structs.replace(KEY, **change)) == words


def test_every_permission_has_a_label() -> None:
    assert set(SCOPES) == set(Permission)


@pytest.mark.parametrize(
    ("days", "is_active", "state", "tone"),
    [
        (None, True, "Active", Tone.PLAIN),
        (30, True, "Active", Tone.PLAIN),
        (7, True, "Active", Tone.WARN),
        (-1, True, "Expired", Tone.BAD),
        (-1, False, "Revoked", Tone.PLAIN),
        (30, False, "Revoked", Tone.PLAIN),
    ],
)
def test_expiry_of_a_key(days: int | None, is_active: bool, state: str, tone: Tone) -> None:
    expires_at = None if days is None else NOW + timedelta(days=days)
    key = msgspec.structs.replace(KEY, expires_at=expires_at, is_active=is_active)
    assert (COLUMNS["State"].show(key), COLUMNS["Expires"].tone(key)) == (state, tone)
    assert COLUMNS["Expires"].show(key) == ((expires_at or "Never") if is_active else None)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (ApiKeyLimits(), "Tier default"),
        (ApiKeyLimits(requests_per_hour=1000, budget_micro=MicroCredits(1_234_500_000)), "1,000/h, 1,234.5 credits"),
        (ApiKeyLimits(budget_micro=MicroCredits(1_000_000)), "1 credit"),
    ],
)
def test_limits_of_a_key_in_words(limits: ApiKeyLimits, words: str) -> None:
    assert COLUMNS["Limits"].show(msgspec.structs.replace(KEY, limits=limits)) == words
