"""Triggers record each change that makes the platform stricter, even one made in psql, and nothing else."""

import json
from collections.abc import AsyncIterator

import asyncpg
import pytest

ANN, BOB, ORG, KEY, OTHER = (f"00000000-0000-0000-0000-00000000000{n}" for n in range(1, 6))
NODE, BANNED = "U" + "A" * 55, "U" + "B" * 55
ENABLED = "UPDATE second_factors SET enabled_at = now(), sealed_seed = 's' WHERE begun_at IS NOT NULL"
NEW_EPOCH = "INSERT INTO signing_keys VALUES ('c', 'x', 's', 1, now(), now(), NULL)"
SEED = f"""
INSERT INTO users (id, username, email, password_hash, role) VALUES
    ('{ANN}', 'ann', 'ann@example.com', 'h', 'developer'), ('{BOB}', 'bob', 'bob@example.com', NULL, 'user');
INSERT INTO api_keys (id, user_id, key_hash, name, preview, limits) VALUES
    ('{KEY}', '{ANN}', 'k1', 'laptop', 'p', '{{"requests_per_hour": 10}}'), ('{OTHER}', '{ANN}', 'k0', 'ended', 'p', '{{}}');
UPDATE api_keys SET is_active = false WHERE id = '{OTHER}';
INSERT INTO former_key_hashes VALUES ('k_', '{KEY}', now() + interval '1 day'), ('k__', '{KEY}', now() - interval '1 day');
INSERT INTO organisations (id, name) VALUES ('{ORG}', 'org');
INSERT INTO organisation_members VALUES ('{ORG}', '{ANN}', 'owner'), ('{ORG}', '{BOB}', 'member');
INSERT INTO second_factors (user_id, begun_seed, begun_at) VALUES ('{BOB}', 's', now());
INSERT INTO second_factors (user_id, sealed_seed, enabled_at, recovery_hashes) VALUES ('{ANN}', 's', now(), '{{a,b}}');
INSERT INTO oidc_identities (issuer, subject, user_id) VALUES ('https://id', 'secret-subject', '{ANN}');
INSERT INTO invitations (id, organisation_id, email, role, token_hash, invited_by, expires_at)
    VALUES ('{KEY}', '{ORG}', 'x@example.com', 'member', 't', '{ANN}', now() + interval '1 day');
INSERT INTO colleague_invitations (id, email, role, token_hash, invited_by, expires_at)
    VALUES ('{OTHER}', 'x@example.com', 'user', 't', '{ANN}', now() + interval '1 day');
INSERT INTO nodes (id, role) VALUES ('{NODE}', 'worker');
INSERT INTO tickets (id, public_key, role, owner, labels, needs_approval, uses, expires_at) VALUES
    ('t1', 'p1', 'worker', '{ANN}', '{{}}', false, 3, now() + interval '1 day'),
    ('t0', 'p0', 'worker', '{ANN}', '{{}}', false, 3, now() - interval '1 day');
INSERT INTO signing_keys VALUES ('a', 'x', 's', 0, now(), now(), NULL), ('b', 'x', 's', 0, now(), now(), NULL);
"""
SET_LIMIT = """UPDATE api_keys SET limits = limits || jsonb_build_object('{}', {}) WHERE name = 'laptop'"""
#: Begins a transaction whose changes are not recorded.
OFF = "BEGIN; SELECT set_config('aimesh.recovery_log', 'off', true); "


