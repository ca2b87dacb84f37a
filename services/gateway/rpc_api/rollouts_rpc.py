"""Administrators' RPC for rollouts and comparisons."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

from services.gateway.configuration.config_store import ConfigStore
from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.facts.model_routes import WHOLE, hundredths
from services.gateway.rollouts import rollout_evidence, rollout_report, rollout_rules, rollout_runner
from services.gateway.rollouts.rollout_evidence import Progress
from services.gateway.rollouts.rollout_rules import Rollout
from services.gateway.rollouts.rollout_store import OpenRollouts, RolloutStore
from services.gateway.rpc_api import config_rpc
from shared import errors
from shared.api import configuration as api
from shared.api.configuration import RolloutAction, RolloutPlan, RolloutState
from shared.config_documents import ConfigKind, RouteDocument
from shared.rpc import RpcCall, RpcClient, serves
from shared.rpc.audit_reporting import AuditReporting

#: A baseline with fewer answers in a day says little.
_MIN_ANSWERS: Final = 30
_SEE = "see `aicli admin rollouts list`"


@dataclass(frozen=True, slots=True)
class RolloutsRpc:
    live: LiveConfiguration
    config_store: ConfigStore
    store: RolloutStore
    rpc: RpcClient
    audit_reporting: AuditReporting

    @serves(api.start_rollout)
    async def start(self, request: api.StartRollout, call: RpcCall) -> api.RolloutSummary:
        """Raises NotFound without such a route or target, AlreadyExists while the route has an open rollout, and BadRequest."""
        await self.live.reload()
        stored = self.live.documents.get((ConfigKind.ROUTE, request.route))
        if stored is None or not isinstance(stored.body, RouteDocument):
            raise errors.NotFound(f"there is no route {request.route!r}", hint="see `aicli admin routes list`")
        plan = _plan(request, stored.body)
        answers, p95_ms = await self.store.first_token_p95(request.route, plan.baseline)
        limit = rollout_evidence.first_token_limit(p95_ms) if p95_ms is not None and answers >= _MIN_ANSWERS else None
        async with self.config_store.lock() as locked:
            if request.route in await locked.open_rollouts():
                raise errors.AlreadyExists(
                    f"the route {request.route!r} has an open rollout", hint=f"end it with `aicli admin rollouts abort {request.route}`"
                )
            current = (await self.live.read_locked(locked)).get((ConfigKind.ROUTE, request.route))
            if current is None or current.body != stored.body:
                raise errors.AlreadyExists(f"the route {request.route!r} has just been changed", hint="check it, then start the rollout")
            tables = OpenRollouts(locked.transaction)
            now = await tables.read_clock()
            rollout = Rollout(
                id=uuid4(),
                route=request.route,
                sticky=stored.body.sticky,
                plan=plan,
                state=RolloutState.RUNNING,
                progress=Progress(step_began_at=now, outcome_at=now, first_token_limit_ms=limit),
                started_at=now,
            )
            await tables.start(rollout)
            await tables.add_event(rollout, call.principal.user_id)
        await self.live.reload()
        self.audit_reporting.report_action("rollout.start", call.principal, target=rollout.route)
        return rollout_report.summarize(rollout)

    @serves(api.change_rollout)
    async def change(self, request: api.ChangeRollout, call: RpcCall) -> api.RolloutSummary:
        """Raises NotFound without an open rollout, and BadRequest if it can't be changed so."""
        async with self.store.change() as tables:
            found = await tables.take(request.route)
            if found is None:
                raise errors.NotFound(f"the route {request.route!r} has no open rollout", hint=_SEE)
            rollout = _change(*found, request)
            await tables.save(rollout)
            await rollout_runner.apply(tables, self.live, rollout, call.principal.user_id)
        # This gateway must use the change before it answers.
        await self.live.reload()
        self.audit_reporting.report_action("rollout.change", call.principal, target=rollout.route, change=request.action.value)
        return rollout_report.summarize(rollout)

    @serves(api.list_rollouts)
    async def list_all(self, request: api.ListRollouts, _call: RpcCall) -> api.Rollouts:
        found = await self.store.find(route=request.route, only_open=request.only_open, limit=request.limit)
        return api.Rollouts(tuple(map(rollout_report.summarize, found)))

    @serves(api.get_rollout)
    async def get(self, request: api.GetRollout, call: RpcCall) -> api.RolloutDetails:
        """Raises NotFound, and BadRequest without a route and an id."""
        if request.route is None and request.id is None:
            raise errors.BadRequest("send a route or an id")
        found = await self.store.find(route=request.route, rollout=request.id, limit=1)
        if not found:
            raise errors.NotFound("there is no such rollout", hint=_SEE)
        rollout, changes = found[0], await self.store.events(found[0].id)
        names = await config_rpc.name_authors(self.rpc, {author for *_, author in changes}, call)
        return api.RolloutDetails(
            rollout=rollout_report.summarize(rollout),
            arms=rollout_report.describe_arms(rollout),
            conditions=rollout_report.describe_conditions(rollout),
            events=tuple(api.RolloutEvent(at, state, share, reason, names[author]) for at, state, share, reason, author in changes),
            first_token_limit_ms=rollout.progress.first_token_limit_ms,
            points=tuple(await self.store.points(rollout.id)) if request.points else (),
        )


