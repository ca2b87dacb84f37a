"""The access review: unused keys, users and nodes, as an administrator sees them."""

import pytest

from shared import errors
from shared.api import accounts
from shared.api.auth import KeyKind
from shared.identity import node_keys
from shared.types import UserRole
from tests.services.auth import by_hand
from tests.services.auth.organizations.seeded_database import SeededDb


async def review(seeded_db: SeededDb, by: str, days: int = 90) -> accounts.AccessReview:
    return await seeded_db.ask(accounts.review_access, accounts.ReviewAccess(days), by)


async def test_an_active_mesh_has_nothing_to_review(seeded_db: SeededDb) -> None:
    boss, anna = await seeded_db.admin(), await seeded_db.person()
    await seeded_db.key(boss.login, kind=KeyKind.ADMIN)
    await seeded_db.key(anna.login)
    assert await review(seeded_db, boss.login) == accounts.AccessReview((), (), ())


async def test_keys_are_listed_with_every_reason(seeded_db: SeededDb, postgres_url: str) -> None:
    boss, anna = await seeded_db.admin(), await seeded_db.person("anna")
    fresh, unused, old, eternal = [
        await seeded_db.key(anna.login, name, days=0 if name == "eternal" else 365) for name in ("fresh", "unused", "old", "eternal")
    ]
    gone = await seeded_db.person("gone")
    of_gone = await seeded_db.key(gone.login, "gone's")
    expired, revoked = await seeded_db.key(anna.login, "expired"), await seeded_db.key(anna.login, "revoked")
    for statement in (
        "UPDATE auth.api_keys SET created_at = now() - interval '100 days' WHERE name IN ('unused', 'old', 'expired', 'revoked')",
        "UPDATE auth.api_keys SET last_used_at = now() - interval '91 days' WHERE name = 'old'",
        "UPDATE auth.api_keys SET expires_at = now() WHERE name = 'expired'",
        "UPDATE auth.api_keys SET is_active = false WHERE name = 'revoked'",
        "UPDATE auth.users SET is_active = false WHERE username = 'gone'",
    ):
        await by_hand.run(postgres_url, statement)
    listed = {key.name: (key.id, key.owner, key.why) for key in (await review(seeded_db, boss.login)).keys}
    assert listed == {
        "unused": (str(unused.key.id), "anna", "never used"),
        "old": (str(old.key.id), "anna", "not used for 90 days"),
        "eternal": (str(eternal.key.id), "anna", "never expires"),
        "gone's": (str(of_gone.key.id), "gone", "its owner's account is closed"),
    }
    assert {fresh.key.name, expired.key.name, revoked.key.name}.isdisjoint(listed)
    await by_hand.run(postgres_url, "UPDATE auth.users SET is_active = false WHERE username = 'anna'")
    assert ("never used, its owner's account is closed") in {key.why for key in (await review(seeded_db, boss.login)).keys}
    assert {key.name for key in (await review(seeded_db, boss.login, 120)).keys} == {"fresh", "unused", "old", "eternal", "gone's"}


async def test_users_are_listed_by_when_they_were_last_seen(seeded_db: SeededDb, postgres_url: str) -> None:
    boss = await seeded_db.admin()
    people = {
        name: await seeded_db.person(name, UserRole.DEVELOPER) for name in ("new", "busy", "away", "never", "closed", "reads", "tried")
    }
    for name in ("busy", "away"):
        await seeded_db.key(people[name].login)
    for statement in (
        "UPDATE auth.users SET created_at = now() - interval '200 days' WHERE username <> 'new'",
        "UPDATE auth.users SET is_active = false WHERE username = 'closed'",
        "UPDATE auth.api_keys SET last_used_at = now() - interval '1 day' FROM auth.users WHERE users.id = user_id AND username = 'busy'",
        "UPDATE auth.api_keys SET last_used_at = now() - interval '95 days' FROM auth.users WHERE users.id = user_id AND username = 'away'",
    ):
        await by_hand.run(postgres_url, statement)
    act = """
        INSERT INTO auth.audit_log
            (chain, sequence, at, actor, action, result, target, request_id, times, details_digest, prev_hash, hash)
        VALUES ('house', $1, now() - interval '2 days', $2, 'session.open', $3, '', '', 1, '', '', '')
    """
    await by_hand.run(postgres_url, act, 1, people["reads"].user.id, "done")
    await by_hand.run(postgres_url, act, 2, people["tried"].user.id, "refused")
    listed = {user.username: (user.role, user.why, user.last_seen_at is None) for user in (await review(seeded_db, boss.login)).users}
    assert listed == {
        "boss": ("admin", "never used", True),
        "tried": ("developer", "never used", True),
        "never": ("developer", "never used", True),
        "away": ("developer", "not seen for 90 days", False),
    }


async def test_silent_nodes_are_listed(seeded_db: SeededDb, postgres_url: str) -> None:
    boss, anna = await seeded_db.admin(), await seeded_db.person("anna", UserRole.NODE_OWNER)
    nodes = [node_keys.NodeKey(node_keys.new_seed()).id for _ in range(4)]
    insert = (
        "INSERT INTO auth.nodes (id, role, state, name, owner, idle_since) VALUES ($1, 'worker', $2, $3, $4, now() - interval '95 days')"
    )
    for node, state, name in zip(nodes, ("active", "pending", "revoked", "active"), ("idle", "waits", "cut off", "busy"), strict=True):
        await by_hand.run(postgres_url, insert, node, state, name, anna.user.id)
    await by_hand.run(postgres_url, "UPDATE auth.nodes SET idle_since = now() WHERE name = 'busy'")
    listed = {node.name: (node.id, node.owner, node.why) for node in (await review(seeded_db, boss.login)).nodes}
    assert listed == {
        "idle": (nodes[0], "anna", "silent for 90 days"),
        "waits": (nodes[1], "anna", "waiting for approval for 90 days"),
    }


async def test_only_administrators_may_review(seeded_db: SeededDb) -> None:
    boss, anna = await seeded_db.admin(), await seeded_db.person()
    for by in (anna.login, (await seeded_db.key(boss.login)).api_key):
        with pytest.raises(errors.NotAllowed, match=r"anna is no administrator|the key 'default' lacks the scope \*"):
            await review(seeded_db, by)
