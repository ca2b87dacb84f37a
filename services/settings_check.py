"""Checks variables against the settings of all services: `python -m services.settings_check` reads them as JSON and prints JSON.

A separate program, because `aicli stack` imports no service.
"""

import sys
from collections.abc import Mapping

import msgspec

from services.auth.settings import AuthSettings
from services.gateway.settings import GatewaySettings
from services.inference.settings import InferenceSettings
from services.metrics.settings import MetricsSettings
from services.web.settings import WebSettings
from shared import config
from shared.config import CheckedVariables

KINDS = (AuthSettings, GatewaySettings, InferenceSettings, MetricsSettings, WebSettings)


def check(environment: Mapping[str, str]) -> CheckedVariables:
    """Return the variables that the services read, and the mistakes in the given ones, each once."""
    checked = [config.check_variables(kind, environment) for kind in KINDS]
    names = dict.fromkeys(name for one in checked for name in one.names)
    return CheckedVariables(tuple(names), tuple(dict.fromkeys(mistake for one in checked for mistake in one.mistakes)))


if __name__ == "__main__":
    given = msgspec.json.decode(sys.stdin.buffer.read(), type=dict[str, str])
    sys.stdout.write(msgspec.json.encode(check(given)).decode())
