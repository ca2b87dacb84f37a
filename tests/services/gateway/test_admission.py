import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway import admission
from shared import errors
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage


def request(**fields: object) -> InferenceRequest:
    return InferenceRequest(**{"prompt": "hi", **fields})  # type: ignore[arg-type]


BAD_NUMBERS = [-1, -0.1, math.nan, math.inf, -math.inf, 2**63, 10**30, True, False, "1", [], {}]


@pytest.mark.parametrize("value", BAD_NUMBERS, ids=repr)
@pytest.mark.parametrize("field", admission.RANGES)
def test_a_number_out_of_range_or_of_another_type_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(admission.BadField, match=f"^{field} must be") as refused:
        admission.admit(request(**{field: value}))
    assert refused.value.field == field


@pytest.mark.parametrize("field", admission.RANGES)
def test_a_whole_number_of_four_hundred_digits_was_an_internal_error(field: str) -> None:
    """math.isfinite raises OverflowError for it."""
    with pytest.raises(admission.BadField, match=f"^{field} must be"):
        admission.admit(request(**{field: 10**400}))


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("temperature", [0, 0.0, 1.5, 2], [2.0001]),
        ("top_p", [0.0001, 1], [0, 1.01]),
        ("top_k", [0, 1, 1000], [1001, 1.5]),
        ("max_tokens", [1, 32768], [0, 32769, 2.5]),
        ("seed", [0, 2**63 - 1], [2**63, 1.0]),
    ],
)
def test_ranges(field: str, good: list[float], bad: list[float]) -> None:
    for value in good:
        assert getattr(admission.admit(request(**{field: value})).sampling, field) == value
    for value in bad:
        with pytest.raises(admission.BadField):
            admission.admit(request(**{field: value}))


@given(st.floats() | st.integers(), st.sampled_from(sorted(admission.RANGES)))
def test_nothing_outside_the_allow_list_is_admitted(value: float, field: str) -> None:
    allowed = admission.RANGES[field]
    try:
        admission.admit(request(**{field: value}))
    except admission.BadField:
        return
    assert allowed.low <= value <= allowed.high
    assert not allowed.whole or isinstance(value, int)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        pytest.param({"prompt": None}, "prompt is missing", id="nothing to run"),
        pytest.param({"prompt": ""}, "prompt is empty", id="empty"),
        pytest.param({"prompt": " \n\t\u00a0"}, "prompt is empty", id="only white space"),
        pytest.param({"messages": (ChatMessage("user", "x"),)}, "exclude each other", id="prompt and messages"),
        pytest.param({"prompt": None, "messages": (ChatMessage("user", ""),)}, "have no text", id="messages without text"),
        pytest.param({"prompt": None, "messages": (ChatMessage("tool", "x"),)}, r"messages\[0\].role must be one of", id="unknown role"),
        pytest.param({"prompt": None, "messages": (ChatMessage("user", "x"),) * 1001}, "at most 1000", id="too many messages"),
        pytest.param({"prompt": None, "messages": (ChatMessage("user", "x"),), "system": "y"}, "system goes with", id="system twice"),
        pytest.param({"stop": ("a",) * 5}, "stop must have at most 4", id="too many stops"),
        pytest.param({"stop": ("",)}, "stop must be of texts", id="empty stop"),
        pytest.param({"stop": ("x" * 65,)}, "stop must be of texts", id="long stop"),
        pytest.param({"model": ""}, "model must have", id="empty model"),
        pytest.param({"model": "m" * 201}, "model must have", id="long model"),
    ],
)
def test_refusals_name_the_field(fields: dict[str, object], says: str) -> None:
    with pytest.raises(errors.BadRequest, match=says):
        admission.admit(request(**fields))


def test_a_prompt_that_no_frame_could_carry_is_too_large() -> None:
    admission.admit(request(prompt="x" * admission.MAX_PROMPT_BYTES))
    with pytest.raises(errors.TooLarge):
        admission.admit(request(prompt="ä" * (admission.MAX_PROMPT_BYTES // 2 + 1)))


def test_a_plain_prompt_becomes_a_chat() -> None:
    admitted = admission.admit(request(system="Be brief."))
    assert admitted.messages == (ChatMessage("system", "Be brief."), ChatMessage("user", "hi"))
