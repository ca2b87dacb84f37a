"""The fixtures of tests/services/metrics."""

from tests.services.metrics.conftest import *  # noqa: F403
