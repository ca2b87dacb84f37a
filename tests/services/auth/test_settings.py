"""auth's settings: a failed start names every mistake, and no secret."""

import pytest

from services.auth.settings import AuthSettings
from shared import config, errors

GOOD = {
    "NODE_KEY_FILE": "/keys/auth.nk",
    "DATABASE_URL": "postgresql://u:p@localhost/db",
    "REDIS_URL": "redis://localhost",
    "DATA_KEY": "d" * 43,
    "API_KEY_PEPPER": "p" * 32,
}


def test_the_minimum_settings() -> None:
    settings = config.load(AuthSettings, GOOD)
    assert (settings.port, settings.session_timeout_seconds, settings.password_min_length) == (3001, 3600, 8)
    assert not settings.open_registration
    assert settings.admin_password is None
    assert settings.database_url == GOOD["DATABASE_URL"]


def test_the_former_data_key_can_be_set() -> None:
    assert config.load(AuthSettings, {**GOOD, "DATA_KEY_OLD": "o" * 43}).data_key_old == "o" * 43
    with pytest.raises(errors.BadSettings, match="DATA_KEY_OLD"):
        config.load(AuthSettings, {**GOOD, "DATA_KEY_OLD": "short"})


def test_auth_may_have_its_own_database() -> None:
    assert config.load(AuthSettings, {**GOOD, "AUTH_DATABASE_URL": "postgresql:///auth"}).database_url == "postgresql:///auth"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"DATABASE_URL": ""}, "DATABASE_URL", id="no database"),
        pytest.param({"REDIS_URL": ""}, "REDIS_URL", id="no Valkey"),
        pytest.param({"DATA_KEY": ""}, "DATA_KEY", id="no key to seal with"),
        pytest.param({"API_KEY_PEPPER": "changeme"}, "API_KEY_PEPPER", id="a short pepper"),
        pytest.param({"SESSION_TIMEOUT": "0"}, "SESSION_TIMEOUT", id="no session at all"),
        pytest.param({"SESSION_TIMEOUT": "50000"}, "SESSION_LONGEST", id="longer unused than at all"),
        pytest.param({"SESSION_TIMEOUT": "soon"}, "SESSION_TIMEOUT", id="no number"),
        pytest.param({"PASSWORD_MIN_LENGTH": "4"}, "PASSWORD_MIN_LENGTH", id="four characters are no password"),
        pytest.param({"MESH_CA_NEXT_KEY_FILE": "/next.nk"}, "MESH_CA_NEXT_KEY_FILE", id="the next CA key without the first"),
        pytest.param({"TICKET_BOOTSTRAP": "192.0.2.1"}, "TICKET_BOOTSTRAP", id="an address without a port"),
        pytest.param({"TICKET_BOOTSTRAP": "[2001:db8::1]:4737"}, "the DHT is IPv4 only", id="an IPv6 address for the DHT"),
        pytest.param({"DHT_RELAYS": "abcd"}, "DHT_RELAYS", id="a relay's key cut short"),
        pytest.param({"PASSWORD_MIN_LENGTH": "257"}, "PASSWORD_MIN_LENGTH", id="longer than the longest"),
    ],
)
def test_invalid_settings_are_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(errors.BadSettings, match=message) as refused:
        config.load(AuthSettings, {**GOOD, **change})
    assert "changeme" not in refused.value.message
