"""Retention deletes expired data in batches, and nothing else."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from services.auth.privacy import retention
from services.auth.privacy.retention import BATCH, Retention, RetentionRule
from tests.services.auth.accounts.surroundings import Person
from tests.services.auth.privacy import surroundings
from tests.services.auth.privacy.surroundings import PrivacyDesk

NOW = datetime(2026, 11, 21, tzinfo=UTC)


async def test_each_class_is_deleted_after_its_own_days_and_in_batches() -> None:
    asked: list[tuple[str, datetime, int]] = []
    left = {"few": 3, "many": 2 * BATCH + 1}

    def forgets(name: str) -> retention.Forget:
        async def forget(before: datetime, most: int) -> int:
            asked.append((name, before, most))
            gone = min(most, left[name])
            left[name] -= gone
            return gone

        return forget

    rules = RetentionRule("few", 7, forgets("few")), RetentionRule("many", 90, forgets("many"))
    await Retention(rules, surroundings.new_items(), clock=lambda: NOW).enforce()
    assert left == {"few": 0, "many": 0}
    week, quarter = NOW - timedelta(days=7), NOW - timedelta(days=90)
    assert asked == [("few", week, BATCH), *[("many", quarter, BATCH)] * 3]


async def test_a_class_that_grows_faster_than_it_is_deleted_still_ends_the_round() -> None:
    calls = 0

    async def endless(before: datetime, most: int) -> int:
        nonlocal calls
        calls += 1
        return most

    await Retention((RetentionRule("endless", 1, endless),), surroundings.new_items(), clock=lambda: NOW).enforce()
    assert calls == 200


async def user_with_history(api_client: PrivacyDesk, age: str) -> Person:
    """Create a user whose data all ended this long ago."""
    person = await api_client.api_client.person(f"p{uuid4().hex[:8]}")
    sql = api_client.sql
    await sql(
        f"INSERT INTO password_resets (user_id, token_hash, expires_at) VALUES ($1, $2, now() - interval '{age}')", person.id, uuid4().hex
    )
    team = await api_client.team(person, "team")
    for column in ("accepted_at", "withdrawn_at", "expires_at"):
        ends = {
            "accepted_at": "NULL",
            "withdrawn_at": "NULL",
            "expires_at": "now() + interval '7 days'",
            column: f"now() - interval '{age}'",
        }
        await sql(
            "INSERT INTO invitations (id, organisation_id, email, role, token_hash, invited_by, accepted_at, withdrawn_at, expires_at)"
            f" VALUES ($1, $2, 'a@b.c', 'member', $3, $4, {ends['accepted_at']}, {ends['withdrawn_at']}, {ends['expires_at']})",
            uuid4(), team, uuid4().hex, person.id,
        )  # fmt: skip
    key = "INSERT INTO api_keys (id, user_id, name, preview, key_hash, is_active, expires_at) VALUES ($1, $2, $3, 'p', $4, $5, {})"
    await sql(key.format("NULL"), uuid4(), person.id, "revoked", uuid4().hex, False)
    await sql(f"UPDATE api_keys SET revoked_at = now() - interval '{age}' WHERE name = 'revoked' AND user_id = $1", person.id)
    await sql(key.format(f"now() - interval '{age}'"), uuid4(), person.id, "expired", uuid4().hex, True)
    active = uuid4()
    await sql(key.format("NULL"), active, person.id, "active", uuid4().hex, True)
    await sql(
        f"INSERT INTO former_key_hashes (key_hash, key_id, good_until) VALUES ($1, $2, now() - interval '{age}')", uuid4().hex, active
    )
    await sql(
        "INSERT INTO tickets (id, public_key, role, owner, labels, needs_approval, uses, expires_at)"
        f" VALUES ($1, $1, 'worker', $2, '{{}}', false, 1, now() - interval '{age}')",
        uuid4().hex, person.id,
    )  # fmt: skip
    await sql(f"INSERT INTO notices (user_id, kind, subject, created_at) VALUES ($1, 'sign_in', 's', now() - interval '{age}')", person.id)
    return person


async def counts(api_client: PrivacyDesk, person: Person) -> dict[str, int]:
    tables = {
        "resets": "SELECT 1 FROM password_resets WHERE user_id = $1",
        "invitations": "SELECT 1 FROM invitations WHERE invited_by = $1",
        "former": "SELECT 1 FROM former_key_hashes JOIN api_keys ON id = key_id WHERE user_id = $1",
        "tickets": "SELECT 1 FROM tickets WHERE owner = $1",
        "notices": "SELECT 1 FROM notices WHERE user_id = $1",
        "named keys": "SELECT 1 FROM api_keys WHERE user_id = $1 AND name <> 'ended'",
        "keys": "SELECT 1 FROM api_keys WHERE user_id = $1",
    }
    return {name: len(await api_client.sql(text, person.id)) for name, text in tables.items()}


@pytest.mark.parametrize(
    ("age", "left"),
    [
        pytest.param(
            "12 hours",
            {"resets": 1, "invitations": 3, "former": 1, "tickets": 1, "notices": 1, "named keys": 3, "keys": 3},
            id="half a day: all is kept",
        ),
        pytest.param(
            "89 days",
            {"resets": 0, "invitations": 3, "former": 0, "tickets": 1, "notices": 0, "named keys": 3, "keys": 3},
            id="89 days: what has a day",
        ),
        pytest.param(
            "91 days",
            {"resets": 0, "invitations": 0, "former": 0, "tickets": 0, "notices": 0, "named keys": 3, "keys": 3},
            id="91 days: what has 90",
        ),
        pytest.param(
            "366 days",
            {"resets": 0, "invitations": 0, "former": 0, "tickets": 0, "notices": 0, "named keys": 1, "keys": 3},
            id="a year: names of keys",
        ),
    ],
)
async def test_retention_times(api_client: PrivacyDesk, age: str, left: dict[str, int]) -> None:
    person = await user_with_history(api_client, age)
    job = Retention(retention.own(api_client.rows), surroundings.new_items())
    await job.enforce()
    assert await counts(api_client, person) == left
    await job.enforce()
    assert await counts(api_client, person) == left, "again changes nothing"


async def test_an_ended_key_keeps_its_id_and_no_personal_data(api_client: PrivacyDesk) -> None:
    person = await user_with_history(api_client, "366 days")
    before = {row["id"] for row in await api_client.sql("SELECT id FROM api_keys WHERE user_id = $1", person.id)}
    await Retention(retention.own(api_client.rows), surroundings.new_items()).enforce()
    keys = await api_client.sql("SELECT id, name, preview, key_hash, is_active FROM api_keys WHERE user_id = $1", person.id)
    assert {row["id"] for row in keys} == before
    ended = [row for row in keys if row["name"] == "ended"]
    assert {(row["preview"], row["is_active"], row["key_hash"]) for row in ended} == {("", False, f"ended:{row['id']}") for row in ended}
    assert [row["name"] for row in keys if row["is_active"]] == ["active"]


async def test_the_days_of_each_class_can_be_set(api_client: PrivacyDesk) -> None:
    person = await user_with_history(api_client, "2 days")
    await Retention(retention.own(api_client.rows, invitation_days=1, ticket_days=1, ended_key_days=1), surroundings.new_items()).enforce()
    assert await counts(api_client, person) == {
        "resets": 0,
        "invitations": 0,
        "former": 0,
        "tickets": 0,
        "notices": 1,
        "named keys": 1,
        "keys": 3,
    }


async def test_a_key_revoked_by_hand_gets_a_date(api_client: PrivacyDesk) -> None:
    person = await user_with_history(api_client, "1 hour")
    await api_client.sql("UPDATE api_keys SET is_active = false WHERE name = 'active' AND user_id = $1", person.id)
    dated = await api_client.sql("SELECT revoked_at FROM api_keys WHERE name = 'active' AND user_id = $1", person.id)
    assert abs(dated[0]["revoked_at"] - datetime.now(UTC)) < timedelta(minutes=1)
