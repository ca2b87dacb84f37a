"""The whole gateway on a real mesh, with real PostgreSQL and Valkey; auth and the workers are small fakes."""

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar, cast
from uuid import UUID

import asyncpg
import httpx
import msgspec
import pytest

from services.gateway.billing import journal
from services.gateway.idempotency import idempotent_requests
from services.gateway.scheduling import worker_records
from services.gateway.service import GatewayService
from services.gateway.settings import GatewaySettings
from shared import errors
from shared.api import audit, auth, configuration, gateway, inference, ledger, usage_report
from shared.api.gateway import InferenceRequest, ProcessInferenceRequest
from shared.api.generation import GenerationEnd, Tool, Usage
from shared.api.method import Nothing
from shared.node import Node
from shared.node.client_node import ClientNode
from shared.node.http_server import Operations
from shared.protocol.directory import ModelOffer, WorkerLoad
from shared.rpc import RpcCall, StreamCall, serves
from shared.types import Credential, FinishReason, MicroCredits, ModelName, Role, Tier, UserId, UserRole
from tests.servers import PostgresServer, ValkeyServer
from tests.services.gateway import thinking
from tests.services.gateway.fakes import KEY, OWNER, TOKEN, USER, announcement, node_id
from tests.stopwatch import HANG_SECONDS
from tests.testnet import MESH, NodeService, RunningNode, TestNet, testnet, until

ADMIN_TOKEN = Credential("admin.eyJleHAiOjk5OTk5OTk5OTl9.x")
PERSON = auth.Principal(USER, "ada", UserRole.USER, Tier.FREE)
ADMIN = auth.Principal(UserId(UUID(int=7)), "root", UserRole.ADMIN, Tier.FREE)
OTHER = auth.User(
    UserId(UUID(int=9)), "eve", "eve@example.com", UserRole.USER, Tier.PRO, is_active=True, created_at=datetime(2026, 1, 2, tzinfo=UTC)
)


class StandInAuth(NodeService):
    role: ClassVar[Role] = Role.AUTH
    revoked: ClassVar[bool]
    received: ClassVar[int]

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.changes: asyncio.Queue[auth.Change] = asyncio.Queue()
        self.revoked, self.received = False, 0  # type: ignore[misc]
        self.acts: list[audit.AuditedAct] = []

    @serves(auth.validate_api_key)
    async def validate(self, request: auth.ValidateApiKey, _call: RpcCall) -> auth.Principal:
        self.received += 1  # type: ignore[misc]
        if self.revoked or request.api_key != KEY:
            raise errors.NotAuthenticated("unknown or revoked")
        return OWNER

    @serves(auth.identify)
    async def identify(self, request: auth.Identify, _call: RpcCall) -> auth.Principal:
        return ADMIN if request.credential == ADMIN_TOKEN else PERSON

    @serves(auth.get_user)
    async def get_user(self, request: auth.GetUser, _call: RpcCall) -> auth.User:
        if request.user_id != OTHER.id:
            raise errors.NotFound("there is no user with this id")
        return OTHER

    @serves(auth.get_user_called)
    async def get_user_called(self, request: auth.GetUserCalled, _call: RpcCall) -> auth.User:
        assert request.user == OTHER.email
        return OTHER

    @serves(audit.record_acts)
    async def record(self, request: audit.RecordActs, _call: RpcCall) -> Nothing:
        self.acts += request.acts
        return Nothing()

    @serves(auth.watch_changes)
    async def watch(self, request: auth.WatchChanges, stream: StreamCall[auth.Change]) -> Nothing:
        await stream.send(auth.Change(request.since + 1, UserId(UUID(int=0))))
        while True:
            await stream.send(await self.changes.get())


class StandInWorker(NodeService):
    role: ClassVar[Role] = Role.WORKER

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.ran = 0
        self.cancelled = 0
        self.hangs = False
        self.chunks: tuple[inference.Chunk, ...] = (inference.Chunk("Hello", (0,)), inference.Chunk(" world", (1,)))
        #: Answers wait after their first word until it is set.
        self.pause = asyncio.Event()
        self.pause.set()
        node.offer(models=(ModelOffer(ModelName("smollm2"), 2048),), load=WorkerLoad(slots=4))

    @serves(inference.process_prompt)
    async def process(self, request: inference.ProcessPrompt, stream: StreamCall[inference.Chunk]) -> GenerationEnd:
        self.ran += 1
        try:
            for chunk in self.chunks:
                await stream.send(chunk)
                await self.pause.wait()
                if self.hangs:
                    await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return GenerationEnd(
            FinishReason.STOP, Usage(5, len(self.chunks), reasoning_tokens=sum(bool(one.reasoning) for one in self.chunks))
        )


