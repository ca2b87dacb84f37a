import pytest

from services.web.http import forms
from services.web.http.forms import LoginForm, RegistrationFields
from shared import errors
from shared.api.auth import ApiKeyLimits


def test_form_is_decoded_with_spaces_plus_signs_and_umlauts() -> None:
    form = forms.convert(forms.read_fields(b"name=J%C3%BCrgen+M&password=a%26b%3D+"), LoginForm)
    assert form == LoginForm(name="Jürgen M", password="a&b= ")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"name=a", id="a field is missing"),
        pytest.param(b"name=a&password=b&role=admin", id="a field too many"),
        pytest.param(b"name=a&name=b&password=c", id="a field twice"),
        pytest.param(b"name=%00&password=c", id="a NUL"),
        pytest.param(b"name=%ff&password=c", id="escaped bytes that are not UTF-8"),
        pytest.param(b"name=\xff&password=c", id="bytes that are not UTF-8"),
        pytest.param(b"&".join(b"f%d=1" % n for n in range(50)), id="too many fields"),
        pytest.param(b'{"token": "t"}', id="JSON"),
        pytest.param(b"=&=&=", id="no names"),
    ],
)
def test_invalid_form_is_a_bad_request(content: bytes) -> None:
    with pytest.raises(errors.BadRequest):
        forms.convert(forms.read_fields(content), LoginForm)


def test_json_body_is_decoded() -> None:
    body = b'{"username": "john_doe", "email": "john@example.com", "password": "secure_password"}'
    assert forms.read_json(body, RegistrationFields) == RegistrationFields("john_doe", "john@example.com", "secure_password")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="cut off"),
        pytest.param(b"[" * 100_000, id="deeply nested"),
        pytest.param(b'{"username": "a", "email": "b", "password": "c", "role": "admin"}', id="an unknown field"),
        pytest.param(b'{"username": 7, "email": "b", "password": "c"}', id="a wrong type"),
        pytest.param(b'{"username": "\xff", "email": "b", "password": "c"}', id="not UTF-8"),
        pytest.param(b'{"username": "a", "email": "b"}', id="a missing field"),
    ],
)
def test_invalid_json_is_a_bad_request(content: bytes) -> None:
    with pytest.raises(errors.BadRequest):
        forms.read_json(content, RegistrationFields)


@pytest.mark.parametrize(("text", "limit"), [("", None), ("  ", None), ("1", 1), (" 250 ", 250), ("2147483647", 2**31 - 1)])
def test_limit_is_a_number_or_empty(text: str, limit: int | None) -> None:
    assert forms.read_number(text, "requests per hour", ApiKeyLimits, "requests_per_hour") == limit


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "1e3", "2147483648", "nan", "ten", "١", "9" * 5000, "1_000", "0x10"])
def test_anything_else_is_no_limit(text: str) -> None:
    with pytest.raises(errors.BadRequest, match="whole number"):
        forms.read_number(text, "requests per hour", ApiKeyLimits, "requests_per_hour")


def test_labels_are_parsed_with_spaces_and_empty_parts() -> None:
    assert forms.read_labels(" gpu=a100 ,, room=3 ") == {"gpu": "a100", "room": "3"}
    assert forms.read_labels("") == {}
