import pytest

from services.gateway.settings import GatewaySettings
from services.web.settings import WebSettings
from shared import config, errors
from stack.settings import PASSED

GOOD = {"NODE_KEY_FILE": "/nowhere/web.nk", "WEB_SECRET": "s" * 32}


def test_default_settings() -> None:
    settings = config.load(WebSettings, GOOD)
    assert (settings.port, settings.gateway_url, settings.public_url) == (3000, "http://127.0.0.1:3002", "")


def test_one_setting_limits_a_request_at_web_and_gateway() -> None:
    overrides = {"REQUEST_TIMEOUT_SECONDS": "450", "QUEUE_START_SECONDS": "200"}
    stores = {"DATABASE_URL": "postgresql://host/name", "REDIS_URL": "unix:///nowhere/valkey.sock", "PROMPT_HASH_SECRET": "s" * 32}
    found = [config.load(WebSettings, GOOD | overrides), config.load(GatewaySettings, GOOD | stores | overrides)]
    assert [(one.request_timeout_seconds, one.queue_start_seconds) for one in found] == [(450, 200), (450, 200)]
    assert PASSED["REQUEST_TIMEOUT_SECONDS"] == PASSED["QUEUE_START_SECONDS"] == ("gateway", "web")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WEB_SECRET", "too short"),
        ("GATEWAY_URL", "127.0.0.1:3002"),
        ("GATEWAY_URL", "http://127.0.0.1:3002/base"),
        ("GATEWAY_URL", "http://127.0.0.1:99999"),
        ("GATEWAY_URL", "ftp://127.0.0.1"),
        ("PUBLIC_URL", "https://user:password@ai.example.org"),
        ("PUBLIC_URL", "ai.example.org"),
    ],
)
def test_invalid_settings_are_named(name: str, value: str) -> None:
    with pytest.raises(errors.BadSettings, match=name):
        config.load(WebSettings, GOOD | {name: value})


def test_short_secret_is_not_repeated() -> None:
    with pytest.raises(errors.BadSettings) as raised:
        config.load(WebSettings, GOOD | {"WEB_SECRET": "hunter2"})
    assert "hunter2" not in str(raised.value)
