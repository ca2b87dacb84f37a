from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest

from services.web.pages import request_view
from shared import errors
from shared.api.usage_report import LoggedRequest
from shared.types import KeyId, MicroCredits, ModelName, RequestId, RequestStatus, UserId

KEY = KeyId(UUID("0198b1a2-0000-7000-8000-0123456789ab"))
REQUEST = LoggedRequest(
    id=RequestId(UUID(int=1)), created_at=datetime(2026, 11, 20, 14, 5, 7, tzinfo=UTC), user_id=UserId(UUID(int=2)), key_id=KEY,
    model=ModelName("smollm2"), status=RequestStatus.SUCCESS, error_code=None, prompt_tokens=1200, completion_tokens=34,
    response_time_ms=1234, cost_micro=MicroCredits(1_500), cached=False,
)  # fmt: skip


def test_successful_request() -> None:
    (line,) = request_view.lines([REQUEST], {KEY: "laptop"})
    assert (line.time, line.at) == ("20 Nov 2026, 14:05:07", "2026-11-20T14:05:07+00:00")
    assert (line.model, line.key, line.status, line.tone) == ("smollm2", "laptop", "Completed", "good")
    assert (line.tokens, line.duration, line.cost) == ("1,200 in, 34 out", "1.2 s", "0.0015")
    assert (line.code, line.meaning, line.advice, line.thumb, line.source) == ("", "", "", "", "")


@pytest.mark.parametrize("status", list(RequestStatus))
def test_every_outcome_has_a_word(status: RequestStatus) -> None:
    (line,) = request_view.lines([msgspec.structs.replace(REQUEST, status=status)])
    assert line.status
    assert line.tone in ("good", "warn", "bad", "off")


def test_failed_request_says_why_and_what_to_do() -> None:
    failed = msgspec.structs.replace(
        REQUEST, status=RequestStatus.LIMITED, error_code="rate_limited", prompt_tokens=0, completion_tokens=0, model=None
    )
    (line,) = request_view.lines([failed])
    assert (line.code, line.status, line.tone) == ("rate_limited", "Rate limited", "warn")
    assert line.meaning == "A rate limit was reached. `retry_after_seconds` says when to retry."
    assert line.advice.startswith("Wait for the time in Retry-After")
    assert (line.tokens, line.model) == ("–", "–")


def test_a_request_says_which_fields_had_no_effect() -> None:
    (line,) = request_view.lines([msgspec.structs.replace(REQUEST, ignored_fields="tools[web_search]")])
    assert line.ignored == "tools[web_search]"


@pytest.mark.parametrize("code", sorted(errors.BY_CODE))
def test_every_error_has_a_meaning_and_advice(code: str) -> None:
    assert request_view.explain(code)
    assert request_view.advise(code).endswith((".", "!"))


def test_advice_exists_only_for_existing_errors() -> None:
    assert set(request_view._ADVICE) <= set(errors.BY_CODE)


def test_unknown_error_of_a_newer_gateway_has_advice() -> None:
    assert request_view.explain("<b>new</b>") == ""
    assert request_view.advise("<b>new</b>").startswith("Retry.")


def test_key_of_a_request() -> None:
    assert request_view.key_name(None, {}) == "Signed-in session"
    assert request_view.key_name(KEY, {KEY: "laptop"}) == "laptop"
    assert request_view.key_name(KEY, {}) == "Another key (0198b1a2)"


@pytest.mark.parametrize(("rating", "thumb"), [(1, ("Good", "good")), (-1, ("Bad", "bad")), (0, ("", "")), (None, ("", ""))])
def test_rating_of_a_request(rating: int | None, thumb: tuple[str, str]) -> None:
    (line,) = request_view.lines([msgspec.structs.replace(REQUEST, rating=rating)])
    assert (line.thumb, line.thumb_tone) == thumb
