# Generated from shared/limits.py by `python -m tools.docs`. Changes made here are lost.
"""The limits of API keys."""

from dataclasses import dataclass
from typing import TypedDict

from aimesh.json_fields import JsonFields


class NewKeyLimits(TypedDict, total=False):
    """Limits of one key, tighter than the account's."""

    #: Requests per hour.
    requests_per_hour: int | None
    #: Requests per minute.
    requests_per_minute: int | None
    #: Tokens per minute, input and output combined.
    tokens_per_minute: int | None
    #: Tokens per day, input and output combined.
    tokens_per_day: int | None
    #: Tokens per month of 30 days, input and output combined.
    tokens_per_month: int | None
    #: Images per day, in prompts.
    images_per_day: int | None
    #: Concurrent requests.
    concurrency: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownLimits:
    """None for what the key does not limit."""

    #: Requests per hour.
    requests_per_hour: int | None
    #: Requests per minute.
    requests_per_minute: int | None
    #: Tokens per minute, input and output combined.
    tokens_per_minute: int | None
    #: Tokens per day, input and output combined.
    tokens_per_day: int | None
    #: Tokens per month of 30 days, input and output combined.
    tokens_per_month: int | None
    #: Images per day, in prompts.
    images_per_day: int | None
    #: Concurrent requests.
    concurrency: int | None


def read(key: JsonFields) -> ShownLimits:
    return ShownLimits(
        requests_per_hour=key.maybe_integer("requests_per_hour"),
        requests_per_minute=key.maybe_integer("requests_per_minute"),
        tokens_per_minute=key.maybe_integer("tokens_per_minute"),
        tokens_per_day=key.maybe_integer("tokens_per_day"),
        tokens_per_month=key.maybe_integer("tokens_per_month"),
        images_per_day=key.maybe_integer("images_per_day"),
        concurrency=key.maybe_integer("concurrency"),
    )
