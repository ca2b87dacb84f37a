"""API keys: their format, and that a malformed key never reaches the database."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.auth import api_keys
from services.auth.api_keys import NOT_A_KEY
from shared import errors
from shared.api.auth import KeyKind
from shared.identity import credentials
from shared.types import Credential

KEY = api_keys.generate()


def test_a_new_key_is_well_formed() -> None:
    api_keys.check(KEY)
    assert KEY.startswith("aip_live_")
    assert len(KEY) == 9 + 43 + 6
    assert api_keys.generate() != KEY


@given(place=st.integers(0, len(KEY) - 1), other=st.sampled_from(credentials.ALPHABET + "_-. é\n\0"))
def test_one_changed_character_is_detected_offline(place: int, other: str) -> None:
    if other == KEY[place]:
        return
    with pytest.raises(errors.NotAuthenticated, match=NOT_A_KEY):
        api_keys.check(KEY[:place] + other + KEY[place + 1 :])


@given(st.text())
def test_no_text_is_taken_for_a_key(text: str) -> None:
    with pytest.raises(errors.NotAuthenticated, match=NOT_A_KEY):
        api_keys.check(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param(KEY + "\n", id="a newline at the end"),
        pytest.param(" " + KEY, id="a space before"),
        pytest.param(KEY[:-1], id="cut short"),
        pytest.param(KEY + "0", id="too long"),
        pytest.param(KEY.replace("live", "join"), id="a kind that is none"),
        pytest.param(KEY.swapcase(), id="wrong case"),
        pytest.param("aip_live_' OR '1'='1" + "0" * 40, id="SQL"),
        pytest.param("aip_live_" + "٣" * 49, id="digits of another script"),
        pytest.param("A" * 65536, id="64 KiB"),
    ],
)
def test_malformed_keys_are_refused(text: str) -> None:
    with pytest.raises(errors.NotAuthenticated, match=NOT_A_KEY):
        api_keys.check(text)


def test_the_preview_shows_sixteen_characters() -> None:
    shown = api_keys.preview(KEY)
    assert shown == f"{KEY[:12]}…{KEY[-4:]}"


def test_the_digest_depends_on_the_pepper_and_on_the_key() -> None:
    assert api_keys.digest(KEY, "a") == api_keys.digest(Credential(KEY), "a")
    assert len({api_keys.digest(KEY, "a"), api_keys.digest(KEY, "b"), api_keys.digest(api_keys.generate(), "a")}) == 3
    assert len(api_keys.digest(KEY, "a")) == 64


@pytest.mark.parametrize("kind", KeyKind)
def test_every_kind_is_created_and_recognized(kind: KeyKind) -> None:
    key = api_keys.generate(kind)
    api_keys.check(key)
    assert credentials.kind_of(key) == kind
    assert api_keys.mark(key, "a") == api_keys.Mark(api_keys.digest(key, "a"), api_keys.preview(key))


def test_a_key_with_another_prefix_is_a_different_key() -> None:
    assert api_keys.digest(Credential(KEY.replace("live", "test")), "a") != api_keys.digest(KEY, "a")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "just now"), (1, "1 second ago"), (60, "1 minute ago"), (3_599, "59 minutes ago"), (7_200, "2 hours ago"),
        (86_400, "1 day ago"), (3 * 86_400 + 5, "3 days ago"),
    ],
)  # fmt: skip
def test_how_elapsed_time_is_worded(seconds: float, said: str) -> None:
    assert api_keys.ago(seconds) == said
