"""The fixtures of tests/services/web/pages/admin."""

from tests.services.web.pages.admin.conftest import *  # noqa: F403
