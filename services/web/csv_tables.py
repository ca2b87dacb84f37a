"""Export usage, the request log and rollouts as CSV (RFC 4180). Pure."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC

from shared import amounts, csv_cells
from shared.api.configuration import RolloutPoint
from shared.api.usage_report import LoggedRequest, UsageBucket
from shared.csv_cells import Cell
from shared.types import KeyId, MicroCredits

#: Litestar adds the charset.
MEDIA_TYPE = "text/csv; header=present"
_USAGE_COLUMNS = (
    "date", "requests", "failed", "prompt_tokens", "completion_tokens", "cost_credits", "from_cache", "p50_ms", "p95_ms",
)  # fmt: skip
_REQUEST_COLUMNS = (
    "id", "created_at", "key_id", "key_name", "model", "status", "error_code", "error_field", "ignored_fields", "prompt_tokens",
    "completion_tokens", "response_time_ms", "cost_credits", "from_cache", "rating",
)  # fmt: skip
_ROLLOUT_COLUMNS = (
    "at", "share", "target", "requests", "failed", "failed_of", "late", "late_of", "thumbs_down", "thumbs", "first_token_p50_ms",
    "first_token_p95_ms", "tokens_per_second", "upstream_credits",
)  # fmt: skip


def usage_by_day(buckets: Iterable[UsageBucket]) -> bytes:
    """Return the daily usage table, including days without requests."""
    return written((_USAGE_COLUMNS, *(_day(bucket) for bucket in buckets)))


def request_head() -> bytes:
    return written((_REQUEST_COLUMNS,))


def request_rows(requests: Iterable[LoggedRequest], key_names: Mapping[KeyId, str]) -> bytes:
    """Return more rows of the request log, to follow ``request_head``."""
    return written(_request(request, key_names) for request in requests)


def rollout(points: Iterable[RolloutPoint]) -> bytes:
    """Return the course of a rollout, with two rows for each time: all numbers are of the time until then."""
    return written((_ROLLOUT_COLUMNS, *(row for point in points for row in _point(point))))


def _point(point: RolloutPoint) -> Iterator[tuple[Cell, ...]]:
    for arm, side in zip(point.arms, ("candidate", "baseline"), strict=True):
        counts = {state.name: (getattr(state, f"{side}_bad"), getattr(state, f"{side}_outcomes")) for state in point.intervals}
        yield (
            point.at.astimezone(UTC).isoformat(), point.share, arm.target, arm.requests, *counts.get("errors", (0, 0)),
            *counts.get("first_token", (0, 0)), *counts.get("thumbs", (0, 0)), arm.first_token_p50_ms, arm.first_token_p95_ms,
            None if arm.tokens_per_second is None else round(arm.tokens_per_second, 2), amounts.written(MicroCredits(arm.cost_micro)),
        )  # fmt: skip


def _day(bucket: UsageBucket) -> tuple[Cell, ...]:
    total = bucket.sum
    return (
        bucket.at.astimezone(UTC).date().isoformat(), total.requests, total.errors, total.prompt_tokens, total.completion_tokens,
        amounts.written(total.cost_micro), total.cached, total.p50_ms, total.p95_ms,
    )  # fmt: skip


def _request(request: LoggedRequest, key_names: Mapping[KeyId, str]) -> tuple[Cell, ...]:
    key_name = None if request.key_id is None else key_names.get(request.key_id)
    return (
        str(request.id), request.created_at.astimezone(UTC).isoformat(), str(request.key_id or ""), key_name, request.model,
        request.status.value, request.error_code, request.error_field, request.ignored_fields, request.prompt_tokens,
        request.completion_tokens, request.response_time_ms,
        amounts.written(request.cost_micro), "yes" if request.cached else "no", request.rating,
    )  # fmt: skip


def written(rows: Iterable[Iterable[Cell]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([[csv_cells.harmless(cell) for cell in row] for row in rows])
    return text.getvalue().encode()
