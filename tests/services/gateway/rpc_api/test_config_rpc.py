"""The configuration on a real PostgreSQL: two gateways, two administrators, history and rollback."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
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
from shared.protocol.directory import Announcement, ConfigReading, DirectoryEntry, PeerRoute
from shared.rpc.audit_reporting import AuditReporting
from shared.stores import migrations
from shared.types import ModelName, Role, Tier, UserId, UserRole
from tests.services.gateway.fakes import OWNER, FakeRpc, no_servers, node_id, rpc_call
from tests.services.gateway.test_settings import GIVEN

ADMIN = msgspec.structs.replace(OWNER, username="root", role=UserRole.ADMIN)
CALL = rpc_call(ADMIN)
NOW, ROUTE_TO = datetime.now(UTC), PeerRoute("nats", "nats", 0.0)
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


#: As a gateway of release 0.3 writes: with the columns that it knows.
WRITE_03 = """
WITH next AS (UPDATE config_revision SET revision = revision + 1 RETURNING revision),
written AS (
    INSERT INTO config_versions (kind, name, version, revision, body, origin, author, note, tenant)
    SELECT $1, $2, coalesce(max(version), 0) + 1, (SELECT revision FROM next), $3::text::jsonb, $4, NULL, '', NULL
    FROM config_current WHERE kind = $1 AND name = $2
    RETURNING kind, name, version
)
INSERT INTO config_current SELECT kind, name, version FROM written ON CONFLICT (kind, name) DO UPDATE SET version = excluded.version
"""


async def write_as_newer(
    database: asyncpg.Connection, kind: str, name: str, body: str, *, needs: str = "0.9.0", origin: str = "applied"
) -> None:
    """Write a document as a gateway of a newer release does."""
    await database.execute(WRITE_03, kind, name, body, "applied")
    await database.execute(
        """
        UPDATE config_versions SET needs_release = $3, origin = $4
        WHERE (kind, name, version) = (SELECT kind, name, version FROM config_current WHERE kind = $1 AND name = $2)
        """,
        kind, name, needs, origin,
    )  # fmt: skip


async def bodies_of(database: asyncpg.Connection) -> dict[str, tuple[str, str]]:
    """Return the current body and origin of each document."""
    rows = await database.fetch(
        "SELECT kind, name, body::text, origin FROM config_current JOIN config_versions USING (kind, name, version)"
    )
    return {f"{row['kind']}/{row['name']}": (row["body"], row["origin"]) for row in rows}


NEWER = {
    "policy": ("mesh", '{"flex": "never", "guard": {"prompt": {"email": "refuse"}}, "tomorrow": 1}'),
    "plan": ("free", '{"requests_per_minute": 1, "tomorrow": 1}'),
    "route": ("llama3", '{"targets": [{"name": "main", "model": "big", "tomorrow": 1}]}'),
}


@pytest.mark.parametrize("origin", ["applied", "environment"])
async def test_a_starting_gateway_writes_over_nothing_that_it_cannot_read(opened: OpenGateway, postgres_url: str, origin: str) -> None:
    """A 0.3.0 gateway did: beside it, a guardrail of a newer release was gone at both, for ever."""
    async with opened(watches=False), connected(postgres_url) as database:
        for kind, (name, body) in NEWER.items():
            await write_as_newer(database, kind, name, body, origin=origin)
        before = await bodies_of(database)
        settings = {"TIER_FREE": "requests_per_minute=9", "ROUTING_POLICY": "trusted", "MODEL_ALIASES": "llama3=other,b=m"}
        async with opened(watches=False, **settings) as one:
            assert await bodies_of(database) | {"route/b": None} == before | {"route/b": None}
            assert "b" in one.aliases, "what it can read follows the settings"
            for ask in (
                lambda: one.live.config.policies.find(None),
                lambda: one.live.config.names.find_route(ModelName("llama3")),
                lambda: one.live.config.limits.plan_of(Tier.FREE),
            ):
                with pytest.raises(errors.ConfigUnreadable, match="can't read the current"):
                    ask()
            assert one.live.config.needs_release == "0.9.0", "so auth cuts it off"
        async with opened(watches=False, MODEL_ALIASES="") as one:
            current = await bodies_of(database)
            assert {key: current[key] for key in before} == before, "nor does it remove it"


async def test_a_running_gateway_uses_no_older_version_of_what_restricts(opened: OpenGateway, postgres_url: str) -> None:
    async with opened() as one, connected(postgres_url) as database:
        await one.apply(f"{ROUTE}\ndefault_model: assistant\npolicies: {{default: {{flex: never}}}}")
        for kind, name, body in (
            ("route", "assistant", '{"targets": [], "shadow": 1}'), ("default_model", "default", '{"model": "other", "shadow": 1}'),
            ("robot", "r2", "{}"),
        ):  # fmt: skip
            await write_as_newer(database, kind, name, body, needs="0.3.0" if kind == "robot" else "0.9.0")
        await one.live.reload()
        assert "assistant" not in one.aliases
        with pytest.raises(errors.ConfigUnreadable, match="'assistant'"):
            one.live.config.names.find_route(None)
        assert one.live.config.names.default == "assistant", "the newest version that this release can read"
        assert one.live.config.policies.find(None).flex.value is False, "a kind of tomorrow that restricts nobody doesn't matter"
        async with opened() as two:
            assert two.live.config.names.default == "assistant", "also after a start"
        await write_as_newer(database, "robot", "r2", "{}")
        await one.live.reload()
        with pytest.raises(errors.ConfigUnreadable, match="robot 'r2'"):
            one.live.config.policies.find(None)
        await database.execute(WRITE_03, "robot", "r2", None, "applied")
        await one.live.reload()
        assert one.live.config.policies.find(None).flex.value is False, "it was removed"
        await one.apply(ROUTE)
        assert one.aliases["assistant"] == "smollm2", "an administrator may replace it"


async def test_what_cannot_be_read_is_neither_exported_nor_pruned_nor_edited_unseen(opened: OpenGateway, postgres_url: str) -> None:
    async with opened() as one, connected(postgres_url) as database:
        await write_as_newer(database, *("policy", *NEWER["policy"]))
        exported = (await one.rpc.export(api.ExportConfig(), CALL)).text
        assert exported.startswith("# this gateway (release "), exported
        assert "can't read the current policy 'mesh' (version 2)" in exported.splitlines()[0]
        with pytest.raises(errors.ConfigUnreadable, match="policy 'mesh'"):
            await one.apply(exported, prune=True)
        assert (await one.apply(exported)).changes == ()
        imported = await one.rpc.import_environment(api.ImportEnvironment(dry_run=True), CALL)
        assert imported.changes == ()
        replaced = await one.apply("policies: {mesh: {}}")
        assert "policy mesh: its version 2, which this gateway can't read, no longer applies" in replaced.warnings
        assert "can't read" in str(replaced.changes[0].before)
        shown = (await one.rpc.list_versions(api.ListConfigVersions(ConfigKind.POLICY, "mesh"), CALL)).versions
        assert [version.needs_release for version in shown] == ["0.3.0", "0.9.0", "0.3.0"]


async def test_a_change_says_which_releases_and_gateways_it_keeps_out(opened: OpenGateway) -> None:
    old, new = (
        DirectoryEntry(Announcement(Role.GATEWAY, node_id(number), release, datetime.now(UTC), config=config), (ROUTE_TO,), "nats", NOW, "")
        for number, release, config in ((1, "0.3.0", None), (2, "0.3.0", ConfigReading("0.4.0", "0.3.0", 1)))
    )
    async with opened(gateways=(old, new)) as one:
        applied = await one.apply("policies: {mesh: {flex: never, machines: trusted}, default: {machines: own}}")
        assert applied.warnings == (
            f"policy mesh: gateways of releases before 0.4.0 can't read it, and are cut off while it is current; {node_id(1)[:12]} now",
        )
        assert one.live.config.needs_release == "0.4.0"
        assert (await one.apply("policies: {mesh: {flex: never, machines: own}}")).warnings == (), "it does so already"
        lost = (await one.apply("policies: {mesh: {machines: trusted}, default: null}")).warnings
        assert lost == (
            "policy mesh restricts less: machines, flex", "policy default is removed, and no longer restricts anything",
        )  # fmt: skip
        assert one.live.config.needs_release == "0.3.0"


@pytest.mark.parametrize("kind", ["policy", "plan", "route", "model_limit", "default_model"])
async def test_release_03_writes_over_nothing_that_was_edited(opened: OpenGateway, postgres_url: str, kind: str) -> None:
    name = {"policy": "mesh", "plan": "free", "default_model": "default"}.get(kind, "m")
    edited = {
        "policy": "policies: {mesh: {flex: never}}", "plan": "plans: {free: {requests_per_minute: 1}}",
        "route": "routes: {m: {targets: [{name: x, model: y}]}}", "model_limit": "model_limits: {m: {concurrency: 1}}",
        "default_model": "default_model: y",
    }[kind]  # fmt: skip
    async with opened() as one, connected(postgres_url) as database:
        await one.apply(edited)
        before = await bodies_of(database)
        for body in ("{}", None):
            await database.execute(WRITE_03, kind, name, body, "environment")
            assert await bodies_of(database) == before
        await one.apply(edited.replace("never", "only").replace("1}", "2}").replace(": y", ": z"))
        assert await bodies_of(database) != before, "people may change it"


async def test_release_03_writes_over_what_it_wrote_alone(opened: OpenGateway, postgres_url: str) -> None:
    plan = '{"requests_per_minute": 7}'
    async with opened(TIER_ENTERPRISE="file_bytes=5"), connected(postgres_url) as database:
        for name in ("enterprise", "free"):
            await database.execute(WRITE_03, "plan", name, plan, "environment")
        found = await bodies_of(database)
        assert "file_bytes" in found["plan/enterprise"][0], "it can't read it, so it takes it for absent"
        assert found["plan/free"][0] == plan, "it can read this one, and its settings are others"
        async with opened() as one:
            assert "file_bytes" not in (await bodies_of(database))["plan/enterprise"][0], "a changed setting and a restart work"
            assert one.live.config.needs_release == "0.3.0"
        # The way back ends with this.
        known = migrations.read(Path(store.__file__).parent / "migrations")
        assert "0054_post_kept_documents.sql" in await migrations.run(database, "gateway", known, post=True)


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
