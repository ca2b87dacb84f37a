from collections.abc import Callable

import pytest
from aimesh.errors import ProtocolError
from aimesh.json_fields import Fields


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is not JSON"), (b"{", "is not JSON"), (b'{"a": NaN}', "NaN is no number"), (b'{"a": -Infinity}', "is no number"),
        (b"\xff\xfe\xfd", "is not JSON"), (b'{"a": "\xff"}', "is not JSON"), (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "is not JSON"), (b"[1]", "must be a JSON object and is a list"), (b"null", "and is null"),
        (b"1", "and is a whole number"), (b'"x"', "and is a text"), (b"true", "and is true or false"),
    ],
)  # fmt: skip
def test_what_is_no_object_of_json(content: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        Fields.parse(content, "the answer")


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        (Fields.text, "x", "x"), (Fields.integer, 2**70, 2**70), (Fields.number, 1, 1.0), (Fields.number, 1.5, 1.5),
        (Fields.flag, True, True), (Fields.flag, None, False), (Fields.maybe_text, None, None), (Fields.maybe_text, "", ""),
        (Fields.maybe_integer, None, None), (Fields.maybe_integer, 0, 0),
    ],
)  # fmt: skip
def test_what_fits(read: Callable[[Fields, str], object], value: object, expected: object) -> None:
    assert read(Fields({"a": value}, "it"), "a") == expected


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (Fields.text, 1), (Fields.text, None), (Fields.integer, "1"), (Fields.integer, 1.0), (Fields.integer, True), (Fields.number, "1"),
        (Fields.number, True), (Fields.number, 10**400), (Fields.number, float("inf")), (Fields.flag, 1), (Fields.maybe_text, 1),
        (Fields.maybe_integer, False), (Fields.moment, "today"), (Fields.moment, "2026-01-02T03:04:05"), (Fields.moment, 1),
        (Fields.day, "2026-13-01"), (Fields.child, []), (Fields.children, {}), (Fields.children, [1]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(read: Callable[[Fields, str], object], value: object) -> None:
    with pytest.raises(ProtocolError, match=r"it\.a(\[0\])? must be"):
        read(Fields({"a": value}, "it"), "a")
    with pytest.raises(ProtocolError, match="is base_url the address"):
        raise_str(lambda: read(Fields({"a": value}, "it"), "a"))


def raise_str(work: Callable[[], object]) -> None:
    """The hint is in what people see."""
    try:
        work()
    except ProtocolError as error:
        raise ProtocolError(str(error)) from error
