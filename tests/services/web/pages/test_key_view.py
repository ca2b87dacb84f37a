import pytest

from services.web.http import forms
from services.web.pages import key_view
from services.web.pages.key_view import KeyUse, NewKeyForm
from shared import errors
from shared.api.auth import ApiKeyLimits, Every, GenerateApiKey, KeyBounds, KeyKind
from shared.types import MicroCredits, ModelName, Permission, UserRole


def test_limits_of_a_key() -> None:
    form = NewKeyForm(
        "laptop", requests_per_hour="1", requests_per_minute=" 2 ", tokens_per_minute="3", concurrency="4", budget=".5", budget_every="week"
    )
    assert key_view.read_limits(form) == ApiKeyLimits(
        requests_per_hour=1,
        requests_per_minute=2,
        tokens_per_minute=3,
        concurrency=4,
        budget_micro=MicroCredits(500_000),
        budget_every=Every.WEEK,
    )
    assert form.has_limits
    with pytest.raises(errors.BadRequest, match="unknown renewal of the budget"):
        key_view.read_limits(NewKeyForm("laptop", budget="1", budget_every="year"))
    assert key_view.read_limits(NewKeyForm("laptop", budget=" ")) == ApiKeyLimits()
    assert not NewKeyForm("laptop").has_limits


@pytest.mark.parametrize(
    ("text", "message"), [("0", "must be more than 0"), ("-1", "must be more"), ("1,5", "such as 2.5"), ("0.0000001", "decimals")]
)
def test_invalid_budget(text: str, message: str) -> None:
    with pytest.raises(errors.BadRequest, match=f"budget.*{message}"):
        key_view.read_limits(NewKeyForm("laptop", budget=text))


def test_optional_field_of_a_key_may_be_omitted() -> None:
    assert forms.convert(forms.read_fields(b"name=laptop"), NewKeyForm).requests_per_hour == ""


def test_form_with_only_a_name_requests_the_defaults() -> None:
    assert key_view.read_request(NewKeyForm(" laptop ")) == GenerateApiKey("laptop")


@pytest.mark.parametrize(
    ("form", "kind", "scopes"),
    [
        (NewKeyForm("k", use=KeyUse.RUN), KeyKind.LIVE, ("inference:execute",)),
        (NewKeyForm("k", use=KeyUse.TEST), KeyKind.TEST, ()),
        (NewKeyForm("k", use=KeyUse.ADMIN), KeyKind.ADMIN, ()),
        (NewKeyForm("k", use=KeyUse.CHOSEN, may_run="yes", may_read_usage="yes"), KeyKind.LIVE, ("inference:execute", "usage:read")),
        # The checkboxes are ignored unless the use is CHOSEN.
        (NewKeyForm("k", may_write_keys="yes"), KeyKind.LIVE, ()),
        (NewKeyForm("k", use=KeyUse.ALL, may_run="yes"), KeyKind.LIVE, ()),
    ],
)
def test_use_of_a_key(form: NewKeyForm, kind: KeyKind, scopes: tuple[str, ...]) -> None:
    sent = key_view.read_request(form)
    assert (sent.kind, sent.bounds.scopes) == (kind, scopes)
    assert sent.all_rights is (form.use is KeyUse.ALL)


def test_key_without_permissions_is_refused() -> None:
    with pytest.raises(errors.BadRequest, match="has no permissions"):
        key_view.read_request(NewKeyForm("k", use=KeyUse.CHOSEN))


def test_models_and_networks_are_parsed_as_lists() -> None:
    sent = key_view.read_request(NewKeyForm("k", models="small, large large", networks="192.0.2.0/24 2001:db8::/48,"))
    assert sent.bounds == KeyBounds((), (ModelName("small"), ModelName("large")), ("192.0.2.0/24", "2001:db8::/48"))


@pytest.mark.parametrize(("text", "days"), [("", None), ("0", 0), (" 30 ", 30)])
def test_lifetime_of_a_key(text: str, days: int | None) -> None:
    assert key_view.read_request(NewKeyForm("k", days=text)).days == days


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "99999", "٣"])
def test_invalid_number_of_days(text: str) -> None:
    with pytest.raises(errors.BadRequest, match="number of days"):
        key_view.read_request(NewKeyForm("k", days=text))


def test_each_role_sees_its_permissions() -> None:
    assert "may_write_models" not in key_view.scopes_of(UserRole.USER)
    assert "may_write_models" in key_view.scopes_of(UserRole.DEVELOPER)
    assert set(key_view.scopes_of(UserRole.ADMIN)) == set(key_view.SCOPES)
    # Every permission except EVERYTHING has a checkbox, and the form has its field.
    assert set(key_view.SCOPES) <= set(NewKeyForm.__struct_fields__)
    assert {*key_view.SCOPES.values(), Permission.EVERYTHING} == set(Permission)
