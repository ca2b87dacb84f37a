"""Users on the stack that these tests share with those of tests/integration."""

from tests.integration.conftest import *  # noqa: F403