class GatewayMesh:
    def __init__(self, net: TestNet, client: ClientNode, nodes: dict[str, RunningNode], settings: GatewaySettings) -> None:
        self.net, self.client, self.nodes, self.settings, self.url = net, client, nodes, settings, settings.database_url
        self.auth: StandInAuth = nodes["auth"].service  # type: ignore[assignment]

    async def ask(
        self, key: Credential = KEY, *, seconds: float = 10, fresh: bool = False, **fields: Any
    ) -> tuple[str, gateway.InferenceResult]:
        request = ProcessInferenceRequest(InferenceRequest(**{"prompt": "hi", **fields}), fresh=fresh)
        async with self.client.rpc.stream(gateway.process_inference_request, request, credential=key, deadline_seconds=seconds) as answer:
            text = "".join([chunk.text async for chunk in answer])
        return text, answer.end

    async def ended(self) -> list[tuple[str, int]]:
        """Return how requests ended, once the first row exists: a caller that leaves doesn't wait for its row."""
        async with asyncio.timeout(HANG_SECONDS):
            while not (logged := await self.rows("SELECT status, completion_tokens FROM gateway.request_logs")):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return [tuple(row) for row in logged]

    async def rows(self, query: str) -> list[Any]:
        connection = await asyncpg.connect(self.url)
        try:
            return list(await connection.fetch(query))
        finally:
            await connection.close()


@pytest.fixture
async def mesh(postgres_url: str, valkey_url: str) -> AsyncIterator[GatewayMesh]:
    async with testnet() as net:
        nodes = {"auth": await net.start(StandInAuth), "worker": await net.start(StandInWorker)}
        settings = GatewaySettings(
            mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("gateway", Role.GATEWAY), database_url=postgres_url,
            redis_url=valkey_url, prompt_hash_secret="s" * 32, default_rate_limit=20,
            tier_free={"requests_per_minute": "unlimited", "concurrency": "unlimited"},
        )  # fmt: skip
        nodes["gateway"] = await net.start(GatewayService, settings)
        client = await net.client()
        directory = nodes["gateway"].node.directory
        await until(lambda: directory.usable(Role.WORKER) and directory.usable(Role.AUTH) and client.directory.usable(Role.GATEWAY))
        yield GatewayMesh(net, client, nodes, settings)


async def test_answers_have_their_rows(mesh: GatewayMesh) -> None:
    results = [await mesh.ask(model="llama3") for _ in range(3)]
    assert {text for text, _ in results} == {"Hello world"}
    logged = await mesh.rows("SELECT * FROM gateway.request_logs")
    assert {row["id"] for row in logged} == {result.request_id for _, result in results}
    assert sum(row["tokens_used"] for row in logged) == sum(result.usage.total_tokens for _, result in results) == 21
    (usage,) = await mesh.rows("SELECT * FROM gateway.usage_stats")
    assert (usage["user_id"], usage["api_key_id"], usage["request_count"], usage["tokens_used"]) == (USER, OWNER.key_id, 3, 21)


async def test_a_repeated_request_is_answered_from_the_cache_unless_it_asks_for_a_fresh_answer(mesh: GatewayMesh) -> None:
    worker = mesh.nodes["worker"].service
    answers = [await mesh.ask(seed=7, fresh=fresh) for fresh in (False, False, True)]
    assert [(text, result.cached) for text, result in answers] == [("Hello world", False), ("Hello world", True), ("Hello world", False)]
    assert worker.ran == 2
    costs = await mesh.rows("SELECT cost_micro > 0 AS paid, cached FROM gateway.request_logs ORDER BY created_at")
    assert [tuple(row) for row in costs] == [(True, False), (False, True), (True, False)]


