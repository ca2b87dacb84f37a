"""After an older copy replaces the gateway's database, credits, refunds and policies are as before; nothing is billed twice."""

import asyncio
import errno
import json
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import msgspec
import pytest

from services.gateway.billing.journal import Journal, held_journal
from services.gateway.billing.reservations import NO_PLAN
from services.gateway.billing.usage_recorder import UsageRecorder
from services.gateway.idempotency import cache_keys, stored_items
from services.gateway.recovery import kinds
from shared import errors
from shared.api.method import Nothing
from shared.api.recovery import RecoveryLines
from shared.config_documents import (
    GuardAction,
    GuardDocument,
    GuardKind,
    GuardPattern,
    Machines,
    ModerationRule,
    PolicyDocument,
    PriceCeiling,
)
from shared.recovery import recovery_log
from shared.recovery.recovery_lines import RecoveryLine
from shared.recovery.replay import Replay
from shared.rpc import StreamCall
from shared.rpc.audit_reporting import AuditReporting
from shared.stores import signed_lines
from shared.types import MicroCredits, TenantId, UserId
from tests.servers import PostgresServer
from tests.services.gateway.billing.test_ledger_store import CREDIT, new_owner, new_request, row
from tests.services.gateway.fakes import FakeRpc
from tests.services.gateway.recovery.restoring import RestorableGateway, RunningGateway

OWNER = TenantId(new_owner())
TEAM = f"organization:{OWNER}"


