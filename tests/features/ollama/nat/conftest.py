"""The fixtures of tests/nat."""

from tests.nat.conftest import *  # noqa: F403
