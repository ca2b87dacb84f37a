from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.models import quantities


@pytest.mark.parametrize(
    ("text", "size"),
    [
        pytest.param("4GiB", 4 * 2**30, id="binary units are powers of 1024"),
        pytest.param("16GB", 16 * 10**9, id="decimal units are powers of 1000"),
        pytest.param("4g", 4 * 10**9, id="a letter alone is decimal, as in Kubernetes"),
        pytest.param("512Mi", 512 * 2**20, id="as Kubernetes writes it"),
        pytest.param("1.5 GiB", 1536 * 2**20, id="parts and spaces"),
        pytest.param("1073741824", 2**30, id="a plain number is bytes"),
        pytest.param("100b", 100, id="bytes"),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert quantities.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "4XB", "GiB", "4 i", "1e9", "4GiB or so", "9999999TiB", "nan", "٤GiB", "1" * 400])
def test_invalid_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"4GiB|at most 1024 TiB"):
        quantities.parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("90", 90.0),
        ("0", 0.0),
        ("1.5h", 5400.0),
        ("2 d", 172_800.0),
        ("forever", None),
        ("Forever", None),
        ("-1", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert quantities.parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "5 minutes", "m", "-5m", "5m!", "1y", "9999999d", "999999999h", "inf", "5m 3"])
def test_invalid_duration_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(ValueError, match=r"forever"):
        quantities.parse_seconds(text)


@given(st.text(max_size=30) | st.from_regex(r"[0-9.]{1,12} ?[kmgtisdhKMGB]{0,3}", fullmatch=True))
def test_any_text_is_a_quantity_or_refused(text: str) -> None:
    with suppress(ValueError):
        assert 0 < quantities.parse_bytes(text) <= quantities.MAX_BYTES
    with suppress(ValueError):
        assert 0 <= (quantities.parse_seconds(text) or 0.0) <= quantities.MAX_SECONDS
