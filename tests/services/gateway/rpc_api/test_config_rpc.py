"""The configuration on a real PostgreSQL: two gateways, two administrators, history and rollback."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from services.gateway import store
from services.gateway.configuration import config_store
from services.gateway.configuration.config_store import ConfigStore
from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.rpc_api.config_rpc import ConfigRpc
from services.gateway.settings import GatewaySettings
from shared import config, errors
from shared.api import audit, business
from shared.api import configuration as api
from shared.api.method import Nothing
from shared.config_documents import ConfigKind, PlanDocument
from shared.protocol.directory import DirectoryEntry
from shared.rpc.audit_reporting import AuditReporting
from shared.stores import migrations
from shared.types import ModelName, Tier, UserId, UserRole
from tests.services.gateway.fakes import OWNER, FakeRpc, no_servers, rpc_call
from tests.services.gateway.test_settings import GIVEN

ADMIN = msgspec.structs.replace(OWNER, username="root", role=UserRole.ADMIN)
CALL = rpc_call(ADMIN)
ROUTE = "routes: {assistant: {targets: [{name: local, model: smollm2}]}}"


@dataclass
class Gateway:
    live: LiveConfiguration
    store: ConfigStore
    rpc: ConfigRpc
    acts: list[audit.AuditedAct]
    reporting: AuditReporting

    @property
    def aliases(self) -> dict[str, str]:
        return dict(self.live.config.names.aliases)

    async def apply(self, text: str, **more: Any) -> api.AppliedConfig:
        return await self.rpc.apply(api.ApplyConfig(text, **more), CALL)

    async def history(self, **more: Any) -> list[tuple[str, int, str, bool]]:
        versions = (await self.rpc.list_versions(api.ListConfigVersions(**more), CALL)).versions
        return [(f"{found.kind}/{found.name}", found.version, found.origin, found.is_current) for found in versions]


OpenGateway = Callable[..., Any]


@pytest.fixture
def opened(postgres_url: str) -> OpenGateway:
    @asynccontextmanager
    async def open_gateway(
        *, poll_seconds: float = 3600.0, watches: bool = True, gateways: Sequence[DirectoryEntry] = (), **variables: str
    ) -> AsyncIterator[Gateway]:
        settings = config.load(GatewaySettings, GIVEN | variables)
        acts: list[audit.AuditedAct] = []

        async def record(request: audit.RecordActs) -> Nothing:
            acts.extend(request.acts)
            return Nothing()

        async def names(request: business.NameUsers) -> business.UserNames:
            return business.UserNames({str(user): "root" for user in request.ids})

        fake = FakeRpc()
        fake.answers |= {audit.record_acts.name: record, business.name_users.name: names}
        async with store.opened(postgres_url) as database, asyncio.TaskGroup() as tasks:
            tables = ConfigStore(database)
            live = LiveConfiguration(tables, poll_seconds=poll_seconds)
            await live.start(settings)
            watching = tasks.create_task(live.watch()) if watches else None
            reporting = AuditReporting(fake)
            rpc = ConfigRpc(
                live, tables, settings, fake, reporting, no_servers(live, fake), lambda: [ModelName("smollm2")], lambda: gateways
            )
            yield Gateway(live, tables, rpc, acts, reporting)
            if watching is not None:
                watching.cancel()

    return open_gateway


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - another process makes the change
            await asyncio.sleep(0.01)


async def test_an_applied_file_is_used_at_every_gateway(opened: OpenGateway) -> None:
    async with opened() as one, opened() as two:
        before = one.live.config
        applied = await one.apply(f"{ROUTE}\nplans: {{free: {{included_tokens: 5}}}}\ndefault_model: assistant", note="first")
        assert [(str(change.kind), change.name, change.version) for change in applied.changes] == [
            ("route", "assistant", 1), ("plan", "free", 2), ("default_model", "default", 1)
        ]  # fmt: skip
        assert applied.changes[0].before is None
        assert applied.changes[0].after == "targets:\n  - name: local\n    model: smollm2\n"
        assert one.aliases == {"llama3": "smollm2", "assistant": "smollm2"}, "at once where it was applied"
        assert dict(before.names.aliases) == {"llama3": "smollm2"}, "running requests keep their snapshot"
        await until(lambda: two.live.config.revision == applied.revision)
        assert two.aliases == one.aliases
        assert two.live.config.limits.plans[Tier.FREE].included_tokens == 5
        assert two.live.config.names.default == "assistant"
        await one.reporting.send()
        assert [(act.action, act.actor, act.target, act.details) for act in one.acts] == [
            ("config.apply", ADMIN.user_id, "route assistant, plan free, default_model default", {"revision": str(applied.revision)})
        ]


async def test_a_lost_notification_costs_one_poll(opened: OpenGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_store, "_CHANGES", "nobody_notifies_this")
    async with opened(poll_seconds=0.05) as one, opened(watches=False) as two:
        await two.apply(ROUTE)
        await until(lambda: "assistant" in one.aliases)


async def test_the_same_file_again_changes_nothing(opened: OpenGateway) -> None:
    async with opened() as one:
        first = await one.apply(ROUTE)
        again = await one.apply(ROUTE)
        assert (again.revision, again.changes) == (first.revision, ())
        await one.reporting.send()
        assert len(one.acts) == 1
        exported = await one.rpc.export(api.ExportConfig(), CALL)
        assert (await one.apply(exported.text, prune=True)).changes == ()


async def test_a_dry_run_changes_nothing(opened: OpenGateway) -> None:
    async with opened() as one:
        history = await one.history()
        planned = await one.apply(f"{ROUTE}\ndefault_model: gone", dry_run=True)
        assert [(change.name, change.version) for change in planned.changes] == [("assistant", 0), ("default", 0)]
        assert planned.warnings == ("default model: no worker serves gone now, and no route has this name",)
        assert await one.history() == history
        assert one.aliases == {"llama3": "smollm2"}
        await one.reporting.send()
        assert one.acts == []


async def test_mistakes_change_nothing(opened: OpenGateway) -> None:
    async with opened() as one:
        history = await one.history()
        for text, mistake in (
            ("routes: {a: {targets: [{name: x, model: assistant}]}, assistant: {targets: [{name: x, model: m}]}}", "assistant is a route"),
            ("routes: {a: {targets: []}}", "line 1, routes.a.targets"),
        ):
            with pytest.raises(errors.BadRequest, match=mistake):
                await one.apply(f"{text}\nplans: {{free: {{included_tokens: 1}}}}")
        with pytest.raises(errors.BadRequest, match="send either text or documents"):
            await one.rpc.apply(api.ApplyConfig(), CALL)
        with pytest.raises(errors.BadRequest, match=f"larger than {api.MAX_FILE_BYTES} bytes"):
            await one.apply(f"# {'é' * (api.MAX_FILE_BYTES // 2)}")
        assert await one.history() == history


async def test_of_two_administrators_the_second_is_told_the_newer_revision(opened: OpenGateway) -> None:
    async with opened() as one, opened() as two:
        revision = one.live.config.revision
        outcomes = await asyncio.gather(
            one.apply("default_model: a", expected_revision=revision), two.apply("default_model: b", expected_revision=revision),
            return_exceptions=True,
        )  # fmt: skip
        (refusal,) = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert isinstance(refusal, errors.AlreadyExists)
        assert refusal.message == f"the configuration has changed: it is at revision {revision + 1}, not {revision}"


async def test_changes_at_once_are_all_made(opened: OpenGateway) -> None:
    async with opened() as one, opened() as two:
        texts = [f"routes: {{r{number}: {{targets: [{{name: x, model: m}}]}}}}" for number in range(10)]
        await asyncio.gather(*(gateway.apply(text) for text in texts for gateway in (one, two)))
        expected = {"llama3"} | {f"r{number}" for number in range(10)}
        await until(lambda: set(one.aliases) == set(two.aliases) == expected)
        assert [version for name, version, _, _ in await one.history() if name.startswith("route/r")] == [1] * 10


async def test_a_change_waits_for_the_one_before(opened: OpenGateway) -> None:
    async with opened() as one, opened() as two:
        async with one.store.lock():
            with pytest.raises(TimeoutError, match=r"^$"):
                async with asyncio.timeout(0.2), two.store.lock():
                    pass
        async with two.store.lock() as locked:
            assert locked.revision > 0


async def test_history_and_rollback(opened: OpenGateway) -> None:
    async with opened() as one:
        await one.apply(ROUTE)
        await one.apply(ROUTE.replace("smollm2", "other"), note="try the other")
        await one.apply("routes: {assistant: null}")
        assert "assistant" not in one.aliases
        rolled = await one.rpc.roll_back(api.RollbackConfig(ConfigKind.ROUTE, "assistant", 2), CALL)
        assert [(change.before, change.version) for change in rolled.changes] == [(None, 4)]
        assert one.aliases["assistant"] == "other"
        found = (await one.rpc.list_versions(api.ListConfigVersions(ConfigKind.ROUTE, "assistant", bodies=True), CALL)).versions
        assert [(one.version, one.origin, one.note, one.is_current, one.body is None, one.author) for one in found] == [
            (4, "rollback", "rollback to version 2", True, False, "root"), (3, "applied", "", False, True, "root"),
            (2, "applied", "try the other", False, False, "root"), (1, "applied", "", False, False, "root"),
        ]  # fmt: skip
        plan = (await one.rpc.list_versions(api.ListConfigVersions(ConfigKind.PLAN, "free", bodies=True), CALL)).versions[0]
        assert plan.body is not None
        assert plan.body.splitlines()[0] == "requests_per_hour: 100", "the order of the fields, not PostgreSQL's"
        assert [one.removes for one in found] == [False, True, False, False]
        listed = (await one.rpc.list_versions(api.ListConfigVersions(limit=1), CALL)).versions
        assert [(one.name, one.version, one.body) for one in listed] == [("assistant", 4, None)], "bodies only on request"
        assert await one.history(kind=ConfigKind.ROUTE, name="assistant", version=2) == [("route/assistant", 2, "applied", False)]
        await one.apply("routes: {llama3: null}")
        current = await one.history(kind=ConfigKind.ROUTE, only_current=True)
        assert current == [("route/assistant", 4, "rollback", True)], "without removed documents"
        with pytest.raises(errors.NotFound, match="there is no version 9 of route 'assistant'"):
            await one.rpc.roll_back(api.RollbackConfig(ConfigKind.ROUTE, "assistant", 9), CALL)


async def test_a_large_change_is_answered_without_its_texts(opened: OpenGateway) -> None:
    async with opened() as one:
        model = "m" * 200
        routes = "".join(f"  r{number}: {{targets: [{{name: x, model: {model}}}]}}\n" for number in range(499))
        await one.apply("routes:\n" + routes)
        applied = await one.apply("routes:\n" + routes.replace(model, "n" * 200))
        assert len(applied.changes) == 499
        assert len(msgspec.msgpack.encode(applied)) < 512 * 1024
        with pytest.raises(errors.BadRequest, match="routes: there would be 501; the limit is 500"):
            await one.apply("routes: {more: {targets: [{name: x, model: m}]}}")
        assert len((await one.rpc.export(api.ExportConfig(), CALL)).text) < 1024 * 1024


async def test_prune_removes_what_the_file_does_not_name(opened: OpenGateway) -> None:
    async with opened(TIER_FREE="included_tokens=3") as one:
        await one.apply(ROUTE, prune=True)
        assert one.aliases == {"assistant": "smollm2"}
        assert one.live.config.limits.plans[Tier.FREE].included_tokens == 100_000, "the built-in default"
    async with opened(TIER_FREE="included_tokens=3") as one:
        assert one.aliases == {"assistant": "smollm2"}, "the environment does not bring back what was removed by hand"


async def test_the_environment_seeds_and_follows_until_somebody_edits(opened: OpenGateway) -> None:
    async with opened(MODEL_ALIASES="a=m") as one:
        revision = one.live.config.revision
    async with opened(MODEL_ALIASES="a=m") as one:
        assert one.live.config.revision == revision, "an unchanged environment writes nothing"
    async with opened(MODEL_ALIASES="b=m") as one:
        assert one.aliases == {"b": "m"}
        await one.apply("routes: {b: {targets: [{name: x, model: edited}]}}")
    async with opened(MODEL_ALIASES="b=m,c=m") as one:
        assert one.aliases == {"b": "edited", "c": "m"}
        exported = await one.rpc.export(api.ExportConfig(), CALL)
        assert exported.ignored_settings == ("MODEL_ALIASES is ignored for route b, which was edited (version 2)",)
        imported = await one.rpc.import_environment(api.ImportEnvironment(), CALL)
        assert [change.name for change in imported.changes] == ["b"]
        assert one.aliases == {"b": "m", "c": "m"}
        assert (await one.rpc.export(api.ExportConfig(), CALL)).ignored_settings == ()


async def test_gateways_that_start_at_once_seed_once(opened: OpenGateway) -> None:
    async with asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(_revision_of(opened)) for _ in range(4)]
    assert {task.result() for task in started} == {1}


async def _revision_of(opened: OpenGateway) -> int:
    async with opened(watches=False) as gateway:
        return int(gateway.live.config.revision)


async def test_old_versions_are_deleted(opened: OpenGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_store, "MAX_VERSIONS", 3)
    async with opened() as one:
        for number in range(6):
            await one.apply(f"default_model: m{number}")
        assert [version for _, version, _, _ in await one.history(kind=ConfigKind.DEFAULT_MODEL)] == [6, 5, 4]
        assert one.live.config.names.default == "m5"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url, server_settings={"search_path": "gateway"})
    try:
        yield connection
    finally:
        await connection.close()


async def test_a_document_of_a_newer_release_is_left_out(opened: OpenGateway, postgres_url: str) -> None:
    async with opened() as one:
        await one.apply(ROUTE)
        async with connected(postgres_url) as database:
            await database.execute(
                """
                UPDATE config_revision SET revision = revision + 1;
                INSERT INTO config_versions (kind, name, version, revision, body, origin)
                SELECT kind, name, 2, (SELECT revision FROM config_revision), body, 'applied' FROM
                (VALUES ('route', 'assistant', '{"targets": [], "shadow": 1}'::jsonb), ('robot', 'r2', '{}')) AS new (kind, name, body);
                INSERT INTO config_current VALUES ('robot', 'r2', 2), ('route', 'assistant', 2)
                ON CONFLICT (kind, name) DO UPDATE SET version = 2;
                """
            )
        await one.live.reload()
        assert one.aliases["assistant"] == "smollm2", "the last version that this release can read"
        await one.apply("default_model: assistant")
        assert one.live.config.names.default == "assistant"


class PlanOf03(PlanDocument, frozen=True):
    """Without the fields that release 0.3 lacks, if they are not set."""

    credits: int | None = None


async def write_as_03(gateway: Gateway, *, origin: str, author: UserId | None) -> None:
    """Write the plans as a gateway of release 0.3 does, with another limit."""
    plan = PlanOf03(credits=100_000, requests_per_minute=7)
    async with gateway.store.lock() as locked:
        await locked.write({(ConfigKind.PLAN, tier): plan for tier in (Tier.FREE, Tier.PRO)}, origin=origin, author=author)
    await gateway.live.reload()


async def test_plans_of_release_03_are_read_without_their_credits(opened: OpenGateway) -> None:
    async with opened() as one:
        before = one.live.config
        await write_as_03(one, origin="applied", author=ADMIN.user_id)
        assert one.live.config.limits.plans[Tier.FREE].requests_per_minute == 7
        assert one.live.config.limits.plans[Tier.FREE].included_tokens == before.limits.plans[Tier.FREE].included_tokens
        assert one.live.config.limits.plans["pro@2"].requests_per_minute == 7
    async with opened() as one:
        assert one.live.config.revision == before.revision + 1, "what an administrator applied stays"
        await one.apply("plans: {free: {requests_per_minute: 8}}")
        await one.rpc.roll_back(api.RollbackConfig(ConfigKind.PLAN, Tier.FREE, 2), CALL)
        assert one.live.config.limits.plans[Tier.FREE].requests_per_minute == 7


async def test_plans_that_release_03_took_from_the_environment_stay(opened: OpenGateway, postgres_url: str) -> None:
    async with opened() as one:
        revision = one.live.config.revision
    async with connected(postgres_url) as database:
        await database.execute("""UPDATE config_versions SET body = body || '{"credits": 5}' WHERE kind = 'plan'""")
    async with opened() as one:
        assert one.live.config.revision == revision
    async with opened(TIER_FREE="requests_per_minute=7") as one:
        assert one.live.config.revision == revision + 1, "other settings replace them"
    async with connected(postgres_url) as database:
        known = migrations.read(Path(store.__file__).parent / "migrations")
        assert "0049_post_plans_of_03.sql" in await migrations.run(database, "gateway", known, post=True)
        assert await database.fetchval("SELECT count(*) FROM config_versions WHERE body ? 'credits'") == 0


@pytest.mark.parametrize(
    ("settings", "applied", "tokens"),
    [
        pytest.param({}, "", 1_000_000, id="as it is by default"),
        pytest.param({"TIER_PRO": "included_tokens=5"}, "", 5, id="from the environment"),
        pytest.param({}, "plans: {pro: {included_tokens: 6, fee: 10}}", 6, id="edited by hand"),
    ],
)
async def test_gateways_of_release_03_write_over_no_plan(opened: OpenGateway, settings: dict[str, str], applied: str, tokens: int) -> None:
    """One that starts beside a newer one during a rolling upgrade takes plans that it can't read for missing ones."""
    async with opened(**settings) as one:
        if applied:
            await one.apply(applied)
        plans = one.live.config.limits.plans
        assert plans[Tier.PRO].included_tokens == tokens
        await write_as_03(one, origin="environment", author=None)
        assert {tier: one.live.config.limits.plans[tier] for tier in Tier} == {tier: plans[tier] for tier in Tier}
        revision = one.live.config.revision
    async with opened(**settings) as one:
        assert one.live.config.revision == revision, "there is nothing to mend"


