"""Wire up autoscaling: read the mesh, decide as the leader, call hooks, and answer questions.

The leader of the metrics services decides. It stores its decisions, so that the other replicas show them and the next leader continues.
Before it calls a hook, it writes the call in the session that holds the lock: a replica that lost the lock fails there and calls nothing.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from features.autoscaling import contract as api
from features.autoscaling import instruments
from features.autoscaling.metrics import hooks
from features.autoscaling.metrics.store import ScaleStore
from features.autoscaling.rules import autoscaler, snapshot_reader
from features.autoscaling.rules.autoscaler import Autoscaler
from features.autoscaling.rules.demand import ScalingSnapshot
from features.autoscaling.rules.hook_plan import HookRequest, ScaleCall, plan_call
from features.autoscaling.rules.snapshot_reader import SnapshotReader
from features.autoscaling.settings import ScalingSettings
from services.metrics.collection.mesh_survey import NODE_DEADLINE_SECONDS, MeshMetrics
from services.metrics.history import samples
from services.metrics.history.samples import Sample
from services.metrics.leader_state import Database, Leadership
from services.metrics.settings import MetricsSettings
from shared import errors, worker_pools
from shared import node as nodes
from shared.api import gateway
from shared.api import node as node_api
from shared.api.gateway import Check
from shared.background import tasks as background_tasks
from shared.background.deferred_memory import DeferredMemory
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems
from shared.node.lifecycle import background
from shared.rpc import RpcCall, serves
from shared.telemetry import logs
from shared.types import NodeId, Role
from shared.worker_pools import PoolHook, PoolsFile, WorkerPool

LOOK_SECONDS = 5.0
_AGAIN_SECONDS = 2.0
#: After a gateway dies, others settle its requests from the workers' receipts, when its lease has ended.
_SETTLED_AFTER = timedelta(seconds=150)
_GIVE_UP_SECONDS = 3600.0

#: An item of the background work.
POOL = "pool"

_log = logs.get(part="scaling")


class ScalingModule:
    """``round`` is the leader's duty, ``get_scaling`` the handler, and ``run`` the background task."""

    def __init__(
        self,
        settings: MetricsSettings,
        node: nodes.Node,
        latest: Callable[[], MeshMetrics | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``latest`` returns the newest metrics of the mesh. Raises BadSettings for a bad POOLS_FILE."""
        self._node = node
        self._latest = latest
        self._clock = clock
        own = settings.of(ScalingSettings)
        self._secret = own.scale_webhook_secret
        self._is_on = own.pools_file is not None
        self._began_at = clock()
        self._has_database = settings.database_url is not None
        self._file = PoolsFile(own.pools_file, runs_hooks=True)
        if mistakes := "; ".join(self._mistakes(self._file.pools)):
            raise errors.BadSettings(f"POOLS_FILE: {mistakes}")
        self.pools: tuple[WorkerPool, ...] = self._file.pools
        self._problem = ""
        self.autoscaler = Autoscaler()
        self._reader = SnapshotReader()
        self._leads = False
        self._store: ScaleStore | None = None
        self._last_calls: Mapping[str, ScaleCall] = {}
        #: Pools whose hook this replica is running.
        self._calling: set[str] = set()
        self._items = BackgroundItems(DeferredMemory(), node.metrics)
        self._hooks: asyncio.TaskGroup | None = None

    def _mistakes(self, pools: Sequence[WorkerPool]) -> Iterator[str]:
        if not self._has_database and any(pool.hook for pool in pools):
            yield "hooks need DATABASE_URL, which remembers their calls"
        if self._secret is None and any(pool.hook is not None and pool.hook.webhook for pool in pools):
            yield "a webhook needs SCALE_WEBHOOK_SECRET, which signs the calls"

    def checks(self) -> tuple[Check, ...]:
        return (Check("pools file", ok=not self._problem, detail=self._problem, needed=False),) if self._is_on else ()

    async def run(self) -> None:
        if not self._is_on:
            return
        async with background() as self._hooks:
            while True:
                await background_tasks.attempt("look of the scaling", self.look)
                await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Read the file, if it changed, and the mesh."""
        await self._read_file()
        if self.pools and (snapshot := await self._read_mesh()) is not None:
            self.autoscaler.add(snapshot)
            if self._leads:
                await self._give_up()

    async def _give_up(self) -> None:
        """Tell all gateways which pools will have no worker soon. They refuse the requests that wait for one."""
        gateways = [entry.node for entry in self._node.directory.entries(Role.GATEWAY) if entry.alive]
        now = self._clock()
        async with asyncio.TaskGroup() as tasks:
            for name, decision in self.autoscaler.decisions.items():
                left = min(decision.state.given_up_until - now, _GIVE_UP_SECONDS)
                if left > 0 and not decision.scaling.ready:
                    request = gateway.GiveUpPool(name, decision.scaling.reason[:500], left)
                    for node in gateways:
                        tasks.create_task(self._tell(node, request))

    async def _tell(self, node: NodeId, request: gateway.GiveUpPool) -> None:
        try:
            await self._node.rpc.call(gateway.give_up_pool, request, to=node, deadline_seconds=NODE_DEADLINE_SECONDS)
        except errors.AimeshError as error:
            _log.info("a gateway was not told that a pool gets no worker", node=node, pool=request.pool, reason=error.message)

    async def _read_file(self) -> None:
        if not await asyncio.to_thread(self._file.refresh):
            return
        self._problem = self._file.trouble or "; ".join(self._mistakes(self._file.pools))
        if self._problem:
            _log.warning("the changed POOLS_FILE is not used", problem=self._problem)
        else:
            self.pools = self._file.pools
            _log.info("POOLS_FILE was read again", pools=len(self.pools))

    async def _read_mesh(self) -> ScalingSnapshot | None:
        """Return None unless every gateway answers: the requests that wait at the others would be missing."""
        entries = self._node.directory.entries(Role.GATEWAY)
        gateways = [entry.node for entry in entries if entry.alive]
        lost = [entry for entry in entries if not entry.alive and not entry.announcement.draining]
        async with asyncio.TaskGroup() as tasks:
            reading = [tasks.create_task(self._read_gateway(node)) for node in gateways]
        read = {node: found for node, task in zip(gateways, reading, strict=True) if (found := task.result()) is not None}
        if not gateways or len(read) < len(gateways):
            return None
        latest = self._latest()
        text = "" if latest is None else latest.text_of(snapshot_reader.WORKER_FAMILIES)
        workers = [entry.announcement for entry in self._node.directory.entries(Role.WORKER) if entry.alive]
        measured = samples.read_samples(text, snapshot_reader.WORKER_SERIES)
        has_lost = any(datetime.now(UTC) - entry.since < _SETTLED_AFTER for entry in lost)
        return self._reader.take(self._clock(), read, workers, measured, has_lost_gateway=has_lost)

    async def _read_gateway(self, node: NodeId) -> list[Sample] | None:
        try:
            answer = await self._node.rpc.call(
                node_api.read_metrics, node_api.ReadMetrics(), to=node, deadline_seconds=NODE_DEADLINE_SECONDS
            )
            return list(samples.read_samples(answer.text, snapshot_reader.GATEWAY_SERIES))
        except (errors.AimeshError, ValueError) as error:
            _log.info("a gateway's queues can't be read", node=node, reason=str(error))
            return None

    # --- the leader -----------------------------------------------------------------------------------------------------

    async def round(self, session: Leadership | None, database: Database | None, *, leads: bool) -> None:
        self._store = None if database is None else ScaleStore(database)
        if not self._is_on:
            return
        if leads != self._leads or not leads:
            if self._store is not None:
                self.autoscaler.decisions = await self._store.decisions()
            self._leads = leads
        if leads:
            now = self._clock()
            is_new = self.autoscaler.decide(self.pools, now)
            if session is not None and self._store is not None:
                if is_new:
                    await self._store.write_decisions(session, self.autoscaler.decisions, now)
                await self._call_hooks(session, self._store, now)
        self._show()

    async def _call_hooks(self, session: Leadership, store: ScaleStore, now: float) -> None:
        if not any(pool.hook for pool in self.pools):
            return
        self._last_calls = await store.last_calls([pool.name for pool in self.pools])
        await self._items.each(POOL, self.pools, lambda pool: self._call_hook(pool, session, store, now), lambda pool: pool.name)

    async def _call_hook(self, pool: WorkerPool, session: Leadership, store: ScaleStore, now: float) -> None:
        decision = self.autoscaler.decisions.get(pool.name)
        if pool.hook is None or decision is None or pool.name in self._calling or self._hooks is None:
            return
        scaling = decision.scaling
        if not autoscaler.is_fresh(scaling, now):
            return
        call = plan_call(pool, scaling, self._last_calls.get(pool.name), now, uuid.uuid4)
        if call is not None:
            await store.begin(session, call)
            self._calling.add(pool.name)
            request = HookRequest(call.key, pool.name, call.current, call.wanted, self.autoscaler.drain(pool), call.reason)
            calling = self._call(pool.hook, call, request, store)
            self._hooks.create_task(self._items.attempt(ItemKind.DUTY, f"hook of {pool.name}", calling))

    async def _call(self, hook: PoolHook, call: ScaleCall, request: HookRequest, store: ScaleStore) -> None:
        problem = await hooks.call_hook(hook, request, self._secret)
        shown = {"pool": call.pool, "current": call.current, "wanted": call.wanted, "attempt": call.attempts, "reason": call.reason}
        if problem:
            _log.warning("the hook of a pool failed", problem=problem, **shown)
        else:
            _log.info("the hook of a pool was called", **shown)
        try:
            while True:
                try:
                    await store.end(call, self._clock(), problem)
                    return
                except errors.Unavailable:
                    # A new store is open when PostgreSQL is back.
                    await asyncio.sleep(_AGAIN_SECONDS)
                    store = self._store or store
        finally:
            self._calling.discard(call.pool)

    def _show(self) -> None:
        """Export the pools from the leader only, so that sums over all nodes are right."""
        gauge = self._node.metrics.gauge
        gauge(instruments.POOLS_FILE_BAD).set(bool(self._problem))
        wanted, replicas, denied = gauge(instruments.WANTED_REPLICAS), gauge(instruments.POOL_REPLICAS), gauge(instruments.DENIED_REPLICAS)
        age, failures = gauge(instruments.SCALING_AGE), gauge(instruments.SCALE_HOOK_FAILURES)
        for each in (wanted, replicas, denied, age, failures):
            each.clear()
        if not self._leads:
            return
        now = self._clock()
        for pool in autoscaler.describe(self.pools, self.autoscaler.decisions, now):
            seen_at = self._began_at if pool.as_of is None else pool.as_of.timestamp()
            age.labels(pool=pool.pool).set(max(0.0, now - seen_at))
            if pool.as_of is None:
                continue
            wanted.labels(pool=pool.pool).set(pool.wanted)
            replicas.labels(pool=pool.pool, state="ready").set(pool.ready)
            replicas.labels(pool=pool.pool, state="starting").set(pool.starting)
            denied.labels(pool=pool.pool).set(pool.denied)
            if (last := self._last_calls.get(pool.pool)) is not None:
                failures.labels(pool=pool.pool).set(last.failures)

    # --- questions ------------------------------------------------------------------------------------------------------

    def pool(self, name: str) -> api.PoolScaling:
        """Raises NotFound."""
        return autoscaler.describe([worker_pools.find(self.pools, name)], self.autoscaler.decisions, self._clock())[0]

    @serves(api.get_scaling)
    async def get_scaling(self, request: api.GetScaling, call: RpcCall) -> api.Scaling:
        now = self._clock()
        found = autoscaler.describe(self.pools, self.autoscaler.decisions, now) if request.pool is None else (self.pool(request.pool),)
        calls: Sequence[ScaleCall] = ()
        if request.calls and self._has_database:
            if self._store is None:
                raise errors.Unavailable("the calls of hooks cannot be read: PostgreSQL does not answer", hint="check `aicli stack status`")
            calls = await self._store.calls(request.pool, request.calls)
        return api.Scaling(found, tuple(map(_entry, calls)), self._problem)


def _entry(call: ScaleCall) -> api.ScaleCallEntry:
    state = api.ScaleCallState.FAILED if call.problem else api.ScaleCallState.DONE
    state = api.ScaleCallState.RUNNING if call.ended_at is None else state
    at = datetime.fromtimestamp(call.began_at, UTC)
    return api.ScaleCallEntry(call.pool, at, call.current, call.wanted, call.reason, state, call.attempts, call.problem)