@pytest.fixture(autouse=True)
def _patient() -> Iterator[None]:
    """A machine under load may need longer for a query and a write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recovery_log, "WAIT_SECONDS", 30.0)
        yield


@pytest.fixture
def stored(plain_url: str, valkey_url: str, postgres: PostgresServer, tmp_path: Path) -> RestorableGateway:
    """A gateway with a role that row-level security applies to."""
    return RestorableGateway(plain_url, valkey_url, postgres, tmp_path)


async def top_up(gateway: RunningGateway, owner: UserId, micro: int) -> None:
    assert await gateway.books.ledger.top_up(new_request(), owner, MicroCredits(micro), "a note about ann", CREDIT)
    assert await gateway.recovery.log.is_written()


async def restores(gateway: RunningGateway) -> list[dict[str, object]]:
    connection = await asyncpg.connect(gateway.books.url, server_settings={"search_path": "gateway"})
    try:
        return [json.loads(row["details"]) for row in await connection.fetch("SELECT details FROM database_restores ORDER BY found_at")]
    finally:
        await connection.close()


def lines_in(file: Path) -> list[RecoveryLine]:
    return [msgspec.json.decode(line, type=RecoveryLine) for line in file.read_bytes().splitlines()]


async def test_paid_credits_come_back_once_and_the_books_add_up(stored: RestorableGateway) -> None:
    ann = new_owner()
    async with stored.running() as gateway:
        await top_up(gateway, ann, 500)
    backup = await stored.restore_point()
    async with stored.running() as gateway:
        await top_up(gateway, ann, 700)
        await top_up(gateway, ann, -100)
        assert await gateway.books.account(ann) == (1100, 0)
    assert "ann" not in stored.file.read_text()
    stored.url = backup
    for number in (1, 1, 2):
        async with stored.running(number) as gateway:
            assert await gateway.books.account(ann) == (1100, 0)
            assert (await gateway.books.ledger.verify(grace_seconds=60, full=True)).findings == ()
            assert [found["lines"] for found in await restores(gateway)] == [2]
            await top_up(gateway, ann, 1)
            await top_up(gateway, ann, -1)


async def test_replaying_twice_changes_nothing(stored: RestorableGateway) -> None:
    """The same lines are replayed on a database that already has everything."""
    ann, charged = new_owner(), new_request()
    tight = PolicyDocument(machines=Machines.OWN)
    async with stored.running() as gateway:
        await gateway.books.reserve(ann, request=charged)
        await gateway.books.settle(ann, (charged, 300))
        await top_up(gateway, ann, 700)
        await gateway.books.ledger.revert(charged, "")
        await gateway.set_policy("mesh", PolicyDocument(machines=Machines.GROUP))
        await gateway.set_policy("mesh", tight)
        assert await gateway.recovery.log.is_written()
        account, revision = await gateway.books.account(ann), gateway.live.config.revision
        replay = Replay(gateway.recovery._rows, kinds.KINDS)
        async with gateway.recovery._rows.replaying() as (transaction, _):
            for line in lines_in(stored.file):
                await replay._apply(transaction, line.kind, [line])
        await gateway.live.reload()
        assert (await gateway.books.account(ann), gateway.live.config.revision) == (account, revision)
        assert gateway.policy("mesh") == tight


async def test_without_the_log_they_would_be_lost(stored: RestorableGateway) -> None:
    stored.log_dir, ann = None, new_owner()
    async with stored.running():
        pass
    backup = await stored.restore_point()
    async with stored.running() as gateway:
        await gateway.books.ledger.top_up(new_request(), ann, MicroCredits(500), "", NO_PLAN)
    stored.url = backup
    async with stored.running() as gateway:
        assert await gateway.books.account(ann) == (0, 0)


async def test_refunds_stand_whatever_the_restored_ledger_knows_of_the_request(stored: RestorableGateway) -> None:
    ann, charged, running, lost = new_owner(), new_request(), new_request(), new_request()
    async with stored.running() as gateway:
        for request in (charged, running):
            await gateway.books.reserve(ann, request=request)
        await gateway.books.settle(ann, (charged, 300))
    backup = await stored.restore_point()
    async with stored.running() as gateway:
        await gateway.books.reserve(ann, request=lost)
        await gateway.books.settle(ann, (running, 200), (lost, 100))
        for request in (charged, running, lost):
            assert await gateway.books.ledger.revert(request, "sorry, ann") == ann
        assert await gateway.recovery.log.is_written()
        assert [line.kind for line in lines_in(stored.file)][-3:] == ["credits.reverted"] * 3
    stored.url = backup
    for _ in range(2):
        async with stored.running() as gateway:
            # Rows that are left in a gateway's journal aren't billed.
            await gateway.books.settle(ann, (running, 200), (lost, 100))
            assert await gateway.books.account(ann) == (0, 0)
            assert (await gateway.books.ledger.verify(grace_seconds=60, full=True)).findings == ()


async def test_requests_of_the_journal_that_the_database_does_not_know_are_reported_and_cost_nothing(
    stored: RestorableGateway, tmp_path: Path
) -> None:
    ann, known, unknown = new_owner(), new_request(), new_request()
    path = tmp_path / "gateway.journal"
    async with stored.running() as gateway:
        await gateway.books.reserve(ann, request=known)
    backup = await stored.restore_point()
    async with stored.running() as gateway:
        await gateway.books.reserve(ann, request=unknown)
    Journal(path).append([row(ann, known, 300), row(ann, unknown, 200), row(ann, new_request(), 0)])
    stored.url = backup
    for _ in range(2):
        async with stored.running() as gateway:
            metrics, requests = gateway.node.metrics, gateway.books.requests
            async with held_journal(path, gateway.node.id, requests.find_unknown) as journal:
                async with UsageRecorder(requests, journal, metrics.usage_queue_rows, metrics.settle_failures).running():
                    pass  # the rows are written at the end
                assert journal.read() == []
            assert await gateway.books.account(ann) == (-300, 0)
            # The unknown request is in the request log, without a cost.
            assert [found[3] for found in await gateway.books.log(ann)] == [0, 0, 300]
            (line,) = path.with_name("gateway.journal.unknown.jsonl").read_bytes().splitlines()
            assert (json.loads(line)["id"], json.loads(line)["not_billed_micro"]) == (str(unknown), 200)


async def test_policies_are_as_they_were_last_set(stored: RestorableGateway) -> None:
    loose, tight = PolicyDocument(machines=Machines.GROUP), PolicyDocument(machines=Machines.OWN, models=("small-*",))
    async with stored.running() as gateway:
        await gateway.set_policy("mesh", loose)
        await gateway.set_policy("default", tight)
    backup = await stored.restore_point()
    async with stored.running() as gateway:
        await gateway.set_policy("mesh", PolicyDocument(machines=Machines.INTERNAL))
        await gateway.set_policy("mesh", tight)
        await gateway.set_policy(TEAM, tight, OWNER)
        await gateway.set_policy("default", None)
        assert await gateway.recovery.log.is_written()
    stored.url = backup
    for _ in range(2):
        async with stored.running() as gateway:
            assert (gateway.policy("mesh"), gateway.policy(TEAM), gateway.policy("default")) == (tight, tight, None)
            assert (gateway.tenant_of("mesh"), gateway.tenant_of(TEAM)) == (None, OWNER)
            await gateway.set_policy("key:" + TEAM.removeprefix("organization:"), tight)


async def test_an_imported_environment_is_replayed_over_an_edited_policy(stored: RestorableGateway) -> None:
    """Replays have no author, as what a gateway of release 0.3 takes from its environment; only that is refused."""
    loose, tight = PolicyDocument(machines=Machines.GROUP), PolicyDocument(machines=Machines.OWN)
    async with stored.running() as gateway:
        await gateway.set_policy("mesh", loose)
    backup = await stored.restore_point()
    async with stored.running() as gateway:
        await gateway.set_policy("mesh", tight, origin="environment", author=UserId(OWNER))
        assert await gateway.recovery.log.is_written()
    stored.url = backup
    async with stored.running():
        connection = await asyncpg.connect(backup, server_settings={"search_path": "gateway"})
        replayed = "SELECT body ->> 'machines' FROM config_versions WHERE note = 'recovery log' AND name = 'mesh'"
        assert await connection.fetchval(replayed) == "own"
        await connection.close()


def guarded(pattern: str, allowed: str, action: GuardAction = GuardAction.REFUSE) -> PolicyDocument:
    return PolicyDocument(
        guard=GuardDocument(
            prompt={GuardKind.OWN: action}, patterns=(GuardPattern(name="own", pattern=pattern, max_length=20),), allow=(allowed,)
        )
    )


async def test_texts_of_a_policy_are_not_in_the_log_and_what_permits_is_dropped(stored: RestorableGateway) -> None:
    async with stored.running() as gateway:
        await gateway.set_policy("mesh", guarded("secret-project", "ann@example.org", GuardAction.REPORT))
        await gateway.set_policy("default", guarded("secret-project", "ann@example.org"))
    backup = await stored.restore_point()
    async with stored.running() as gateway:
        await gateway.set_policy("mesh", guarded("secret-project", "ann@example.org"))
        await gateway.set_policy("default", guarded("secret-plan", "bob@example.org"))
        await gateway.set_policy(TEAM, guarded("secret-plan", "bob@example.org"))
        assert await gateway.recovery.log.is_written()
    text = stored.file.read_text()
    assert not [word for word in ("secret-", "example.org", "why") if word in text]
    stored.url = backup
    async with stored.running() as gateway:
        # The backup has the same texts for mesh, others for default, and none for the team.
        assert gateway.policy("mesh") == guarded("secret-project", "ann@example.org")
        default, team = gateway.policy("default"), gateway.policy(TEAM)
        assert default is not None
        assert default.guard == msgspec.structs.replace(guarded("secret-project", "").guard, allow=())  # type: ignore[type-var]
        assert team == PolicyDocument(guard=GuardDocument(prompt={GuardKind.OWN: GuardAction.REFUSE}))


def test_every_field_of_a_policy_is_decided() -> None:
    """A new field with people's texts must be kept out of the log, by migration 0025 and ``POLICY_TEXTS``."""
    fields = [
        f"{prefix}{field}"
        for prefix, document in (
            ("", PolicyDocument),
            ("guard.", GuardDocument),
            ("guard.moderation.", ModerationRule),
            ("max_price.", PriceCeiling),
        )
        for field in document.__struct_fields__
    ]
    without_texts = {
        "external", "machines", "models", "targets", "direct_models", "max_price", "show_targets", "store_items", "stored_prompts", "flex",
        "guard", "guard.prompt", "guard.answer",
        "guard.countries", "guard.internal_ips", "guard.moderation", "guard.moderation.route", "guard.moderation.prompt",
        "guard.moderation.answer", "guard.moderation.categories", "guard.moderation.threshold", "guard.moderation.on_error",
        "max_price.input", "max_price.output",
    }  # fmt: skip
    assert set(fields) == without_texts | kinds.POLICY_TEXTS