async def test_a_new_plan_of_the_environment_can_be_read_by_release_03(opened: OpenGateway) -> None:
    async with opened() as one:
        known = {"requests_per_hour", "requests_per_minute", "tokens_per_minute", "tokens_per_day", "images_per_day", "concurrency"}
        for tier in Tier:
            assert set(msgspec.to_builtins(one.live.documents[ConfigKind.PLAN, tier].body)) <= known


async def test_while_postgresql_is_away_the_last_snapshot_serves(opened: OpenGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(poll_seconds=0.02) as one:
        await one.apply(ROUTE)
        reads = 0

        async def fails(_revision: int) -> Any:
            nonlocal reads
            reads += 1
            raise errors.Unavailable("PostgreSQL is down")

        monkeypatch.setattr(one.store, "changes_since", fails)
        await until(lambda: reads > 2)
        assert one.aliases["assistant"] == "smollm2"
        with pytest.raises(errors.Unavailable, match="PostgreSQL is down"):
            await one.rpc.export(api.ExportConfig(), CALL)
        monkeypatch.setattr(config_store.LockedConfig, "lock", fails)
        with pytest.raises(errors.Unavailable, match="PostgreSQL is down"):
            await one.apply("routes: {assistant: null}")
        assert one.aliases["assistant"] == "smollm2"
        monkeypatch.undo()
        await one.apply("default_model: smollm2")
        await until(lambda: one.live.config.names.default == "smollm2")
