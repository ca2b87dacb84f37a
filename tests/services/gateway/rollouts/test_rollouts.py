"""Rollouts over RPC, on a real PostgreSQL: from the rows of requests to steps, rollbacks and versions of routes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from services.gateway import store
from services.gateway.configuration.config_store import ConfigStore
from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.facts.config_snapshot import ConfigSnapshot
from services.gateway.facts.request_record import RequestRow, RouteUse
from services.gateway.facts.upstream_prices import TargetSpending
from services.gateway.requests.run import Run
from services.gateway.rollouts.rollout_runner import RolloutRunner
from services.gateway.rollouts.rollout_store import RolloutStore
from services.gateway.rpc_api.config_rpc import ConfigRpc
from services.gateway.rpc_api.rollouts_rpc import RolloutsRpc
from services.gateway.settings import GatewaySettings
from services.gateway.store import GatewayStore
from services.gateway.usage_store import UsageStore
from shared import config, errors
from shared.api import audit, business
from shared.api import configuration as api
from shared.api.configuration import RolloutAction, RolloutState
from shared.api.method import Nothing
from shared.config_documents import ConfigKind, RouteDocument
from shared.rpc.audit_reporting import AuditReporting
from shared.telemetry import Metrics
from shared.types import MicroCredits, ModelName, RequestId, RequestStatus, TenantId, UserId
from tests.services.gateway import fakes
from tests.services.gateway.fakes import PERSON, FakeRpc, no_servers
from tests.services.gateway.requests.admitted_runs import admitted_run
from tests.services.gateway.rpc_api.test_config_rpc import ADMIN, CALL
from tests.services.gateway.test_settings import GIVEN

ROUTE = """
routes:
  assistant:
    targets:
      - {name: local, model: smollm2, share: 90}
      - {name: third, model: smollm2, share: 10}
      - {name: next, model: llama, share: 0}
"""


@dataclass
class Gateway:
    live: LiveConfiguration
    config: ConfigRpc
    rpc: RolloutsRpc
    runner: RolloutRunner
    requests: GatewayStore
    usage: UsageStore
    metrics: Metrics
    reporting: AuditReporting
    acts: list[audit.AuditedAct]
    #: The prompts that run here, with the seconds that they have waited.
    running: dict[Run, float]

    async def start(self, candidate: str = "next", **given: Any) -> api.RolloutSummary:
        return await self.rpc.start(api.StartRollout("assistant", candidate, **given), CALL)

    async def change(self, action: RolloutAction, **given: Any) -> api.RolloutSummary:
        return await self.rpc.change(api.ChangeRollout("assistant", action, **given), CALL)

    async def get(self) -> api.RolloutDetails:
        return await self.rpc.get(api.GetRollout("assistant"), CALL)

    async def end(self, variant: str, count: int, *, failed: int = 0, **changed: Any) -> list[RequestRow]:
        """Write ``count`` rows of requests; the first ``failed`` of them failed."""
        rows = [row(variant, failed=number < failed, **changed) for number in range(count)]
        await self.requests.write_requests(rows)
        return rows

    async def look(self) -> None:
        """Check now, even if a gateway checked a moment ago."""
        self.runner._look_seconds = 0.0
        await self.live.reload()
        await self.runner.look()

    @property
    def snapshot(self) -> ConfigSnapshot:
        return self.live.config

    @property
    def step(self) -> float | None:
        """Return the percentage of the baseline's units that this gateway gives to the candidate."""
        rollout = self.snapshot.names.routes["assistant"].rollout
        return None if rollout is None else rollout.share / 100

    @property
    def route(self) -> dict[str, tuple[float | None, int | None]]:
        """Return each target's share and order in the route's current version."""
        document = self.live.documents[ConfigKind.ROUTE, "assistant"].body
        assert isinstance(document, RouteDocument)
        return {target.name: (target.share, target.order) for target in document.targets}


