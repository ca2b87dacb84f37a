from collections.abc import Callable

import pytest
from aimesh.errors import ProtocolError
from aimesh.json_fields import JsonFields


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is not JSON"), (b"{", "is not JSON"), (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "is not a JSON number"),
        (b"\xff\xfe\xfd", "is not JSON"), (b'{"a": "\xff"}', "is not JSON"), (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "is not JSON"), (b"[1]", "must be a JSON object, not a list"), (b"null", "not null"),
        (b"1", "not a whole number"), (b'"x"', "not a string"), (b"true", "not true or false"),
    ],
)  # fmt: skip
def test_value_that_is_no_json_object(content: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        JsonFields.parse(content, "the answer")


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        (JsonFields.text, "x", "x"), (JsonFields.integer, 2**70, 2**70), (JsonFields.number, 1, 1.0), (JsonFields.number, 1.5, 1.5),
        (JsonFields.flag, True, True), (JsonFields.flag, None, False), (JsonFields.maybe_text, None, None), (JsonFields.maybe_text, "", ""),
        (JsonFields.maybe_integer, None, None), (JsonFields.maybe_integer, 0, 0),
    ],
)  # fmt: skip
def test_valid_fields(read: Callable[[JsonFields, str], object], value: object, expected: object) -> None:
    assert read(JsonFields({"a": value}, "it"), "a") == expected


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (JsonFields.text, 1), (JsonFields.text, None), (JsonFields.integer, "1"), (JsonFields.integer, 1.0), (JsonFields.integer, True),
        (JsonFields.number, "1"),
        (JsonFields.number, True), (JsonFields.number, 10**400), (JsonFields.number, float("inf")), (JsonFields.flag, 1),
        (JsonFields.maybe_text, 1),
        (JsonFields.maybe_integer, False), (JsonFields.moment, "today"), (JsonFields.moment, "2026-01-02T03:04:05"), (JsonFields.moment, 1),
        (JsonFields.day, "2026-13-01"), (JsonFields.child, []), (JsonFields.children, {}), (JsonFields.children, [1]),
    ],
)  # fmt: skip
def test_invalid_field_is_named(read: Callable[[JsonFields, str], object], value: object) -> None:
    with pytest.raises(ProtocolError, match=r"it\.a(\[0\])? must be"):
        read(JsonFields({"a": value}, "it"), "a")
    with pytest.raises(ProtocolError, match="is base_url the address"):
        raise_str(lambda: read(JsonFields({"a": value}, "it"), "a"))


def raise_str(work: Callable[[], object]) -> None:
    """Raise errors with the text that users see, which includes the hint."""
    try:
        work()
    except ProtocolError as error:
        raise ProtocolError(str(error)) from error
