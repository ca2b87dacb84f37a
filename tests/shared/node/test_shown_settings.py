"""What a service tells an administrator of its settings."""

from typing import Annotated

from services.auth.settings import AuthSettings
from services.gateway.settings import GatewaySettings
from shared import config
from shared.config import Variable
from shared.node.shown_settings import shown


class Example(config.Settings, frozen=True, kw_only=True):
    days: Annotated[int, Variable("DAYS", "how long")] = 90
    password: Annotated[str, Variable("PASSWORD", "of somebody", secret=True)] = ""
    server: Annotated[str, Variable("SERVER", "where")] = "nats://localhost"
    #: Not from the environment.
    inner: int = 0


def test_values_and_defaults_are_shown() -> None:
    (days, password, server) = shown(Example(days=7)).settings
    assert (days.name, days.value, days.default, days.help) == ("DAYS", "7", "90", "how long")
    assert (password.value, password.is_secret) == ("", True)
    assert server.value == "nats://localhost"


def test_secrets_are_only_shown_as_set() -> None:
    told = shown(Example(password="hunter2", server="nats://user:hunter2@localhost")).settings
    assert told[1].value == "set"
    assert "hunter2" not in repr(told)


def test_every_secret_setting_is_declared_secret() -> None:
    """A new setting with a word of these in its name and no `secret=True` would be shown to administrators."""
    names = {
        setting.variable.name: setting.variable.secret for kind in (AuthSettings, GatewaySettings) for setting in config.settings_of(kind)
    }
    words = ("SECRET", "PASSWORD", "TOKEN", "PEPPER", "DATA_KEY", "_URL")
    harmless = {"PASSWORD_MIN_LENGTH", "PUBLIC_URL", "PRICE_PER_INPUT_TOKEN", "PRICE_PER_OUTPUT_TOKEN"}
    suspicious = {name for name in names if any(word in name for word in words)} - harmless
    assert suspicious
    assert {name for name in suspicious if not names[name]} <= {"NATS_URL"}, "which is redacted"