def row(variant: str, *, failed: bool | None = False, **changed: Any) -> RequestRow:
    user, upstream = changed.pop("user", uuid4()), changed.pop("upstream", 0)
    route: dict[str, Any] = {"route": "assistant", "version": 1, "variant": variant, "target": variant, "is_compared": True}
    route |= {name: changed.pop(name) for name in list(changed) if name in route}
    plain = RequestRow(
        id=RequestId(uuid4()),
        user_id=UserId(user),
        api_key_id=None,
        prompt_hash="a" * 64,
        model_used=ModelName("smollm2"),
        response_time_ms=900,
        prompt_tokens=10,
        completion_tokens=10,
        status=RequestStatus.ERROR if failed else RequestStatus.SUCCESS,
        error_code=None,
        created_at=datetime.now(UTC) + timedelta(seconds=1),
        route=RouteUse(**route),
        first_token_ms=None if failed else 100,
        variant_failed=failed,
        spending=(TargetSpending("assistant", variant, MicroCredits(upstream)),) if upstream else (),
    )
    return msgspec.structs.replace(plain, **changed)


Open = Callable[[], Any]


@pytest.fixture
def opened(postgres_url: str) -> Open:
    @asynccontextmanager
    async def open_gateway() -> AsyncIterator[Gateway]:
        acts: list[audit.AuditedAct] = []

        async def record(request: audit.RecordActs) -> Nothing:
            acts.extend(request.acts)
            return Nothing()

        async def names(request: business.NameUsers) -> business.UserNames:
            return business.UserNames({str(user): "root" for user in request.ids})

        fake = FakeRpc()
        fake.answers |= {audit.record_acts.name: record, business.name_users.name: names}
        settings = config.load(GatewaySettings, GIVEN)
        async with store.opened(postgres_url) as database:
            tables, rollouts, metrics = ConfigStore(database), RolloutStore(database), Metrics("gateway")
            live = LiveConfiguration(tables, poll_seconds=3600)
            await live.start(settings)
            reporting = AuditReporting(fake)
            running: dict[Run, float] = {}
            yield Gateway(
                live,
                ConfigRpc(
                    live, tables, settings, fake, reporting, no_servers(live, fake), served=lambda: [ModelName("smollm2")], gateways=list
                ),
                RolloutsRpc(live, tables, rollouts, fake, reporting),
                RolloutRunner(
                    live,
                    rollouts,
                    reporting,
                    metrics,
                    lambda: [found for run, now in running.items() if (found := run.waiting(now)) is not None],
                    items=fakes.new_items(),
                ),
                GatewayStore(database),
                UsageStore(database),
                metrics,
                reporting,
                acts,
                running,
            )

    return open_gateway


@pytest.fixture
async def gateway(opened: Open) -> AsyncIterator[Gateway]:
    async with opened() as found:
        await found.config.apply(api.ApplyConfig(text=ROUTE), CALL)
        yield found