def _plan(request: api.StartRollout, route: RouteDocument) -> RolloutPlan:
    """Raises NotFound and BadRequest."""
    targets = {target.name: target for target in route.targets}
    baseline = request.baseline or max(route.targets, key=lambda target: target.share or 0.0).name
    for name in (request.candidate, baseline):
        if name not in targets:
            raise errors.NotFound(
                f"the route {request.route!r} has no target {name!r}",
                hint="add it to the route with share: 0, and apply it with `aicli admin config apply`",
            )
    if request.candidate == baseline:
        raise errors.BadRequest("candidate and baseline are the same target", hint="name another target with --to or --from")
    if not targets[baseline].share:
        raise errors.BadRequest(f"the target {baseline!r} has no share to move", hint="name another one with --from")
    rising = (0.0, *request.steps)
    if any(before >= after for before, after in zip(rising, request.steps, strict=False)):
        raise errors.BadRequest("steps must increase and start above 0", hint="for example 10,50,100")
    if any(abs(step * 100 - hundredths(step)) > 1e-6 or hundredths(step) > WHOLE for step in request.steps):
        raise errors.BadRequest("a step has at most two decimals")
    if request.only_compares and len(request.steps) != 1:
        raise errors.BadRequest("a comparison has one share", hint="use --share")
    if request.until is not None and not request.only_compares:
        raise errors.BadRequest("only a comparison has an end", hint="use --compare")
    if request.until is not None and (request.until.tzinfo is None or request.until <= datetime.now(UTC)):
        raise errors.BadRequest("until must be a time in the future, with its zone")
    return RolloutPlan(
        candidate=request.candidate,
        baseline=baseline,
        steps=request.steps,
        step_seconds=request.step_seconds,
        step_requests=request.step_requests,
        guards=request.guards,
        only_compares=request.only_compares,
        until=request.until,
    )


def _change(rollout: Rollout, now: datetime, request: api.ChangeRollout) -> Rollout:
    """Raises BadRequest."""
    reason = request.note or "by an administrator"
    match request.action:
        case RolloutAction.PAUSE:
            return replace(rollout, state=RolloutState.PAUSED, reason=reason)
        case RolloutAction.RESUME if rollout.state is not RolloutState.PAUSED:
            raise errors.BadRequest(f"the rollout is not paused but {rollout.state.value}")
        case RolloutAction.RESUME:
            return rollout_rules.resume(rollout, now)
        case RolloutAction.PROMOTE:
            return rollout_rules.end(rollout, RolloutState.PROMOTED, reason, now)
        case RolloutAction.ABORT:
            state = RolloutState.ENDED if rollout.plan.only_compares else RolloutState.ROLLED_BACK
            return rollout_rules.end(rollout, state, reason, now)
