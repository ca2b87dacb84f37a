"""The file of the recovery log: written before an answer, caught up after every fault, and never a reason to refuse a revocation."""

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from services.auth.settings import AuthSettings
from shared import errors
from shared.api import auth, recovery
from shared.identity import node_keys
from shared.recovery import recovery_log
from shared.recovery.recovery_lines import RecoveryLine
from shared.rpc import bodies
from shared.stores import signed_lines
from shared.types import Peer, Role
from tests.servers import PostgresServer
from tests.services.auth.recovery.restoring import RestorableAuth
from tests.services.auth.surroundings import CLIENT, Surroundings, call


@pytest.fixture(autouse=True)
def _patient() -> Iterator[None]:
    """Allow more time for a query and a write, because the machine may be loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recovery_log, "WAIT_SECONDS", 30.0)
        yield


@pytest.fixture
def stored(ca_settings: AuthSettings, postgres: PostgresServer, tmp_path: Path) -> RestorableAuth:
    return RestorableAuth(ca_settings, postgres, tmp_path)


def lines_in(file: Path) -> list[RecoveryLine]:
    return [msgspec.json.decode(line, type=RecoveryLine) for line in file.read_bytes().splitlines()]


async def revoke_one(world: Surroundings) -> auth.ApiKey:
    created = await world.new_key(await world.admin_token())
    return await world.administer(auth.revoke_api_key, auth.RevokeApiKey(str(created.key.id)))


def behind(world: Surroundings) -> float | None:
    return world.metrics.registry.get_sample_value("ai_platform_recovery_log_behind_seconds")


def refuse(path: Path, lines: bytes) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


async def test_the_answer_comes_after_the_file(stored: RestorableAuth) -> None:
    async with stored.running() as world:
        revoked = await revoke_one(world)
        assert revoked.logged
        (line,) = lines_in(stored.file)
    assert (line.number, line.kind, line.subject, line.details) == (1, "key.revoked", str(revoked.id), "{}")
    assert stored.file.stat().st_mode & 0o777 == 0o600
    assert stored.log_dir.stat().st_mode & 0o777 == 0o700


async def test_a_full_disk_refuses_nothing_and_is_caught_up(stored: RestorableAuth, monkeypatch: pytest.MonkeyPatch) -> None:
    really = signed_lines.append

    def torn(path: Path, lines: bytes) -> None:
        really(path, lines[: len(lines) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    async with stored.running() as world:
        with monkeypatch.context() as patch:
            patch.setattr(signed_lines, "append", torn)
            revoked = await revoke_one(world)
            assert (revoked.is_active, revoked.logged) == (False, False)
            # A call that restricts nothing does not wait.
            await world.new_key(await world.admin_token(), "another")
        assert (await revoke_one(world)).logged
    async with stored.running() as world:
        assert world.service._opened.recovery.log.end.number == 2
        assert (await revoke_one(world)).logged


async def test_an_unwritable_folder_is_told_and_measured(stored: RestorableAuth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signed_lines, "append", refuse)
    async with stored.running() as world:
        log = world.service._opened.recovery.log
        assert not (await revoke_one(world)).logged
        log._clock = lambda: 1e9
        measuring = asyncio.create_task(log._measure())
        await asyncio.sleep(0)
        assert (behind(world) or 0) > 60
        monkeypatch.undo()
        assert (await revoke_one(world)).logged
        measuring.cancel()
        measuring = asyncio.create_task(log._measure())
        await asyncio.sleep(0)
        assert behind(world) == 0
        measuring.cancel()
    assert [line.number for line in lines_in(stored.file)] == [1, 2]


async def test_a_real_call_is_answered_after_the_file_or_says_so(stored: RestorableAuth, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call goes through the dispatcher, as over a link."""

    async def revoke(world: Surroundings) -> auth.ApiKey:
        created = await world.new_key(await world.admin_token())
        handler = world.dispatcher.find(auth.revoke_api_key.name, CLIENT)
        request = auth.RevokeApiKey(str(created.key.id))
        return bodies.decoder(auth.ApiKey)(await world.dispatcher.answer(handler, request, call(await world.admin_token())))

    async with stored.running() as world:
        assert (await revoke(world)).logged
        assert len(lines_in(stored.file)) == 1
        monkeypatch.setattr(signed_lines, "append", refuse)
        revoked = await revoke(world)
        assert (revoked.is_active, revoked.logged) == (False, False)