async def test_a_running_request_records_its_worker(mesh: GatewayMesh) -> None:
    worker = mesh.nodes["worker"]
    worker.service.hangs = True
    request = ProcessInferenceRequest(InferenceRequest(prompt="hi"))
    async with mesh.client.rpc.stream(gateway.process_inference_request, request, credential=KEY) as answer:
        await anext(aiter(answer))
        async with asyncio.timeout(30):
            while (found := [tuple(row) for row in await mesh.rows("SELECT workers FROM gateway.reservations")]) == [([],)]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert found == [([worker.node.id],)]


async def test_with_a_key_a_request_continues_without_its_reader_until_canceled(mesh: GatewayMesh) -> None:
    worker, call = mesh.nodes["worker"].service, mesh.client.rpc.call
    worker.hangs = True
    request = ProcessInferenceRequest(InferenceRequest(prompt="hi"), idempotency_key="k")
    async with mesh.client.rpc.stream(gateway.process_inference_request, request, credential=KEY) as answer:
        await anext(answer)
    for credential, key in ((TOKEN, "unknown"), (ADMIN_TOKEN, "k")):
        await call(gateway.cancel_inference, gateway.CancelInference(key), credential=credential)
    assert worker.cancelled == 0
    with pytest.raises(errors.NotAuthenticated):
        await call(gateway.cancel_inference, gateway.CancelInference("k"))
    await call(gateway.cancel_inference, gateway.CancelInference("k"), credential=KEY)
    await until(lambda: worker.cancelled == 1)
    assert await mesh.ended() == [("cancelled", 1)]


async def test_a_delete_at_another_gateway_stops_the_request_immediately(
    mesh: GatewayMesh, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotent_requests, "HEARTBEAT_SECONDS", 3600.0)
    net, worker = mesh.net, mesh.nodes["worker"].service
    settings = GatewaySettings(
        mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("gateway2", Role.GATEWAY), database_url=mesh.url,
        redis_url=valkey_url, prompt_hash_secret="s" * 32,
    )  # fmt: skip
    first, second = mesh.nodes["gateway"].node.id, await net.start(GatewayService, settings)
    await until(lambda: second.node.directory.usable(Role.AUTH) and len(mesh.client.directory.usable(Role.GATEWAY)) == 2)
    worker.hangs = True
    request = ProcessInferenceRequest(InferenceRequest(prompt="hi"), idempotency_key="k")
    with pytest.raises(errors.Cancelled):
        async with mesh.client.rpc.stream(gateway.process_inference_request, request, credential=KEY, to=first) as answer:
            await anext(aiter(answer))
            await mesh.client.rpc.call(gateway.cancel_inference, gateway.CancelInference("k"), credential=KEY, to=second.node.id)
            async for _ in answer:
                pass
    await until(lambda: worker.cancelled == 1)
    assert await mesh.ended() == [("cancelled", 1)]