async def backdate(url: str, seconds: float) -> None:
    """Make the open rollout begin ``seconds`` earlier."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            """
            UPDATE gateway.rollouts SET started_at = started_at - make_interval(secs => $1), progress = progress
                || jsonb_build_object('step_began_at', (progress ->> 'step_began_at')::timestamptz - make_interval(secs => $1))
            WHERE is_open
            """,
            seconds,
        )
    finally:
        await connection.close()


async def test_from_start_to_promotion(gateway: Gateway, postgres_url: str) -> None:
    started = await gateway.start(steps=(25.0, 100.0), step_seconds=60, step_requests=5)
    assert (started.state, started.share, started.plan.baseline) == (RolloutState.RUNNING, 25, "local")
    assert gateway.step == 25
    await gateway.end("next", 5)
    await gateway.end("local", 20)
    await gateway.look()
    assert gateway.step == 25, "the step's time is not over"
    for share in (100, None):
        await backdate(postgres_url, 60)
        await gateway.end("next", 5)
        await gateway.look()
        await gateway.live.reload()
        assert gateway.step == share
    found = await gateway.get()
    assert (found.rollout.state, found.rollout.share, found.rollout.reason) == (RolloutState.PROMOTED, 0, "all steps are done")
    assert [(event.state, event.share, event.author) for event in found.events] == [
        ("running", 25, "root"), ("running", 100, ""), ("promoted", 0, "")
    ]  # fmt: skip
    assert [(arm.target, arm.requests) for arm in found.arms] == [("next", 15), ("local", 20)]
    assert gateway.route == {"local": (0, 1), "third": (10, None), "next": (90, None)}
    versions = (await gateway.config.list_versions(api.ListConfigVersions(ConfigKind.ROUTE, "assistant"), CALL)).versions
    assert (versions[0].version, versions[0].origin, versions[0].note) == (2, "applied", "rollout promoted: all steps are done")
    await gateway.reporting.send()
    assert [(act.action, act.actor, act.target) for act in gateway.acts][1:] == [
        ("rollout.start", ADMIN.user_id, "assistant"), ("rollout.end", None, "assistant")
    ]  # fmt: skip


async def test_a_failing_candidate_is_rolled_back_with_a_sentence(gateway: Gateway) -> None:
    await gateway.start(steps=(50.0,))
    for _ in range(3):
        await gateway.end("next", 15, failed=5)
        await gateway.end("local", 100, failed=1)
        await gateway.look()
    found = await gateway.get()
    assert found.rollout.state is RolloutState.ROLLED_BACK
    assert found.rollout.reason.startswith("next: 10 of 30 answers failed, local: 2 of 200; evidence 1 in "), (
        "the third look had no rollout"
    )
    assert gateway.step is None
    assert gateway.route == {"local": (90, None), "third": (10, None), "next": (0, None)}
    versions = (await gateway.config.list_versions(api.ListConfigVersions(ConfigKind.ROUTE, "assistant"), CALL)).versions
    assert (versions[0].version, versions[0].origin) == (2, "rollback")
    assert versions[0].note.startswith("rollout rolled back: next: 10 of 30")
    await gateway.reporting.send()
    assert gateway.acts[-1].action == "rollout.end"
    assert gateway.acts[-1].details == {"state": "rolled_back", "reason": found.rollout.reason}
    await gateway.runner._measure()
    (family,) = gateway.metrics.rollout_state.collect()
    assert [(sample.labels, sample.value) for sample in family.samples] == [({"route": "assistant", "state": "rolled_back"}, 1.0)]


async def test_what_counts_as_an_outcome(gateway: Gateway) -> None:
    await gateway.start()
    await gateway.end("next", 1, failed=1)
    await gateway.end("next", 1, is_compared=False)
    await gateway.end("third", 1)
    await gateway.end("next", 1, cached=True)
    await gateway.end("next", 1, created_at=datetime.now(UTC) - timedelta(minutes=5))
    await gateway.end("next", 1, route="another")
    # The candidate failed, and another target served the request.
    await gateway.requests.write_requests([msgspec.structs.replace(row("next", target="local"), variant_failed=True)])
    rows = [row("local"), row("local", failed=None, status=RequestStatus.CANCELLED)]
    await gateway.requests.write_requests(rows)
    await gateway.requests.write_requests(rows)
    await gateway.look()
    found = await gateway.get()
    assert [arm.requests for arm in found.arms] == [2, 2], "a row that is written again adds nothing"
    (errors_, first_token, *_) = found.conditions
    assert (errors_.candidate_bad, errors_.candidate_outcomes, errors_.baseline_bad, errors_.baseline_outcomes) == (2, 2, 0, 1)
    assert first_token.candidate_outcomes == 0
    assert [arm.first_token_p50_ms for arm in found.arms] == [None, pytest.approx(100, rel=0.05)], "the fallback's time is not the target's"


async def test_outcomes_are_consumed_once_by_one_gateway(gateway: Gateway, opened: Open) -> None:
    await gateway.start()
    async with AsyncExitStack() as stack:
        gateways = [gateway, *[await stack.enter_async_context(opened()) for _ in range(2)]]
        written = 0
        for _ in range(5):
            rows = [gateway.end("next", 7), gateway.end("local", 11), *(each.look() for each in gateways)]
            await asyncio.gather(*rows)
            written += 1
        await gateway.look()
        found = await gateway.get()
        assert [arm.requests for arm in found.arms] == [7 * written, 11 * written]
        # The gateways check again only after a while.
        gateways[1].runner._look_seconds = 5.0
        await gateway.end("next", 7)
        await gateways[1].runner.look()
        assert (await gateway.get()).arms[0].requests == 7 * written


async def test_a_look_that_fails_loses_and_repeats_nothing(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    await gateway.start()
    await gateway.end("next", 9)

    def crash(*_: object) -> None:
        raise errors.Internal("killed")

    with monkeypatch.context() as broken:
        broken.setattr("services.gateway.rollouts.rollout_rules.look", crash)
        await gateway.look()
    await gateway.look()
    assert (await gateway.get()).arms[0].requests == 9


async def test_the_first_rating_of_a_request_counts(gateway: Gateway) -> None:
    await gateway.start()
    rows = await gateway.end("next", 2)
    other = UserId(uuid4())
    for rated in (rows[0], rows[1]):
        tenant = TenantId(rated.user_id)
        assert not await gateway.usage.rate(tenant, other, rated.id, -1), "a stranger's"
        for rating in (-1, 1, -1):
            assert await gateway.usage.rate(tenant, rated.user_id, rated.id, rating)
            await gateway.usage.unrate(tenant, rated.user_id, rated.id)
    await gateway.look()
    thumbs = (await gateway.get()).conditions[2]
    assert (thumbs.name, thumbs.candidate_bad, thumbs.candidate_outcomes) == ("thumbs", 2, 2)


async def test_the_course_is_recorded_every_minute_and_at_the_end(gateway: Gateway, postgres_url: str) -> None:
    started = await gateway.start()
    for _ in range(2):
        await gateway.end("next", 2, upstream=1_500)
        await gateway.end("local", 4)
        await gateway.look()
    found = await gateway.rpc.get(api.GetRollout(id=started.id, points=True), CALL)
    (only,) = found.points
    assert (only.share, [arm.requests for arm in only.arms]) == (10, [2, 4])
    assert (only.intervals[0].name, only.intervals[0].candidate_outcomes, only.intervals[0].baseline_outcomes) == ("errors", 2, 4)
    candidate = found.arms[0]
    assert (candidate.requests, candidate.cost_micro) == (4, 6_000)
    assert candidate.tokens_per_second == pytest.approx(1_000 * 10 / 800), "10 tokens from the first text to the end, 800 ms later"
    assert candidate.token_cost_micro == pytest.approx(1_000 * 1_500 / 20)
    for _ in range(3):
        await gateway.end("next", 20, failed=20)
        await gateway.end("local", 20)
        await gateway.look()
    points = (await gateway.rpc.get(api.GetRollout(id=started.id, points=True), CALL)).points
    assert len(points) == 2
    assert points[1].share == 10, "until then"
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute(
            """
            INSERT INTO gateway.rollout_points
            SELECT rollout, at + n * interval '1 s', body FROM gateway.rollout_points, generate_series(1, 999) AS n
            """
        )
    finally:
        await connection.close()
    listed = (await gateway.rpc.get(api.GetRollout(id=started.id, points=True), CALL)).points
    assert 300 <= len(listed) <= api.MAX_POINTS
    assert (await gateway.get()).points == ()


async def test_administrators_pause_resume_promote_and_abort(gateway: Gateway) -> None:
    await gateway.start()
    with pytest.raises(errors.BadRequest, match="not paused but running"):
        await gateway.change(RolloutAction.RESUME)
    paused = await gateway.change(RolloutAction.PAUSE, note="lunch")
    assert (paused.state, paused.reason, paused.share, gateway.step) == (RolloutState.PAUSED, "lunch", 10, 10)
    assert (await gateway.change(RolloutAction.RESUME)).state is RolloutState.RUNNING
    aborted = await gateway.change(RolloutAction.ABORT)
    assert (aborted.state, aborted.reason, gateway.step) == (RolloutState.ROLLED_BACK, "by an administrator", None)
    with pytest.raises(errors.NotFound, match="no open rollout"):
        await gateway.change(RolloutAction.ABORT)
    await gateway.start()
    assert (await gateway.change(RolloutAction.PROMOTE)).state is RolloutState.PROMOTED
    assert gateway.route["next"] == (90, None)
    listed = (await gateway.rpc.list_all(api.ListRollouts(), CALL)).rollouts
    assert [found.state for found in listed] == [RolloutState.PROMOTED, RolloutState.ROLLED_BACK]
    assert (await gateway.rpc.list_all(api.ListRollouts(only_open=True), CALL)).rollouts == ()


async def test_a_comparison_leaves_the_route_as_it_is(gateway: Gateway) -> None:
    await gateway.start("third", steps=(50.0,), only_compares=True, until=datetime.now(UTC) + timedelta(hours=1))
    assert gateway.step == 50
    version = gateway.live.documents[ConfigKind.ROUTE, "assistant"].version
    assert (await gateway.change(RolloutAction.ABORT)).state is RolloutState.ENDED
    assert gateway.live.documents[ConfigKind.ROUTE, "assistant"].version == version


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"candidate": "gone"}, errors.NotFound, "no target 'gone'"),
        ({"baseline": "gone"}, errors.NotFound, "no target 'gone'"),
        ({"candidate": "local"}, errors.BadRequest, "the same target"),
        ({"baseline": "next", "candidate": "local"}, errors.BadRequest, "no share to move"),
        ({"steps": (50.0, 10.0)}, errors.BadRequest, "steps must increase"),
        ({"steps": (0.0, 10.0)}, errors.BadRequest, "steps must increase"),
        ({"steps": (0.001,)}, errors.BadRequest, "two decimals"),
        ({"only_compares": True}, errors.BadRequest, "one share"),
        ({"until": datetime(2100, 1, 1, tzinfo=UTC)}, errors.BadRequest, "only a comparison"),
        ({"only_compares": True, "steps": (50.0,), "until": datetime(2020, 1, 1, tzinfo=UTC)}, errors.BadRequest, "in the future"),
    ],
)
async def test_a_plan_that_cannot_work_is_refused(
    gateway: Gateway, given: dict[str, Any], error: type[errors.AimeshError], message: str
) -> None:
    with pytest.raises(error, match=message):
        await gateway.start(**{"candidate": "next"} | given)
    assert gateway.step is None


async def test_one_open_rollout_per_route_also_when_two_start_at_once(gateway: Gateway, opened: Open) -> None:
    async with opened() as other:
        results = await asyncio.gather(*(each.start() for each in (gateway, other) * 3), return_exceptions=True)
    refused = [result for result in results if isinstance(result, BaseException)]
    assert len(refused) == 5
    assert all(isinstance(error, errors.AlreadyExists) and "has an open rollout" in str(error) for error in refused)
    with pytest.raises(errors.NotFound, match="no route 'other'"):
        await gateway.rpc.start(api.StartRollout("other", "next"), CALL)


async def test_an_open_rollout_keeps_its_route_and_targets(gateway: Gateway) -> None:
    await gateway.start()
    for text in ("routes: {assistant: null}", "routes: {assistant: {targets: [{name: local, model: smollm2}]}}"):
        with pytest.raises(errors.AlreadyExists, match="has an open rollout, which needs"):
            await gateway.config.apply(api.ApplyConfig(text=text), CALL)
    with pytest.raises(errors.AlreadyExists, match="has an open rollout, which needs"):
        await gateway.config.apply(api.ApplyConfig(text="plans: {free: {included_tokens: 5}}", prune=True), CALL)
    await gateway.config.apply(api.ApplyConfig(text=ROUTE.replace("llama", "llama2")), CALL)
    assert gateway.step == 10
    await gateway.change(RolloutAction.ABORT)
    await gateway.config.apply(api.ApplyConfig(text="routes: {assistant: null}"), CALL)


async def test_a_gateway_that_has_stopped_a_candidate_rolls_it_back(gateway: Gateway, opened: Open) -> None:
    await gateway.start()
    rollout = gateway.snapshot.names.routes["assistant"].rollout
    assert rollout is not None
    async with opened() as other:
        gateway.runner.stop(rollout.id, "assistant", "next: the last 10 answers failed at one gateway")
        assert gateway.step is None, "at once"
        await gateway.live.reload()
        assert gateway.step is None, "as long as PostgreSQL says that it is open"
        assert other.step == 10
        await gateway.runner.roll_back_stopped()
        await other.live.reload()
        assert other.step is None
    assert (await gateway.get()).rollout.reason == "next: the last 10 answers failed at one gateway"
    # A stop applies only to its own rollout.
    await gateway.start()
    assert gateway.step == 10
    gateway.runner.stop(UUID(int=5), "assistant", "late")
    await gateway.runner.roll_back_stopped()
    assert (await gateway.get()).rollout.state is RolloutState.RUNNING


async def test_the_baselines_last_day_fixes_what_is_late(gateway: Gateway) -> None:
    await gateway.end("local", 29, first_token_ms=1_000)
    await gateway.start()
    assert (await gateway.get()).first_token_limit_ms is None
    await gateway.change(RolloutAction.ABORT)
    await gateway.end("local", 1, first_token_ms=1_000)
    await gateway.start()
    assert (await gateway.get()).first_token_limit_ms == 1_500


async def test_outcomes_of_ended_rollouts_are_deleted(gateway: Gateway, postgres_url: str) -> None:
    await gateway.start()
    await gateway.end("next", 3)
    await gateway.change(RolloutAction.ABORT)
    await gateway.end("next", 3)
    await gateway.start()
    await gateway.look()
    connection = await asyncpg.connect(postgres_url)
    try:
        assert await connection.fetchval("SELECT count(*) FROM gateway.rollout_outcomes") == 0
    finally:
        await connection.close()
    assert (await gateway.get()).arms[0].requests == 0


async def test_nobody_can_read_what_is_not_there(gateway: Gateway) -> None:
    with pytest.raises(errors.NotFound, match="no such rollout"):
        await gateway.get()
    with pytest.raises(errors.BadRequest, match="a route or an id"):
        await gateway.rpc.get(api.GetRollout(), CALL)
    started = await gateway.start()
    assert (await gateway.rpc.get(api.GetRollout(id=started.id), CALL)).rollout == started


# --- waiting requests -----------------------------------------------------------------------------------------------------


def waiting(variant: str, **route: Any) -> Run:
    """Return a prompt that waits for its first text."""
    given: dict[str, Any] = {"route": "assistant", "version": 1, "variant": variant, "target": variant, "is_compared": True}
    return admitted_run(PERSON, RouteUse(**given | route), datetime.now(UTC) + timedelta(seconds=1))


async def test_a_request_that_waits_too_long_counts_at_once_and_once(gateway: Gateway) -> None:
    await gateway.end("local", 30, first_token_ms=400)
    await gateway.start()
    await gateway.live.reload()
    hung, answers = waiting("next"), waiting("next")
    answers.first_text_seconds = 0.5
    others = (waiting("local"), waiting("next", is_compared=False), waiting("next", target="local"))
    gateway.running |= dict.fromkeys((hung, answers, *others), 0.7) | {waiting("next"): 0.5}
    for _ in range(2):
        await gateway.look()
        late = (await gateway.get()).conditions[1]
        assert (late.candidate_bad, late.candidate_outcomes, late.baseline_bad, late.baseline_outcomes) == (1, 1, 1, 1)
    assert hung.waiting(0.7) is None
    # When the request ends, it counts for errors only.
    del gateway.running[hung]
    ended = row("next", failed=True, is_counted_late=True, response_time_ms=9_000, status=RequestStatus.TIMEOUT)
    await gateway.requests.write_requests([ended, row("next", is_counted_late=True, first_token_ms=9_000)])
    await gateway.look()
    found = (await gateway.get()).conditions
    assert (found[1].candidate_bad, found[1].candidate_outcomes) == (1, 1)
    assert (found[0].candidate_bad, found[0].candidate_outcomes) == (1, 2)
    assert (await gateway.get()).arms[0].requests == 2, "of which one was counted as late before"


async def test_while_postgresql_is_down_a_late_request_is_not_forgotten(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    await gateway.end("local", 30, first_token_ms=400)
    await gateway.start()
    await gateway.live.reload()
    hung = waiting("next")
    gateway.running[hung] = 0.7

    async def refuse(*_: object) -> None:
        raise errors.Unavailable("down")

    with monkeypatch.context() as broken:
        broken.setattr("services.gateway.rollouts.rollout_store.OpenRollouts.add_late", refuse)
        with pytest.raises(errors.Unavailable, match="down"):
            await gateway.look()
    assert hung.waiting(0.7) is not None
    await gateway.look()
    assert hung.waiting(0.7) is None