def test_every_kind_is_covered_by_an_act() -> None:
    assert {kind for covered in kinds.RESTRICTING.values() for kind in covered} == set(kinds.KINDS)


async def test_cached_answers_go_and_rate_counters_stay(stored: RestorableGateway) -> None:
    async with stored.running():
        pass
    backup = await stored.restore_point()
    async with stored.running() as gateway:
        await top_up(gateway, new_owner(), 5)
        for key in (cache_keys.PREFIX + "x", stored_items.PREFIX + "x", "gateway:{limits}:x", "other:x"):
            await gateway.cache.set(key, "kept", ttl_seconds=60)
    stored.url = backup
    async with stored.running() as gateway:
        keys = (cache_keys.PREFIX + "x", stored_items.PREFIX + "x", "gateway:{limits}:x", "other:x")
        assert [await gateway.cache.get(key) for key in keys] == [None, None, b"kept", b"kept"]
        reporting = AuditReporting(FakeRpc())
        gateway.recovery.report(reporting)
        ((action, *_),) = reporting._pending
        (act,) = reporting._pending.values()
        assert (action, act.details["log_lines_replayed"], act.details["service"]) == ("database.restored", "1", "gateway")
        assert gateway.node.metrics.registry.get_sample_value("ai_platform_database_restored") == 1


