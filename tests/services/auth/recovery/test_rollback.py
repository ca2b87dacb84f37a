"""How auth notices that its database is older than before, and how it reacts."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest

from services.auth.sessions.session_store import SessionStore, StoredLoginLink
from services.auth.settings import AuthSettings
from shared import errors
from shared.api import accounts, audit, auth
from shared.identity import node_keys
from shared.recovery import rollback
from shared.recovery.log_place import AcceptedGap
from shared.recovery.recovery_lines import LogEnd
from shared.recovery.recovery_store import DatabasePlace
from shared.recovery.rollback import RecoveryStart, RecoveryState
from shared.stores.cache import Cache
from tests.servers import PostgresServer
from tests.services.auth.recovery.restoring import RestorableAuth
from tests.services.auth.surroundings import Surroundings

PLACE = DatabasePlace(system="7", timeline=1, lsn=100, head=LogEnd(5, "aa"), restore=None, is_restored=False)
STATE = RecoveryState(system="7", timeline=1, lsn=100, number=5)


@pytest.mark.parametrize(
    ("state", "log_number", "why"),
    [
        (None, 5, None),
        (STATE, 0, None),
        (STATE, 5, None),
        (None, 6, "the recovery log has 6 lines, and the database 5"),
        (msgspec.structs.replace(STATE, number=6), 0, "the recovery log had 6 lines, and the database has 5"),
        (msgspec.structs.replace(STATE, system="8"), 5, "it is another database cluster"),
        (msgspec.structs.replace(STATE, lsn=101), 5, "its write-ahead log is behind"),
        # After a failover, positions on the two timelines can't be compared.
        (msgspec.structs.replace(STATE, lsn=101, timeline=2), 5, None),
    ],
)
def test_a_rollback_is_found(state: RecoveryState | None, log_number: int, why: str | None) -> None:
    assert rollback.find_rollback(state, PLACE, log_number) == why


@pytest.fixture
def stored(ca_settings: AuthSettings, postgres: PostgresServer, tmp_path: Path) -> RestorableAuth:
    return RestorableAuth(ca_settings, postgres, tmp_path)


@pytest.fixture
async def cache(settings: AuthSettings) -> AsyncIterator[Cache]:
    async with Cache.open(settings.redis_url) as opened:
        yield opened


async def lost_window(stored: RestorableAuth, more_rows: int = 0) -> auth.LoginSession:
    """Back up, log a user in, revoke a key, and put the backup in place. Returns the session."""
    async with stored.running() as world:
        _, key = await world.user_with_key()
    backup = await stored.copy_database()
    async with stored.running() as world:
        session, admin = await world.login(), await world.admin_token()
        for number in range(more_rows):
            await world.new_key(admin, f"n{number}")
        await world.administer(auth.revoke_api_key, auth.RevokeApiKey(str(key.key.id)))
    stored.settings = backup
    return session


async def restores(world: Surroundings) -> list[dict[str, str]]:
    rows = await world.administer(audit.list_audit, audit.ListAudit(action="database.restored"))
    return [row.act.details for row in rows.rows]


def is_restored(world: Surroundings) -> float | None:
    return world.metrics.registry.get_sample_value("ai_platform_database_restored")


async def test_every_session_and_token_ends_and_other_keys_stay(stored: RestorableAuth, cache: Cache) -> None:
    session = await lost_window(stored)
    sessions = SessionStore(cache, idle_seconds=60, longest_seconds=60)
    link = await sessions.create_link(StoredLoginLink(user_id=session.user.id, password_version=""))
    for key in ("other:session:1", "auth:failed_logins:x", "gateway:{limits}:x"):
        await cache.set(key, "kept", ttl_seconds=60)
    async with stored.running() as world:
        with pytest.raises(errors.NotAuthenticated, match="session"):
            await world.ask(auth.refresh_session, auth.RefreshSession(session.session_token))
        with pytest.raises(errors.NotAuthenticated, match="token"):
            await world.ask(accounts.list_sessions, accounts.ListSessions(), session.access_token)
        assert [await cache.get(key) for key in ("other:session:1", "auth:failed_logins:x", "gateway:{limits}:x")] == [b"kept"] * 3
        assert await sessions.find_link(link) is None
        await world.login()


async def test_it_is_in_the_audit_log_once_and_shown_for_a_week(stored: RestorableAuth) -> None:
    await lost_window(stored)
    async with stored.running() as world:
        (details,) = await restores(world)
        assert (details["log_lines_replayed"], details["why"]) == ("1", "the recovery log has 1 lines, and the database 0")
        # The rows of the login and of the revocation.
        assert int(details["lost_rows"]) >= 2
        assert is_restored(world) == 1
    async with stored.running(node_keys.new_seed()) as world:
        assert len(await restores(world)) == 1
        assert is_restored(world) == 1
    await stored.execute("UPDATE database_restores SET found_at = now() - interval '8 days'")
    async with stored.running() as world:
        assert (len(await restores(world)), is_restored(world)) == (1, 0)


async def test_lines_that_a_restore_did_without_are_in_the_audit_log_once(stored: RestorableAuth, monkeypatch: pytest.MonkeyPatch) -> None:
    """This also holds if nothing else shows the restore, and if auth is killed before it has handled it."""
    async with stored.running():
        pass
    gap = stored.log_dir / "auth.gap"
    gap.write_bytes(msgspec.json.encode(AcceptedGap(id=uuid4(), missing="auth 5 to 7, gateway 2 to 2")))
    with monkeypatch.context() as patch:
        patch.setattr(RecoveryStart, "finish", _die)
        with pytest.raises(errors.Unavailable, match="killed"):
            async with stored.running():
                pass
    for _ in range(2):
        async with stored.running() as world:
            (details,) = await restores(world)
            assert (details["missing_lines"], details["log_lines_replayed"]) == ("auth 5 to 7, gateway 2 to 2", "0")
            assert not gap.exists()
    # If the state in a backup is older than its database, the database seems to know a restore that another replica has handled.
    file = stored.log_dir / "recovery_state"
    state = msgspec.json.decode(file.read_bytes(), type=RecoveryState)
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(state, restore=None)))
    gap.write_bytes(msgspec.json.encode(AcceptedGap(id=uuid4(), missing="auth 9 to 9")))
    async with stored.running() as world:
        assert [details["missing_lines"] for details in await restores(world)] == ["auth 9 to 9", "auth 5 to 7, gateway 2 to 2"]


async def test_missing_lines_are_named_beside_why_the_restore_was_noticed(stored: RestorableAuth) -> None:
    await lost_window(stored)
    (stored.log_dir / "auth.gap").write_bytes(msgspec.json.encode(AcceptedGap(id=uuid4(), missing="auth 5 to 7")))
    async with stored.running() as world:
        (details,) = await restores(world)
    assert (details["missing_lines"], details["why"]) == ("auth 5 to 7", "the recovery log has 1 lines, and the database 0")


async def _die(*_: object) -> None:
    raise errors.Unavailable("killed", hint="")


async def test_the_revocation_list_is_newer_than_every_published_one(stored: RestorableAuth) -> None:
    await lost_window(stored)
    async with stored.running() as world:
        before = (world.trust.number, max(epoch for epoch, _ in world.trust.topics))
    # Restore the same backup again, while this node remembers what it has published.
    await stored.execute("UPDATE mesh_state SET number = 1, epoch = 1")
    await stored.execute('INSERT INTO database_restores (id, details) VALUES (gen_random_uuid(), \'{"why": "again"}\')')
    async with stored.running() as world:
        assert world.trust.number > before[0]
        assert max(epoch for epoch, _ in world.trust.topics) > before[1]


async def test_a_start_that_was_killed_halfway_is_continued(stored: RestorableAuth, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await lost_window(stored)
    with monkeypatch.context() as patch:

        async def die(*_: object) -> None:
            raise errors.Unavailable("Valkey does not answer", hint="")

        patch.setattr(Cache, "delete_matching", die)
        with pytest.raises(errors.Unavailable, match="Valkey"):
            async with stored.running():
                pass
    async with stored.running() as world:
        with pytest.raises(errors.NotAuthenticated, match="session"):
            await world.ask(auth.refresh_session, auth.RefreshSession(session.session_token))
        assert len(await restores(world)) == 1


async def test_a_lost_window_without_any_line_is_noticed_by_the_anchors(stored: RestorableAuth) -> None:
    async with stored.running() as world:
        await world.user_with_key()
    backup = await stored.copy_database()
    async with stored.running() as world:
        await world.new_key(await world.admin_token())
    (stored.log_dir / "recovery_state").unlink()
    stored.settings = backup
    async with stored.running() as world:
        (details,) = await restores(world)
        assert details["why"] == "an anchor of the audit log is ahead of the database"
    async with stored.running() as world:
        assert len(await restores(world)) == 1


async def test_another_cluster_is_noticed_by_its_identifier(stored: RestorableAuth) -> None:
    async with stored.running() as world:
        await world.user_with_key()
    file = stored.log_dir / "recovery_state"
    state = msgspec.json.decode(file.read_bytes(), type=RecoveryState)
    assert (state.restore, state.number, state.lsn > 0) == (None, 0, True)
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(state, system="1")))
    async with stored.running() as world:
        assert [details["why"] for details in await restores(world)] == ["it is another database cluster"]


async def test_an_audit_log_that_differs_from_its_anchor_stops_the_start(stored: RestorableAuth) -> None:
    await lost_window(stored)
    await stored.execute("ALTER TABLE audit_log DISABLE TRIGGER ALL")
    await stored.execute("UPDATE audit_log SET hash = sha256(hash)")
    await stored.execute("UPDATE audit_heads SET hash = sha256(hash)")
    with pytest.raises(errors.BadSettings, match="differs from its anchor"):
        async with stored.running():
            pass


async def test_a_second_restore_does_not_count_the_first_ones_lost_rows_again(stored: RestorableAuth) -> None:
    await lost_window(stored, more_rows=8)
    async with stored.running() as world:
        (details,) = await restores(world)
        assert int(details["lost_rows"]) > 8
        key = await world.new_key(await world.admin_token())
    backup = await stored.copy_database()
    async with stored.running() as world:
        await world.administer(auth.revoke_api_key, auth.RevokeApiKey(str(key.key.id)))
    stored.settings = backup
    async with stored.running() as world:
        newest, _ = await restores(world)
        assert 0 < int(newest["lost_rows"]) < 8


async def test_lost_rows_are_named_and_later_changes_are_found(stored: RestorableAuth) -> None:
    """This also holds after other rows got their numbers."""
    await lost_window(stored, more_rows=4)
    async with stored.running() as world:
        admin = await world.admin_token()
        for number in range(12):
            await world.new_key(admin, f"again {number}")
    async with stored.running() as world:
        report = await world.administer(audit.verify_audit, audit.VerifyAudit())
        assert report.is_whole, report
        lost = [state.lost for state in report.chains if state.lost]
        assert lost
        assert all(re.fullmatch(r"rows \d+ to \d+ were lost by the restore of 20.*UTC", text) for text in lost)
    # Anchors from after the restore cover these rows, so changes to them are not excused.
    await stored.execute("ALTER TABLE audit_log DISABLE TRIGGER ALL")
    await stored.execute("UPDATE audit_log SET hash = sha256(hash)")
    await stored.execute("UPDATE audit_heads SET hash = sha256(hash)")
    async with stored.running() as world:
        report = await world.administer(audit.verify_audit, audit.VerifyAudit())
        assert [state.chain for state in report.chains if state.first_bad is not None], report


async def test_a_state_that_cannot_be_read_is_named(stored: RestorableAuth) -> None:
    async with stored.running():
        pass
    (stored.log_dir / "recovery_state").write_bytes(b"{")
    with pytest.raises(errors.BadSettings, match="recovery_state cannot be read"):
        async with stored.running():
            pass


async def test_replicas_share_what_one_of_them_has_handled(stored: RestorableAuth) -> None:
    """Each replica has its own folder. The second one adopts the restore."""
    await lost_window(stored)
    other = stored.log_dir.with_name("other")
    other.mkdir(mode=0o700)
    for file in stored.log_dir.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    async with stored.running() as world:
        assert len(await restores(world)) == 1
    stored.settings = msgspec.structs.replace(stored.settings, recovery_log_dir=other)
    async with stored.running() as world:
        assert len(await restores(world)) == 1
    state = msgspec.json.decode((other / "recovery_state").read_bytes(), type=RecoveryState)
    assert isinstance(state.restore, UUID)
    assert state.restored_at is not None
