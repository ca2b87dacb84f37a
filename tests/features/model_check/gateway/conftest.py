"""The fixtures of tests/services/gateway."""

from tests.services.gateway.conftest import *  # noqa: F403
