"""Lists a service's settings without secrets, including those inside URLs."""

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
