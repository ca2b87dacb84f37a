"""The stack with the echo model that tests/integration and tests/sdk share: up with their first test, down before the tests of others."""

from pathlib import Path

from tests import stacks

#: So that an answer of a thousand words is long enough to be canceled or cut off in its middle.
ECHO_TOKEN_MS = "5"
#: The limits of an hour stay, for the tests that are about them; a minute's would slow all others down.
WITHIN_A_MINUTE = "requests_per_minute=unlimited,concurrency=unlimited"
_TESTS = Path(__file__).parent

shared = stacks.OfFolders(
    (_TESTS / "integration", _TESTS / "sdk"),
    AIMESH_ECHO="1",
    ECHO_TOKEN_MS=ECHO_TOKEN_MS,
    TIER_FREE=WITHIN_A_MINUTE,
    TIER_PRO=WITHIN_A_MINUTE,
    # The tests are the proxy.
    TRUSTED_PROXIES="127.0.0.1",
)
