"""The fixtures of tests/services/web, and an administrator's browser."""

from tests.services.web.conftest import *  # noqa: F403
from tests.services.web.pages.admin.conftest import *  # noqa: F403