async def test_a_configuration_applied_at_one_gateway_rules_requests_at_another(mesh: GatewayMesh, valkey_url: str) -> None:
    net, call = mesh.net, mesh.client.rpc.call
    first = mesh.nodes["gateway"].node.id
    settings = msgspec.structs.replace(mesh.settings, node_key_file=net.server.key("gateway2", Role.GATEWAY))
    second = (await net.start(GatewayService, settings)).node
    await until(
        lambda: (
            second.directory.usable(Role.AUTH)
            and second.directory.usable(Role.WORKER)
            and len(mesh.client.directory.usable(Role.GATEWAY)) == 2
        )
    )

    async def ask(model: str) -> str:
        request = ProcessInferenceRequest(InferenceRequest(prompt="hi", model=ModelName(model)))
        async with mesh.client.rpc.stream(gateway.process_inference_request, request, credential=KEY, to=second.id) as answer:
            return "".join([chunk.text async for chunk in answer])

    async def is_used(model: str) -> bool:
        try:
            return await ask(model) == "Hello world"
        except errors.UnknownModel:
            return False

    async def apply(text: str, credential: Credential = ADMIN_TOKEN) -> configuration.AppliedConfig:
        return await call(configuration.apply_config, configuration.ApplyConfig(text), credential=credential, to=first)

    assert not await is_used("assistant")
    with pytest.raises(errors.NotAllowed, match="is no administrator"):
        await apply("default_model: x", KEY)
    assert (await apply("routes: {assistant: {targets: [{name: a, model: smollm2}]}}")).warnings == ()
    async with asyncio.timeout(HANG_SECONDS):
        while not await is_used("assistant"):
            pass
    await apply("policies: {mesh: {direct_models: false}}")
    async with asyncio.timeout(HANG_SECONDS):
        while await is_used("smollm2"):
            pass
    assert await is_used("assistant")
    served = await call(gateway.list_models, gateway.ListModels(), credential=KEY, to=second.id)
    assert {(model.name, model.aliases) for model in served.models} == {("assistant", ()), ("llama3", ())}
    await apply("policies: {mesh: {machines: trusted}}")
    async with asyncio.timeout(HANG_SECONDS):
        while not await is_used("smollm2"):
            pass
    (worker,) = second.directory.usable(Role.WORKER)
    lent = msgspec.structs.replace(
        worker.announcement, node=node_id(7), owner=str(UUID(int=5)), models=(ModelOffer(ModelName("lent"), 2048),)
    )
    with pytest.raises(errors.PolicyForbidden, match=r"level: mesh.* policy_machines"):
        async with asyncio.timeout(HANG_SECONDS):
            while True:
                # Announce it again each time, because the directory forgets it after some seconds of silence.
                second.directory.apply_announcement(lent, "nats")
                await is_used("lent")
    await apply("model_limits: {smollm2: {tokens_per_minute: 1}}")
    with pytest.raises(errors.TokensTooLarge, match="the limit is 1 tokens per minute"):
        async with asyncio.timeout(HANG_SECONDS):
            while True:
                await ask("assistant")


async def test_limits_and_the_quota(mesh: GatewayMesh) -> None:
    outcomes = await asyncio.gather(*(mesh.ask() for _ in range(30)), return_exceptions=True)
    assert sum(isinstance(outcome, errors.Limited) for outcome in outcomes) == 10
    quota = await mesh.client.rpc.call(gateway.get_user_quota, gateway.GetUserQuota(), credential=KEY)
    assert (quota.limit_per_hour, quota.used_this_hour, quota.remaining) == (20, 20, 0)
    logged = await mesh.rows("SELECT status, count(*) FROM gateway.request_logs GROUP BY 1 ORDER BY 1")
    assert [tuple(row) for row in logged] == [("limited", 10), ("success", 20)]


async def test_only_admins_read_other_users_quotas(mesh: GatewayMesh) -> None:
    other = gateway.GetUserQuota(OTHER.id)
    for credential in (KEY, TOKEN):
        with pytest.raises(errors.NotAllowed):
            await mesh.client.rpc.call(gateway.get_user_quota, other, credential=credential)
    own = await mesh.client.rpc.call(gateway.get_user_quota, gateway.GetUserQuota(USER), credential=KEY)
    assert own.user_id == USER
    seen = await mesh.client.rpc.call(gateway.get_user_quota, other, credential=ADMIN_TOKEN)
    assert (seen.user_id, seen.tier, seen.used_this_hour) == (OTHER.id, Tier.PRO, 0)
    with pytest.raises(errors.NotFound):
        await mesh.client.rpc.call(gateway.get_user_quota, gateway.GetUserQuota(UserId(UUID(int=8))), credential=ADMIN_TOKEN)


async def test_the_log_names_accounts_by_id(mesh: GatewayMesh) -> None:
    """The audit log's target can't be erased, and an administrator may well type an email address."""
    order = ledger.TopUp(OTHER.email, MicroCredits(7), "a prize")
    await mesh.client.rpc.call(ledger.top_up, order, credential=ADMIN_TOKEN)
    await until(lambda: mesh.auth.acts)
    (act,) = mesh.auth.acts
    assert (act.action, act.target, act.details) == ("credits.move", str(OTHER.id), {"micro": "7", "note": "a prize"})


async def test_nodes_and_models_and_health(mesh: GatewayMesh) -> None:
    call = mesh.client.rpc.call
    with pytest.raises(errors.NotAuthenticated):
        await call(gateway.list_nodes, gateway.ListNodes())
    rows = (await call(gateway.list_nodes, gateway.ListNodes(), credential=KEY)).nodes
    assert {(row.service, row.usable, row.path) for row in rows} >= {
        ("auth", True, "nats"),
        ("inference", True, "nats"),
        ("gateway", True, "self"),
    }
    (model,) = (await call(gateway.list_models, gateway.ListModels())).models
    assert (model.name, model.workers, model.aliases) == ("smollm2", 1, ("llama3",))
    health = await call(gateway.get_service_health, gateway.GetServiceHealth())
    assert (health.status, health.workers, health.in_flight) == ("healthy", 1, 0)


