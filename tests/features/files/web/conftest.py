"""The fixtures of tests/services/web."""

from tests.services.web.conftest import *  # noqa: F403
