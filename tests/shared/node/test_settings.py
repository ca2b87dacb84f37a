"""Settings that every service refuses, and settings that it only warns about."""

from pathlib import Path
from typing import Annotated

import pytest

from services.auth.settings import AuthSettings
from services.gateway.settings import GatewaySettings
from shared import config, errors
from shared.config import Variable
from shared.node.settings import NodeSettings, list_settings

GIVEN = {"NODE_KEY_FILE": "/nowhere"}


def load(**environment: str) -> NodeSettings:
    return config.load(NodeSettings, {**GIVEN, **environment})


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"NATS_URL": "nats://10.0.0.5:4222"}, "NATS_URL: 10.0.0.5 is not this machine"),
        ({"NATS_URL": "10.0.0.5:4222"}, "NATS_URL: not an address"),
        ({"TLS_CERT_FILE": "/a"}, "TLS_CERT_FILE and TLS_KEY_FILE go together"),
        ({"BIND_HOST": "0.0.0.0"}, "BIND_HOST: 0.0.0.0 is reachable from other machines"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL"),
        ({"HTTP_CONNECTIONS_PER_ADDRESS": "-1"}, "HTTP_CONNECTIONS_PER_ADDRESS"),
        ({"TRUSTED_PROXIES": "10.0.0.0/8, proxy.example"}, "TRUSTED_PROXIES: 'proxy.example' is neither an address nor a network"),
        ({"LOG_FORMAT": "xml"}, "LOG_FORMAT"),
    ],
)
def test_invalid_settings_are_refused(environment: dict[str, str], says: str) -> None:
    with pytest.raises(errors.BadSettings, match=says):
        load(**environment)


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(errors.BadSettings) as refused:
        load(NATS_URL="nats://10.0.0.5", BIND_HOST="0.0.0.0", TLS_KEY_FILE="/a")
    assert refused.value.message.count("\n") == 3


@pytest.mark.parametrize(
    ("environment", "warnings"),
    [
        ({}, 0),
        ({"BIND_HOST": "0.0.0.0", "TLS_CERT_FILE": "/a", "TLS_KEY_FILE": "/b"}, 0),
        ({"NATS_URL": "tls://nats.example.org"}, 0),
        ({"ALLOW_PLAIN_NATS": "true", "ALLOW_PLAIN_HTTP": "true"}, 0),
        ({"BIND_HOST": "0.0.0.0", "ALLOW_PLAIN_HTTP": "true"}, 1),
        ({"NATS_URL": "nats://10.0.0.5", "ALLOW_PLAIN_NATS": "true"}, 1),
    ],
)
def test_deliberate_risks_are_warned_about(environment: dict[str, str], warnings: int) -> None:
    assert len(list(load(**environment).warnings())) == warnings


def test_paths_are_read_as_paths() -> None:
    assert load(NATS_CA_FILE="/etc/ca.pem").nats_ca_file == Path("/etc/ca.pem")
    files = load(NATS_CERT_FILE="/a/c.pem", NATS_KEY_FILE="/a/k.pem", NATS_CREDS_FILE="/a/u.creds").nats_files
    assert (files.ca, files.cert, files.key, files.creds) == (None, Path("/a/c.pem"), Path("/a/k.pem"), Path("/a/u.creds"))


class Example(config.Settings, frozen=True, kw_only=True):
    days: Annotated[int, Variable("DAYS", "how long")] = 90
    password: Annotated[str, Variable("PASSWORD", "of somebody", secret=True)] = ""
    server: Annotated[str, Variable("SERVER", "where")] = "nats://localhost"
    #: Not from the environment.
    inner: int = 0


def test_values_and_defaults_are_shown() -> None:
    (days, password, server) = list_settings(Example(days=7)).settings
    assert (days.name, days.value, days.default, days.help) == ("DAYS", "7", "90", "how long")
    assert (password.value, password.is_secret) == ("", True)
    assert server.value == "nats://localhost"


def test_secrets_are_only_shown_as_set() -> None:
    told = list_settings(Example(password="hunter2", server="nats://user:hunter2@localhost")).settings
    assert told[1].value == "set"
    assert "hunter2" not in repr(told)


def test_every_secret_setting_is_declared_secret() -> None:
    """A new setting with one of these words in its name and without `secret=True` would be visible to administrators."""
    declared = [setting.variable for kind in (AuthSettings, GatewaySettings) for setting in config.settings_of(kind)]
    names = {variable.name: variable.secret or variable.is_store for variable in declared}
    words = ("SECRET", "PASSWORD", "TOKEN", "PEPPER", "DATA_KEY", "_URL")
    harmless = {"PASSWORD_MIN_LENGTH", "IAP_KEYS_URL", "PUBLIC_URL", "PUBLIC_NATS_URL", "PRICE_PER_INPUT_TOKEN", "PRICE_PER_OUTPUT_TOKEN"}
    harmless |= {"STRIPE_API_URL", "PADDLE_API_URL", "AWS_ENDPOINT_URL"}
    # A path is no secret.
    suspicious = {name for name in names if any(word in name for word in words) and not name.endswith("_FILE")} - harmless
    assert suspicious
    assert {name for name in suspicious if not names[name]} <= {"NATS_URL"}, "which is redacted"
