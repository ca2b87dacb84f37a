"""Which settings of channels are refused, and how that is reported."""

from pathlib import Path

import pytest

from features.alert_channels.settings import AlertChannelSettings
from services.metrics.settings import MetricsSettings
from shared import config, errors

SMTP = {"SMTP_URL": "smtp://user:s3cret@mail.example.org"}


def load(tmp_path: Path, **environment: str) -> AlertChannelSettings:
    settings = config.load(
        MetricsSettings, {"NODE_KEY_FILE": str(tmp_path / "node.nk"), "NATS_URL": "nats://127.0.0.1:4222", **environment}
    )
    return settings.of(AlertChannelSettings)


def test_mail_recipients_are_separated_by_commas(tmp_path: Path) -> None:
    settings = load(tmp_path, ALERT_MAIL_TO="ops@example.org, anna@example.org,", **SMTP)
    assert settings.alert_mail_to == ("ops@example.org", "anna@example.org")
    assert settings.smtp_url == SMTP["SMTP_URL"]


def test_mail_server_without_recipients_sends_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, **SMTP).alert_mail_to == ()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ALERT_MAIL_TO": "ops@example.org"}, "ALERT_MAIL_TO needs a mail server: set SMTP_URL=smtp://"),
        ({"ALERT_MAIL_TO": "ops@example.org,anna example.org", **SMTP}, "ALERT_MAIL_TO: number 2 is not an address such as"),
        ({"ALERT_MAIL_TO": "Anna <anna@example.org>", **SMTP}, "ALERT_MAIL_TO: number 1 is not an address such as"),
        ({"ALERT_MAIL_TO": ",".join(f"anna{n}@example.org" for n in range(6)), **SMTP}, "ALERT_MAIL_TO: 6 addresses, at most 5"),
    ],
)
def test_invalid_settings_are_refused_with_a_hint_and_without_the_address(
    tmp_path: Path, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(errors.BadSettings) as refused:
        load(tmp_path, **environment)
    assert message in refused.value.message
    assert "anna" not in refused.value.message
    assert "s3cret" not in refused.value.message