async def test_hanging_stores_are_named_and_the_gateway_stays_ready(
    mesh: GatewayMesh, postgres: PostgresServer, valkey: ValkeyServer
) -> None:
    node = mesh.nodes["gateway"].node
    assert (await node.health()).ready
    with postgres.hung(), valkey.hung():
        health = await node.health()
    assert health.ready
    assert {check.name: check.detail.partition(" (")[0] for check in health.checks if not check.ok} == {
        "postgresql": "PostgreSQL does not answer",
        "valkey": "Valkey does not answer",
    }


@asynccontextmanager
async def port_of(mesh: GatewayMesh) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of the gateway's HTTP port."""
    gateway = mesh.nodes["gateway"]
    operations = Operations(gateway.node, mesh.settings)
    operations.open(gateway.service)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(operations), base_url="http://gateway", timeout=30) as http:
        yield http


async def test_without_postgresql_streams_finish_and_new_requests_get_503_from_a_ready_gateway(
    mesh: GatewayMesh, postgres: PostgresServer
) -> None:
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"Authorization": f"Bearer {KEY}"}
    worker = mesh.nodes["worker"].service
    async with port_of(mesh) as http:
        async with asyncio.timeout(HANG_SECONDS):
            while (await http.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.02)
        assert (await http.post("/v1/chat/completions", json=body, headers=headers)).status_code == 200
        worker.pause.clear()
        running = asyncio.create_task(http.post("/v1/chat/completions", json=body, headers=headers))
        await until(lambda: worker.ran == 2)
        postgres.kill()
        try:
            assert (await http.get("/readyz")).status_code == 200
            answer = await http.post("/v1/chat/completions", json=body, headers=headers)
            assert (answer.status_code, "retry-after" in answer.headers) == (503, True), answer.text
            told = {each["name"]: each for each in (await http.get("/dependencies")).json()["dependencies"]}
            assert [name for name, each in told.items() if each["state"] == "failing"] == ["postgresql"]
            assert "PostgreSQL does not answer" in told["postgresql"]["reason"]
            assert told["postgresql"]["lastSuccess"] < told["postgresql"]["since"]
            worker.pause.set()
            finished = await running
            assert finished.status_code == 200
            assert "Hello world" in finished.text
        finally:
            worker.pause.set()
            postgres.ensure_running()


