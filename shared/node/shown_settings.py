"""A service's settings as it tells them: without secrets, also such as stand in an address."""

from shared import config
from shared.api.service_settings import ShownSetting, ShownSettings
from shared.telemetry import redaction


def shown(settings: config.Settings) -> ShownSettings:
    return ShownSettings(
        tuple(
            ShownSetting(
                setting.variable.name,
                redaction.text(value),
                redaction.text(setting.default or ""),
                setting.variable.help,
                is_secret=setting.variable.secret,
            )
            for setting, value in config.shown(settings)
        )
    )
