"""The fixtures of tests/services/gateway, and a whole gateway."""

from tests.services.gateway.conftest import *  # noqa: F403
from tests.services.gateway.test_service import mesh  # noqa: F401
