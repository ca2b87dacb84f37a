"""The fixtures of tests/services/auth."""

from tests.services.auth.conftest import *  # noqa: F403
