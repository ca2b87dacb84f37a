import csv
import io
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.web import csv_tables
from shared.api.usage_report import LoggedRequest, UsageBucket, UsageSum
from shared.types import KeyId, MicroCredits, ModelName, RequestId, RequestStatus, UserId

KEY = KeyId(UUID(int=9))
REQUEST = LoggedRequest(
    id=RequestId(UUID(int=1)), created_at=datetime(2026, 11, 20, 14, 5, tzinfo=timezone(timedelta(hours=2))), user_id=UserId(UUID(int=2)),
    key_id=KEY, model=ModelName("smollm2"), status=RequestStatus.SUCCESS, error_code=None, prompt_tokens=7, completion_tokens=9,
    response_time_ms=120, cost_micro=MicroCredits(1_500), cached=True, rating=-1,
)  # fmt: skip


def read(table: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.decode(), newline="")))


def log_of(*requests: LoggedRequest, names: dict[KeyId, str] | None = None) -> list[dict[str, str]]:
    return read(csv_tables.request_head() + csv_tables.request_rows(requests, names or {}))


def test_request_is_a_row_with_exact_numbers_and_utc() -> None:
    (row,) = log_of(REQUEST, names={KEY: "laptop"})
    assert row == {
        "id": str(REQUEST.id), "created_at": "2026-11-20T12:05:00+00:00", "key_id": str(KEY), "key_name": "laptop", "model": "smollm2",
        "status": "success", "error_code": "", "error_field": "", "ignored_fields": "",
        "prompt_tokens": "7", "completion_tokens": "9", "response_time_ms": "120",
        "cost_credits": "0.0015", "from_cache": "yes", "rating": "-1",
    }  # fmt: skip


def test_missing_values_are_empty_cells() -> None:
    (row,) = log_of(msgspec.structs.replace(REQUEST, key_id=None, model=None, rating=None, cached=False))
    assert (row["key_id"], row["key_name"], row["model"], row["rating"], row["from_cache"]) == ("", "", "", "", "no")


def test_day_is_a_row() -> None:
    sums = UsageSum(3, 1, 70, 30, MicroCredits(2_500_000), 1, None, 840)
    (row,) = read(csv_tables.usage_by_day([UsageBucket(datetime(2026, 11, 20, tzinfo=UTC), sums)]))
    assert row == {
        "date": "2026-11-20", "requests": "3", "failed": "1", "prompt_tokens": "70", "completion_tokens": "30", "cost_credits": "2.5",
        "from_cache": "1", "p50_ms": "", "p95_ms": "840",
    }  # fmt: skip


def test_lines_end_as_in_rfc_4180() -> None:
    table = csv_tables.usage_by_day([])
    assert table.endswith(b"\r\n")
    assert table.count(b"\n") == table.count(b"\r\n") == 1


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_text_becomes_a_formula(begin: str) -> None:
    (row,) = log_of(msgspec.structs.replace(REQUEST, model=ModelName(f'{begin}cmd|"x"!A1')), names={KEY: f"{begin}1+1"})
    assert row["model"] == f"""'{begin}cmd|"x"!A1"""
    assert row["key_name"] == f"'{begin}1+1"


@given(st.text(), st.text())
def test_any_name_survives_the_table(model: str, key: str) -> None:
    (row,) = log_of(msgspec.structs.replace(REQUEST, model=ModelName(model)), names={KEY: key})
    assert row["model"].removeprefix("'") == model.removeprefix("'")
    assert row["key_name"].removeprefix("'") == key.removeprefix("'")
    assert not row["model"].startswith(("=", "+", "-", "@"))
