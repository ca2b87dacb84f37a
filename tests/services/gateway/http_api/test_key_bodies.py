"""Keys in /api: every limit under both spellings of its name, and an exact budget."""

import json
from datetime import UTC, datetime

import pytest

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import request_bodies, rest_accounts
from shared.api import auth
from shared.types import Credential, MicroCredits
from tests.services.gateway.fakes import KEY_ID, USER


def read(text: str) -> auth.GenerateApiKey:
    return rest_accounts.to_key_request(request_bodies.read_either_case(text.encode(), rest_accounts.ApiKeyBody))


def test_every_limit_reaches_auth() -> None:
    body = {"name": "ci", "requests_per_hour": 1, "requestsPerMinute": 2, "tokensPerMinute": 3, "concurrency": 4, "budget": "2.5"}
    assert read(json.dumps(body)) == auth.GenerateApiKey(
        "ci",
        None,
        auth.ApiKeyLimits(
            requests_per_hour=1, requests_per_minute=2, tokens_per_minute=3, concurrency=4, budget_micro=MicroCredits(2_500_000)
        ),
    )
    assert read("{}") == auth.GenerateApiKey()


@pytest.mark.parametrize(("sent", "micro"), [("2.5", 2_500_000), ('"0.000001"', 1), ("1e-6", 1), ("7", 7_000_000), ("null", None)])
def test_a_budget(sent: str, micro: int | None) -> None:
    assert read(f'{{"budget": {sent}}}').limits.budget_micro == micro


@pytest.mark.parametrize(
    ("field", "sent"),
    [
        ("budget", "100000000000.123456"),
        ("budget", '"2,5"'),
        ("budget", "0.0000001"),
        ("budget", "12345678901234567890"),
        ("budget", "true"),
        ("budget", "[]"),
        ("requests_per_hour", "0"),
        ("requests_per_minute", "5.5"),
        ("tokens_per_minute", "1" + "0" * 30),
        ("tokens_per_minute", str(2**64)),
        ("tokens_per_minute", str(2**31)),
        ("concurrency", '"5"'),
        ("concurrency", "-1"),
    ],
)
def test_an_invalid_limit_names_its_field(field: str, sent: str) -> None:
    with pytest.raises(BadField) as caught:
        read(f'{{"{field}": {sent}}}')
    assert caught.value.field == field


def test_the_answer_has_flat_limits_and_the_budget_in_credits() -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    limits = auth.ApiKeyLimits(requests_per_hour=1, tokens_per_minute=3, concurrency=4, budget_micro=MicroCredits(2_500_000))
    created = auth.CreatedApiKey(Credential("aip_live_x"), auth.ApiKey(KEY_ID, USER, "ci", "aip…x", True, at, limits=limits))
    answer = rest_accounts.ApiKeyAnswer(created.api_key, rest_accounts.to_key_view(created.key))
    assert answer.api_key == "aip_live_x"
    shown = answer.key
    assert (shown.requests_per_hour, shown.requests_per_minute, shown.tokens_per_minute, shown.concurrency) == (1, None, 3, 4)
    assert (shown.budget, shown.id, shown.name, shown.created_at) == ("2.5", KEY_ID, "ci", at)