async def test_replicas_that_start_at_once_replay_once(stored: RestorableGateway) -> None:
    ann = new_owner()
    async with stored.running():
        pass
    backup = await stored.restore_point()
    async with stored.running() as gateway:
        await top_up(gateway, ann, 500)
    stored.url = backup

    async def start(number: int) -> tuple[tuple[int, int, int], int]:
        async with stored.running(number) as gateway:
            assert await gateway.recovery.log.is_written()
            return await gateway.books.account(ann), len(await restores(gateway))

    assert await asyncio.gather(*(start(number) for number in (1, 2, 3))) == [((500, 0), 1)] * 3
    assert stored.log_dir is not None
    copies = [lines_in(file) for file in stored.log_dir.glob("gateway-*.jsonl")]
    # Each file begins with the initial policies of the environment.
    assert (len(copies), len({line.hash for lines in copies for line in lines})) == (3, len(copies[0]))


@pytest.mark.parametrize("damage", ["a missing line", "a changed line"])
async def test_a_damaged_file_is_refused_and_named(stored: RestorableGateway, damage: str) -> None:
    async with stored.running() as gateway:
        for _ in range(3):
            await top_up(gateway, new_owner(), 500)
    whole = stored.file.read_bytes().splitlines(keepends=True)
    broken = (
        whole[:1] + whole[2:]
        if damage == "a missing line"
        else [whole[0], whole[1].replace(b":", b": ", 1).replace(b"policy", b"polizy"), *whole[2:]]
    )
    stored.file.write_bytes(b"".join(broken))
    with pytest.raises(errors.BadSettings, match=rf"{stored.file.name} is damaged: line 2: "):
        async with stored.running():
            pass


async def test_a_full_disk_refuses_no_transfer_and_says_so(stored: RestorableGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, lines: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with stored.running() as gateway:
        note = recovery_log.noting(kinds.RESTRICTING)
        with monkeypatch.context() as patch:
            patch.setattr(signed_lines, "append", full)
            await gateway.books.ledger.top_up(new_request(), new_owner(), MicroCredits(5), "", NO_PLAN)
            note("price.set")
            assert (await gateway.recovery.log.finish(Nothing())).logged
            note("credits.move")
            assert not (await gateway.recovery.log.finish(Nothing())).logged
        note("policy.set")
        assert (await gateway.recovery.log.finish(Nothing())).logged
    assert lines_in(stored.file)[-1].kind == "credits.moved"


async def test_a_gateway_stops_if_its_database_is_replaced_while_it_runs(stored: RestorableGateway) -> None:
    with pytest.raises(errors.Internal, match="the database was replaced"):
        # The last thing that a gateway does is to write the state.
        async with stored.running() as gateway:
            await top_up(gateway, new_owner(), 5)
            await stored.execute("ALTER TABLE recovery_log DISABLE TRIGGER ALL; DELETE FROM recovery_log")


class _Stream:
    """The part of a StreamCall that the follower uses."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[RecoveryLines] = asyncio.Queue()

    async def send(self, item: RecoveryLines) -> None:
        self.sent.put_nowait(item)


async def test_a_follower_gets_old_and_new_lines_at_once_until_the_drain(stored: RestorableGateway) -> None:
    async with stored.running() as gateway:
        await top_up(gateway, new_owner(), 5)
        number = gateway.recovery.log.end.number
        stream = _Stream()
        call: StreamCall[RecoveryLines] = stream  # type: ignore[assignment]
        following = asyncio.create_task(gateway.recovery.log.stream(number - 1, call, gateway.node.drain_started))
        first = await asyncio.wait_for(stream.sent.get(), 10)
        await top_up(gateway, new_owner(), 6)
        second = await asyncio.wait_for(stream.sent.get(), 10)
        assert [(item.first, item.last) for item in (first, second)] == [(number, number), (number + 1, number + 1)]
        assert stored.file.read_bytes().endswith(first.lines + second.lines)
        gateway.node.drain_started.set()
        await asyncio.wait_for(following, 10)


async def test_long_lines_are_sent_in_several_items(stored: RestorableGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stored.running() as gateway:
        for _ in range(5):
            await top_up(gateway, new_owner(), 5)
        text = stored.file.read_bytes()
        lines = text.splitlines(keepends=True)
        monkeypatch.setattr(recovery_log, "_ITEM_BYTES", len(lines[-1]) * 2 + 20)
        stream = _Stream()
        call: StreamCall[RecoveryLines] = stream  # type: ignore[assignment]
        following = asyncio.create_task(gateway.recovery.log.stream(0, call, gateway.node.drain_started))
        items: list[RecoveryLines] = []
        while not items or items[-1].last < len(lines):
            items.append(await asyncio.wait_for(stream.sent.get(), 10))
        assert b"".join(item.lines for item in items) == text
        assert [item.first for item in items] == [1, *(item.last + 1 for item in items[:-1])]
        assert len(items) >= 3
        following.cancel()
        await asyncio.wait({following})