async def test_a_full_disk_of_the_journal_makes_this_gateway_not_ready(mesh: GatewayMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    service = cast("GatewayService", mesh.nodes["gateway"].service)

    def fail(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with port_of(mesh) as http:
        assert (await http.get("/readyz")).status_code == 200
        monkeypatch.setattr(journal.Journal, "probe", fail)
        service.parts.admission.recorder._probe_at = 0
        answer = await http.get("/readyz")
        assert (answer.status_code, "journal" in answer.text, "No space left" in answer.text) == (503, True, True)
        monkeypatch.undo()
        service.parts.admission.recorder._probe_at = 0
        assert (await http.get("/readyz")).status_code == 200


async def test_with_migrate_off_it_refuses_to_start_on_an_older_schema(mesh: GatewayMesh) -> None:
    await mesh.rows("DELETE FROM gateway.migrations WHERE number = 27")
    settings = msgspec.structs.replace(mesh.settings, migrate="off")
    with pytest.raises(errors.BadSettings, match=r"too old for this version: 0027_pre_hold_extensions\.sql has not run, and MIGRATE=off"):
        async with GatewayService.open(settings, mesh.nodes["gateway"].node):
            pass


async def test_models_are_only_shown_to_callers_who_may_use_them(mesh: GatewayMesh) -> None:
    directory = mesh.nodes["gateway"].node.directory
    for number, (name, owner) in enumerate((("adas", f"{USER}"), ("bobs", f"{UUID(int=77)}")), start=50):
        directory.apply_announcement(announcement(number, name, owner=owner, labels={"shared": "no"}), "nats")

    async def shown(credential: Credential | None) -> list[str]:
        answer = await mesh.client.rpc.call(gateway.list_models, gateway.ListModels(), credential=credential)
        return [model.name for model in answer.models]

    assert await shown(KEY) == ["adas", "smollm2"]
    assert await shown(None) == ["smollm2"], "without a credential, the models that everybody may use are listed"


async def test_why_no_model_is_served_is_told_to_users(mesh: GatewayMesh) -> None:
    directory = mesh.nodes["gateway"].node.directory
    worker = mesh.nodes["worker"]
    await worker.stop()
    await until(lambda: not directory.usable(Role.WORKER))
    building = announcement(50, "smollm2", not_ready="smollm2: the engine is being built")
    others = announcement(51, "bobs", owner=f"{UUID(int=77)}", labels={"shared": "no"}, not_ready="bobs: is secret")
    for each in (building, others):
        directory.apply_announcement(each, "nats")
    known, unknown = [
        await mesh.client.rpc.call(gateway.list_models, gateway.ListModels(), credential=credential) for credential in (KEY, None)
    ]
    assert (known.models, unknown.models, unknown.why_none) == ((), (), "")
    assert f"{building.node[:8]}… smollm2: the engine is being built" in known.why_none
    assert "secret" not in known.why_none
    # A ready worker without a model that this key may use isn't at fault.
    directory.apply_announcement(announcement(52), "nats")
    assert await mesh.client.rpc.call(gateway.list_models, gateway.ListModels(), credential=KEY) == gateway.ServedModels(())


async def test_a_quarantined_worker_is_shown_with_the_reason(mesh: GatewayMesh) -> None:
    service: GatewayService = mesh.nodes["gateway"].service  # type: ignore[assignment]
    worker = mesh.nodes["worker"].node.id
    for _ in range(worker_records.STRIKES):
        service.parts.scheduling.quarantine.strike(worker)
    rows = (await mesh.client.rpc.call(gateway.list_nodes, gateway.ListNodes(), credential=KEY)).nodes
    (row,) = [row for row in rows if row.id == worker]
    assert not row.usable
    assert "in quarantine for 60 min" in row.why_not
    with pytest.raises(errors.NotReachable, match="in quarantine"):
        await mesh.ask()
    pardon = gateway.PardonNode(worker[:12])
    with pytest.raises(errors.NotAllowed):
        await mesh.client.rpc.call(gateway.pardon_node, pardon, credential=KEY)
    answer = await mesh.client.rpc.call(gateway.pardon_node, pardon, credential=ADMIN_TOKEN)
    assert answer.node == worker
    assert (await mesh.ask())[0] == "Hello world"
    await service.parts.admission.audit_reporting.send()
    assert [(act.action, act.target) for act in mesh.auth.acts if act.action == "node.pardon"] == [("node.pardon", worker)]


async def test_a_callers_cancellation_reaches_the_worker_and_is_recorded(mesh: GatewayMesh) -> None:
    worker: StandInWorker = mesh.nodes["worker"].service  # type: ignore[assignment]
    worker.hangs = True
    request = ProcessInferenceRequest(InferenceRequest(prompt="hi"))
    async with mesh.client.rpc.stream(gateway.process_inference_request, request, credential=KEY) as answer:
        async for _ in answer:
            break
    await until(lambda: worker.cancelled == 1)
    assert await mesh.ended() == [("cancelled", 1)]


async def test_the_first_chunk_has_the_request_id_so_that_a_canceled_answer_can_be_rated(mesh: GatewayMesh) -> None:
    worker: StandInWorker = mesh.nodes["worker"].service  # type: ignore[assignment]
    request = ProcessInferenceRequest(InferenceRequest(prompt="hi"))
    async with mesh.client.rpc.stream(gateway.process_inference_request, request, credential=KEY) as answer:
        names = [chunk.request_id async for chunk in answer]
    assert names == [answer.end.request_id, None]
    await mesh.ended()
    worker.hangs = True
    async with mesh.client.rpc.stream(gateway.process_inference_request, request, credential=KEY) as answer:
        stopped = (await anext(aiter(answer))).request_id
    assert stopped is not None
    async with asyncio.timeout(HANG_SECONDS):
        while len(await mesh.rows("SELECT id FROM gateway.request_logs")) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await mesh.client.rpc.call(usage_report.give_feedback, usage_report.GiveFeedback(stopped, -1), credential=KEY)
    assert [tuple(row) for row in await mesh.rows("SELECT request_id, rating FROM gateway.feedback")] == [(stopped, -1)]


@pytest.mark.parametrize("wants_parts", [True, False])
async def test_calls_come_complete_to_readers_that_know_no_parts(mesh: GatewayMesh, wants_parts: bool) -> None:
    worker: StandInWorker = mesh.nodes["worker"].service  # type: ignore[assignment]
    worker.chunks = thinking.ANSWER
    question = InferenceRequest(prompt="hi", tools=(Tool("look_up"),))
    request = ProcessInferenceRequest(question, idempotency_key="k", call_parts=wants_parts)
    async with mesh.client.rpc.stream(gateway.process_inference_request, request, credential=KEY) as answer:
        whole = [chunk async for chunk in answer]
    assert [chunk.sequence for chunk in whole] == [*range(1, len(whole) + 1)]
    assert "".join(chunk.reasoning for chunk in whole) == thinking.THOUGHTS
    assert answer.end.usage.reasoning_tokens == 2
    parts = [part for chunk in whole for part in chunk.call_parts]
    assert parts == [part for chunk in thinking.ANSWER for part in chunk.call_parts if wants_parts]
    assert [call for chunk in whole for call in chunk.tool_calls] == [call for call in thinking.CALLS if not wants_parts]
    for after in range(1, len(whole)):
        rest = msgspec.structs.replace(request, rest=gateway.Rest(after))
        async with mesh.client.rpc.stream(gateway.process_inference_request, rest, credential=KEY) as answer:
            found = [msgspec.structs.replace(chunk, request_id=None) async for chunk in answer]
        assert found == whole[after:]
    async with mesh.client.rpc.stream(gateway.process_inference_request, request, credential=KEY) as answer:
        assert [chunk async for chunk in answer] == whole
    assert worker.ran == 1


async def test_a_revoked_key_stops_working_immediately(mesh: GatewayMesh) -> None:
    await mesh.ask()
    await mesh.ask()
    assert mesh.auth.received == 1
    mesh.auth.revoked = True  # type: ignore[misc]
    mesh.auth.changes.put_nowait(auth.Change(5, USER))

    async def refused() -> bool:
        try:
            await mesh.ask()
        except errors.NotAuthenticated:
            return True
        return False

    async with asyncio.timeout(30):
        while not await refused():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_second_worker_is_used_and_a_dead_one_is_not(mesh: GatewayMesh) -> None:
    second = await mesh.net.start(StandInWorker)
    directory = mesh.nodes["gateway"].node.directory
    await until(lambda: len(directory.usable(Role.WORKER)) == 2, seconds=3)
    first: StandInWorker = mesh.nodes["worker"].service  # type: ignore[assignment]
    other: StandInWorker = second.service  # type: ignore[assignment]
    await asyncio.gather(*(mesh.ask() for _ in range(8)))
    assert min(first.ran, other.ran) >= 2
    await second.cut()
    # Until its end is noticed, the other worker takes over requests that were sent to the dead one.
    outcomes = await asyncio.gather(*(mesh.ask() for _ in range(4)))
    assert {text for text, _ in outcomes} == {"Hello world"}
    await until(lambda: len(directory.usable(Role.WORKER)) == 1, seconds=7)


async def test_a_deadline_is_recorded_as_a_timeout(mesh: GatewayMesh) -> None:
    worker: StandInWorker = mesh.nodes["worker"].service  # type: ignore[assignment]
    worker.hangs = True
    with pytest.raises(errors.DeadlineExceeded):
        await mesh.ask(seconds=1.5)
    assert await mesh.ended() == [("timeout", 1)]


async def test_drain_finishes_running_requests_and_writes_their_rows(mesh: GatewayMesh) -> None:
    await mesh.ask()
    asking = asyncio.create_task(mesh.ask())
    await asyncio.sleep(0)
    await mesh.nodes["gateway"].stop()
    try:
        await asking
        expected = 2
    except errors.AimeshError:
        expected = 1
    assert len(await mesh.rows("SELECT id FROM gateway.request_logs WHERE status = 'success'")) == expected
