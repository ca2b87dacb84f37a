"""The echo-model stack that tests/agents, tests/integration, those of features, and tests/sdk share.

It starts with their first test and stops before other folders' tests.
"""

from pathlib import Path

from tests import stacks

#: Slow enough to cancel or cut off an answer of a thousand words in the middle.
ECHO_TOKEN_MS = "5"
#: Removes the limits per minute, which would slow all tests down. The limits per hour stay, for the tests of limits.
WITHIN_A_MINUTE = "requests_per_minute=unlimited,concurrency=unlimited"
_TESTS = Path(__file__).parent

shared = stacks.OfFolders(
    (_TESTS / "agents", _TESTS / "integration", _TESTS / "sdk", *_TESTS.glob("features/*/integration")),
    AIMESH_ECHO="1",
    ECHO_TOKEN_MS=ECHO_TOKEN_MS,
    TIER_FREE=WITHIN_A_MINUTE,
    TIER_PRO=WITHIN_A_MINUTE,
    # The tests act as the proxy.
    TRUSTED_PROXIES="127.0.0.1",
)