async def test_a_disk_that_hangs_delays_an_answer_by_a_limited_time(stored: RestorableAuth, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = asyncio.Event()
    loop = asyncio.get_running_loop()
    really = signed_lines.append

    def hang(path: Path, lines: bytes) -> None:
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
        really(path, lines)

    monkeypatch.setattr(recovery_log, "WAIT_SECONDS", 0.05)
    async with stored.running() as world:
        monkeypatch.setattr(signed_lines, "append", hang)
        assert not (await revoke_one(world)).logged
        go_on.set()
        monkeypatch.undo()
        assert (await revoke_one(world)).logged


async def test_a_line_that_a_kill_kept_from_the_file_is_copied_by_the_next_start(stored: RestorableAuth) -> None:
    async with stored.running() as world:
        await revoke_one(world)
    stored.file.write_bytes(b"")
    await stored.execute("UPDATE users SET is_active = false WHERE role <> 'admin'")
    async with stored.running() as world:
        assert await world.service._opened.recovery.log.is_written()
        assert [line.number for line in lines_in(stored.file)] == [1]
        assert await stored.execute("SELECT 1 FROM database_restores") == []


async def test_each_replica_has_the_lines_of_all(stored: RestorableAuth) -> None:
    seed = node_keys.new_seed()
    async with stored.running() as first, stored.running(seed) as second:
        for _ in range(3):
            await asyncio.gather(revoke_one(first), revoke_one(second))
        for world in (first, second):
            assert await world.service._opened.recovery.log.is_written()
    files = sorted(stored.log_dir.glob("auth-*.jsonl"))
    assert len(files) == 2
    hashes = [[line.hash for line in lines_in(file)] for file in files]
    assert (hashes[0], len(hashes[0])) == (hashes[1], 6)


async def test_a_replica_without_a_file_gets_the_whole_log(stored: RestorableAuth) -> None:
    async with stored.running() as world:
        await revoke_one(world)
    async with stored.running(node_keys.new_seed()) as world:
        assert await world.service._opened.recovery.log.is_written()
    assert [[line.number for line in lines_in(file)] for file in stored.log_dir.glob("auth-*.jsonl")] == [[1], [1]]


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda whole: whole[0] + whole[2], 2),
        (lambda whole: whole[0] + whole[1].replace(b"key.revoked", b"key.revokee") + whole[2], 2),
        (lambda whole: whole[1] + whole[2], 1),
    ],
    ids=["a missing line", "a changed line", "a missing first line"],
)
async def test_a_damaged_file_is_refused_and_named(stored: RestorableAuth, damage: "object", line: int) -> None:
    assert callable(damage)
    async with stored.running() as world:
        for _ in range(3):
            await revoke_one(world)
    stored.file.write_bytes(damage(stored.file.read_bytes().splitlines(keepends=True)))
    with pytest.raises(errors.BadSettings, match=rf"{stored.file.name} is damaged: line {line}: "):
        async with stored.running():
            pass


async def test_a_torn_last_line_is_dropped_and_written_again(stored: RestorableAuth) -> None:
    async with stored.running() as world:
        for _ in range(2):
            await revoke_one(world)
    whole = stored.file.read_bytes()
    os.truncate(stored.file, len(whole) - 30)
    async with stored.running() as world:
        assert await world.service._opened.recovery.log.is_written()
        await revoke_one(world)
    async with stored.running() as world:
        assert world.service._opened.recovery.log.end.number == 3


async def test_a_log_of_another_database_is_refused(stored: RestorableAuth) -> None:
    async with stored.running() as world:
        await revoke_one(world)
    backup = await stored.copy_database()
    async with stored.running() as world:
        await revoke_one(world)
    file, text = stored.file, stored.file.read_bytes()
    file.unlink()
    stored.settings = backup
    async with stored.running() as world:
        await revoke_one(world)
    file.write_bytes(text)
    with pytest.raises(errors.BadSettings, match="number 2 differs from the database"):
        async with stored.running():
            pass


@pytest.mark.parametrize("change", ["UPDATE recovery_log SET hash = sha256(hash)", "DELETE FROM recovery_log"])
async def test_auth_stops_if_its_database_is_replaced_while_it_runs(stored: RestorableAuth, change: str) -> None:
    state = stored.log_dir / "recovery_state"
    with pytest.raises(ExceptionGroup, match="TaskGroup") as group:
        async with stored.running() as world:
            await revoke_one(world)
            await world.service._opened.recovery.start.write_state()
            before = state.read_bytes()
            await stored.execute("ALTER TABLE recovery_log DISABLE TRIGGER ALL")
            await stored.execute(change)
            with pytest.raises(errors.Internal, match="replaced by another one"):
                await world.service._opened.recovery.start.write_state()
    assert isinstance(errors.first_of(group.value), errors.Internal)
    # The state is unchanged, so that the next start notices the replacement, too.
    assert state.read_bytes() == before


async def test_without_a_folder_nothing_waits(stored: RestorableAuth) -> None:
    stored.settings = msgspec.structs.replace(stored.settings, recovery_log_dir=None)
    async with stored.running() as world:
        assert (await revoke_one(world)).logged
    assert not stored.log_dir.exists()


async def test_an_unknown_kind_asks_for_the_newer_version(stored: RestorableAuth) -> None:
    async with stored.running() as world:
        await revoke_one(world)
    backup = await stored.copy_database()
    await stored.execute("SELECT add_recovery_line('key.frozen', 'x')")
    async with stored.running():
        pass
    stored.settings = backup
    with pytest.raises(errors.BadSettings, match=r"'key\.frozen', which this version does not know"):
        async with stored.running():
            pass


async def test_only_the_backup_agent_follows_the_log(stored: RestorableAuth) -> None:
    sent: asyncio.Queue[recovery.RecoveryLines] = asyncio.Queue()

    class Sink:
        async def send(self, item: recovery.RecoveryLines) -> None:
            sent.put_nowait(item)

    async with stored.running() as world:
        await revoke_one(world)
        agent = Peer(Role.BACKUP, CLIENT.node)
        with pytest.raises(errors.WrongRole, match=r"a client may not call auth\.followRecoveryLog"):
            world.dispatcher.find(recovery.follow_auth_log.name, CLIENT)
        handler = world.dispatcher.find(recovery.follow_auth_log.name, agent)
        following = asyncio.ensure_future(handler.function(recovery.FollowRecoveryLog(), Sink()))
        first = await asyncio.wait_for(sent.get(), 10)
        await revoke_one(world)
        second = await asyncio.wait_for(sent.get(), 10)
        following.cancel()
        await asyncio.wait({following})
        assert stored.file.read_bytes() == first.lines + second.lines