@pytest.fixture
async def db(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection. Of the seed, only the revoked key is recorded."""
    connection = await asyncpg.connect(postgres_url, server_settings={"search_path": "auth"})
    try:
        await connection.execute(SEED)
        assert await lines(connection) == [("key.revoked", OTHER, {})]
        yield connection
    finally:
        await connection.close()


async def lines(connection: asyncpg.Connection, after: int = 0) -> list[tuple[str, str, dict[str, object]]]:
    rows = await connection.fetch("SELECT kind, subject, details FROM recovery_log WHERE number > $1 ORDER BY number", after)
    return [(row["kind"], row["subject"], json.loads(row["details"])) for row in rows]


RECORDED = [
    ("UPDATE api_keys SET is_active = false WHERE name = 'laptop'", "key.revoked", KEY, {}),
    (OFF + "DELETE FROM former_key_hashes; COMMIT; DELETE FROM api_keys WHERE name = 'laptop'", "key.revoked", KEY, {}),
    (SET_LIMIT.format("requests_per_hour", 9), "key.tightened", KEY, {"requests_per_hour": 9}),
    (SET_LIMIT.format("budget_micro", 5), "key.tightened", KEY, {"budget_micro": 5, "requests_per_hour": 10}),
    (SET_LIMIT.format("of_a_newer_version", 5), "key.tightened", KEY, {"of_a_newer_version": 5, "requests_per_hour": 10}),
    ("UPDATE api_keys SET models = '{m}' WHERE name = 'laptop'", "key.tightened", KEY, {"requests_per_hour": 10}),
    ("UPDATE former_key_hashes SET good_until = now()", "key.secret_ended", KEY, {"hash": "k_"}),
    ("DELETE FROM former_key_hashes", "key.secret_ended", KEY, {"hash": "k_"}),
    ("UPDATE api_keys SET key_hash = 'k2' WHERE name = 'laptop'", "key.secret_ended", KEY, {"hash": "k1", "next": "k2"}),
    ("UPDATE users SET is_active = false WHERE username = 'ann'", "user.disabled", ANN, {}),
    ("UPDATE users SET role = 'user' WHERE username = 'ann'", "user.role_lowered", ANN, {"role": "user"}),
    ("UPDATE users SET password_hash = 'i' WHERE username = 'ann'", "user.credentials_changed", ANN, {"part": "password"}),
    ("UPDATE users SET erased_at = now(), is_active = false WHERE role = 'developer'", "user.erased", ANN, {}),
    (ENABLED, "user.credentials_changed", BOB, {"part": "factor"}),
    ("DELETE FROM second_factors", "user.credentials_changed", ANN, {"part": "factor"}),
    ("UPDATE second_factors SET recovery_hashes = '{a}'", "user.credentials_changed", ANN, {"part": "recovery_codes"}),
    ("DELETE FROM oidc_identities", "user.credentials_changed", ANN, {"part": "link"}),
    (f"DELETE FROM organisation_members WHERE user_id = '{BOB}'", "organization.member_removed", BOB, {"organization": ORG}),
    ("UPDATE organisation_members SET role = 'member'", "organization.role_lowered", ANN, {"organization": ORG}),
    ("UPDATE invitations SET withdrawn_at = now()", "invitation.ended", KEY, {}),
    ("UPDATE colleague_invitations SET accepted_at = now()", "invitation.ended", OTHER, {}),
    ("UPDATE nodes SET state = 'revoked'", "node.revoked", NODE, {"role": "worker"}),
    (f"INSERT INTO nodes (id, role, state) VALUES ('{BANNED}', 'client', 'revoked')", "node.revoked", BANNED, {"role": "client"}),
    ("UPDATE tickets SET revoked_at = now()", "ticket.revoked", "t1", {}),
    ("DELETE FROM tickets", "ticket.revoked", "t1", {}),
    ("UPDATE tickets SET used = 2", "ticket.used", "t1", {"used": 2}),
    ("DELETE FROM signing_keys; " + NEW_EPOCH, "signing_keys.rotated_at_once", "1", {}),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "kind", "subject", "details"), RECORDED)
async def test_what_makes_the_platform_stricter_is_recorded_once(
    db: asyncpg.Connection, statement: str, kind: str, subject: str, details: dict[str, object]
) -> None:
    await db.execute(statement)
    ((found_kind, found_subject, found_details),) = await lines(db, after=1)
    assert (found_kind, found_subject) == (kind, subject)
    assert found_details.items() >= details.items()
    # Only ids and hashes are recorded.
    assert not [word for word in ("ann", "laptop", "example.com", "secret-subject") if word in json.dumps(found_details)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE api_keys SET is_active = false, key_hash = 'ended' WHERE name = 'ended'",
        "UPDATE api_keys SET name = 'x', last_used_at = now() WHERE name = 'laptop'",
        SET_LIMIT.format("requests_per_hour", 11),
        "UPDATE api_keys SET limits = '{}' WHERE name = 'laptop'",
        "DELETE FROM former_key_hashes WHERE good_until < now()",
        "UPDATE users SET role = 'admin', subscription_tier = 'pro', erase_at = now() WHERE username = 'ann'",
        "UPDATE users SET password_hash = 'first' WHERE username = 'bob'",
        "UPDATE second_factors SET last_step = 7, begun_seed = 's', begun_at = now()",
        "UPDATE second_factors SET recovery_hashes = '{a,b,c}' WHERE enabled_at IS NOT NULL",
        f"UPDATE organisation_members SET role = 'owner' WHERE user_id = '{BOB}'",
        "UPDATE tickets SET used = 1, revoked_at = now() WHERE id = 't0'",
        "INSERT INTO signing_keys VALUES ('c', 'x', 's', 0, now(), now(), NULL)",
        OFF + "UPDATE users SET is_active = false; COMMIT",
    ],
)
async def test_everything_else_is_not(db: asyncpg.Connection, statement: str) -> None:
    await db.execute(statement)
    assert await lines(db, after=1) == []


async def test_a_change_that_is_rolled_back_leaves_no_gap(db: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.DivisionByZeroError, match="division"):
        await db.execute("BEGIN; UPDATE nodes SET state = 'revoked'; SET CONSTRAINTS ALL IMMEDIATE; SELECT 1 / 0")
    await db.execute("ROLLBACK; UPDATE users SET is_active = false WHERE username = 'ann'")
    assert [row["number"] for row in await db.fetch("SELECT number FROM recovery_log ORDER BY number")] == [1, 2]


async def test_two_transactions_with_the_same_rows_in_another_order_do_not_deadlock_on_the_log(
    db: asyncpg.Connection, postgres_url: str
) -> None:
    """The triggers run at commit; until then another transaction can add its line."""
    async with db.transaction():
        await db.execute("UPDATE nodes SET state = 'revoked'")
        other = await asyncpg.connect(postgres_url, server_settings={"search_path": "auth"})
        try:
            await other.execute("UPDATE users SET is_active = false WHERE username = 'ann'", timeout=20)
        finally:
            await other.close()
    assert [kind for kind, _, _ in await lines(db, after=1)] == ["user.disabled", "node.revoked"]
