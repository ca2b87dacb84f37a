import os

import pytest

from services.web import csrf
from shared import errors

TOKENS = csrf.FormTokens("a secret of the web service, long enough", os.urandom)
SESSION = "session-1"


def test_token_is_valid_for_its_session_repeatedly() -> None:
    token = TOKENS.issue(SESSION)
    TOKENS.check(token, SESSION)
    TOKENS.check(token, SESSION)


def test_two_tokens_of_a_session_differ() -> None:
    assert TOKENS.issue(SESSION) != TOKENS.issue(SESSION)


ISSUED = TOKENS.issue(SESSION)


@pytest.mark.parametrize(
    ("token", "session"),
    [
        pytest.param(ISSUED, "session-2", id="of another session"),
        pytest.param(ISSUED, None, id="without a session"),
        pytest.param(ISSUED, "", id="with an empty session"),
        pytest.param("", SESSION, id="no token"),
        pytest.param(ISSUED[:-1] + ("0" if ISSUED[-1] != "0" else "1"), SESSION, id="last digit changed"),
        pytest.param(ISSUED.replace(ISSUED[0], "f" if ISSUED[0] != "f" else "e", 1), SESSION, id="first digit changed"),
        pytest.param(ISSUED + "\n", SESSION, id="with a newline behind it"),
        pytest.param(ISSUED.upper(), SESSION, id="in capitals"),
        pytest.param("é" * 97, SESSION, id="not ASCII"),
        pytest.param(csrf.FormTokens("another secret", os.urandom).issue(SESSION), SESSION, id="signed with another secret"),
    ],
)
def test_token_of_another_session_is_refused(token: str, session: str | None) -> None:
    with pytest.raises(errors.NotAllowed):
        TOKENS.check(token, session)


OWN = frozenset({"localhost:3000", "ai.example.org"})


@pytest.mark.parametrize(
    ("fetch_site", "origin"),
    [
        pytest.param("same-origin", "http://localhost:3000", id="a form of ours"),
        pytest.param("none", None, id="a reload by the person"),
        pytest.param(None, "http://localhost:3000", id="a browser on plain HTTP"),
        pytest.param(None, "https://ai.example.org", id="the public address behind a proxy"),
        pytest.param(None, None, id="no browser at all: the token decides"),
    ],
)
def test_own_origins_are_accepted(fetch_site: str | None, origin: str | None) -> None:
    csrf.check_origin(fetch_site=fetch_site, origin=origin, own_hosts=OWN)


@pytest.mark.parametrize(
    ("fetch_site", "origin"),
    [
        pytest.param("cross-site", "https://evil.example", id="another site"),
        pytest.param("same-site", "https://other.example.org", id="a sibling domain"),
        pytest.param("", "http://localhost:3000", id="an empty word"),
        pytest.param("cross-site", "http://localhost:3000", id="an origin that claims to be ours"),
        pytest.param(None, "https://evil.example", id="another origin"),
        pytest.param(None, "http://localhost:3001", id="another port"),
        pytest.param(None, "null", id="a sandboxed frame"),
        pytest.param(None, "", id="an empty origin"),
        pytest.param(None, "https://ai.example.org.evil.example", id="a longer host"),
        pytest.param(None, "http://[::1", id="no address at all"),
    ],
)
def test_other_origins_are_refused(fetch_site: str | None, origin: str | None) -> None:
    with pytest.raises(errors.NotAllowed):
        csrf.check_origin(fetch_site=fetch_site, origin=origin, own_hosts=OWN)
