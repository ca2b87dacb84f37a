from datetime import timedelta
from uuid import UUID

import msgspec
import pytest

from services.web.pages import key_view
from shared.access_table import Permission
from shared.api.auth import ApiKey, KeyBounds, KeyKind
from shared.types import KeyId, ModelName, UserId
from tests.services.web.fake_mesh import NOW

KEY = ApiKey(KeyId(UUID(int=1)), UserId(UUID(int=2)), "laptop", "aip_live_abc…wxyz", True, NOW - timedelta(days=3))


@pytest.mark.parametrize(
    ("change", "may"),
    [
        ({}, "Full access"),
        ({"kind": KeyKind.TEST}, "Run models"),
        ({"kind": KeyKind.ADMIN}, "Administration"),
        ({"bounds": KeyBounds(("inference:execute", "usage:read"))}, "Run models, read usage"),
        # Of a newer auth.
        ({"bounds": KeyBounds(("inference:execute", "moon:fly"))}, "Run models, moon:fly"),
    ],
)
def test_permissions_of_a_key_in_words(change: dict[str, object], may: str) -> None:
    assert key_view.line_of(msgspec.structs.replace(KEY, **change), NOW).may == may


def test_every_permission_has_a_label() -> None:
    assert set(key_view.WORDS) == set(Permission)


def test_models_and_networks_of_a_key() -> None:
    bounds = KeyBounds((), (ModelName("small"), ModelName("large")), ("192.0.2.0/24",))
    assert key_view.line_of(msgspec.structs.replace(KEY, bounds=bounds), NOW).bounds == ("only small, large", "from 192.0.2.0/24")


@pytest.mark.parametrize(
    ("days", "is_active", "state", "tone"),
    [
        (None, True, "active", ""),
        (30, True, "active", ""),
        (7, True, "active", "warn"),
        (-1, True, "expired", "bad"),
        (-1, False, "revoked", ""),
        (30, False, "revoked", ""),
    ],
)
def test_expiry_of_a_key(days: int | None, is_active: bool, state: str, tone: str) -> None:
    expires_at = None if days is None else NOW + timedelta(days=days)
    line = key_view.line_of(msgspec.structs.replace(KEY, expires_at=expires_at, is_active=is_active), NOW)
    assert (line.state, line.tone) == (state, tone)


def test_active_keys_come_first_newest_first() -> None:
    def made(name: str, days_ago: int, *, is_active: bool = True) -> ApiKey:
        return msgspec.structs.replace(KEY, name=name, created_at=NOW - timedelta(days=days_ago), is_active=is_active)

    keys = (made("old", 9), made("gone", 1, is_active=False), made("new", 2))
    assert [line.name for line in key_view.lines_of(keys, NOW)] == ["new", "old", "gone"]
