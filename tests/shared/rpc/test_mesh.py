"""Calls between real nodes over a real NATS server: what works, and the error that each fault causes."""

import asyncio
import contextlib
from collections import Counter
from typing import ClassVar
from uuid import UUID

import msgspec
import pytest

from shared import context, errors, rpc
from shared.api import auth, gateway, inference, metrics
from shared.api import node as node_api
from shared.api.generation import GenerationEnd, Usage
from shared.api.method import Nothing
from shared.node.client_node import ClientSettings, client
from shared.node.member import Node
from shared.node.settings import NodeSettings
from shared.protocol import windows, wire
from shared.protocol.wire import Call, Item
from shared.rpc import bodies
from shared.types import Credential, FinishReason, ModelName, RequestId, Role, Tier, UserId, UserRole
from tests import stopwatch
from tests.testnet import MESH, NodeService, testnet, until

REQUEST_ID = RequestId(UUID(int=7))
LOST = ("link_lost", 503, True)


def prompt(text: str = "", tokens: int = 0) -> inference.ProcessPrompt:
    return inference.ProcessPrompt(text, inference.ModelConfig(model=ModelName("m"), max_tokens=tokens), REQUEST_ID)


def login(password: str) -> auth.LoginUser:
    return auth.LoginUser(auth.Credentials(password))


class _Service(NodeService):
    role: ClassVar[Role]

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.seen: list[context.RequestContext | None] = []
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.sent = 0

    async def hang(self) -> None:
        self.started.set()
        try:
            await self.may_go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class Auth(_Service):
    role: ClassVar[Role] = Role.AUTH

    @rpc.serves(auth.login_user)
    async def login(self, request: auth.LoginUser, call: rpc.RpcCall) -> auth.LoginSession:
        match request.credentials.password:
            case "wrong":
                raise errors.NotAuthenticated("no such user or password", hint="try again", retry_after_seconds=3)
            case "hang":
                await self.hang()
            case "bug":
                raise KeyError("a secret that must not travel")
            case "too big":
                return self.session(2**64)  # type: ignore[arg-type]  # too large for a msgpack integer
            case "remaining":
                return self.session(str(call.remaining_seconds()))
            case "whoami":
                return self.session(f"{call.caller.role} {call.credential}")
        self.seen.append(context.current.get())
        return self.session(request.credentials.password)

    @rpc.serves(auth.validate_api_key)
    async def validate(self, request: auth.ValidateApiKey, call: rpc.RpcCall) -> auth.Principal:
        raise AssertionError("no client gets here")

    def session(self, email: str) -> auth.LoginSession:
        user = auth.User(UserId(UUID(int=1)), "ada", email, UserRole.USER, Tier.FREE, True, self.node.started_at)
        return auth.LoginSession(Credential("t"), 600, "s", user)


class Worker(_Service):
    role: ClassVar[Role] = Role.WORKER

    @rpc.serves(inference.process_prompt)
    async def process(self, request: inference.ProcessPrompt, stream: rpc.StreamCall[inference.Chunk]) -> GenerationEnd:
        self.seen.append(context.current.get())
        count = request.model_config.max_tokens or 0
        stream.accept(None if request.prompt == "silent" else inference.PromptAccepted(42))
        for number in range(count):
            await stream.send(inference.Chunk(str(request.prompt), (number,)))
            self.sent += 1
        if request.prompt == "hang":
            await self.hang()
        if request.prompt == "crash":
            raise errors.ModelCrashed("the engine died")
        return GenerationEnd(FinishReason.STOP, Usage(1, count))


class Gateway(_Service):
    role: ClassVar[Role] = Role.GATEWAY

    @rpc.serves(gateway.process_inference_request)
    async def process(
        self, request: gateway.ProcessInferenceRequest, stream: rpc.StreamCall[gateway.InferenceChunk]
    ) -> gateway.InferenceResult:
        now = context.current.get()
        assert now is not None
        self.seen.append(now)
        async with self.node.rpc.stream(inference.process_prompt, prompt("x", 3)) as answer:
            async for chunk in answer:
                await stream.send(gateway.InferenceChunk(chunk.text))
        return gateway.InferenceResult(now.request_id, ModelName("m"), FinishReason.STOP, Usage(1, 3), 1, 1)


class Metrics(_Service):
    role: ClassVar[Role] = Role.METRICS

    @rpc.serves(metrics.record_metric)
    async def record(self, request: metrics.RecordMetric, call: rpc.RpcCall) -> Nothing:
        return Nothing()


async def test_a_role_that_may_not_be_called_is_never_dialed_and_stays_alive() -> None:
    """NATS refuses such a HELLO; the caller used to wait for its answer and then consider the replica dead."""
    async with testnet() as net:
        one, other = await net.start(Auth), await net.start(Auth)
        await until(lambda: one.node.directory.find(other.node.id) is not None, seconds=10)
        with pytest.raises(errors.WrongRole, match="the role auth may not call auth"):
            await one.node.rpc.call(node_api.read_revocations, node_api.ReadRevocations(), to=other.node.id)
        found = one.node.directory.find(other.node.id)
        assert found is not None
        assert found.alive
        assert "Permissions Violation" not in (net.server.folder / "nats.log").read_text()


async def test_a_client_calls_a_service() -> None:
    async with testnet() as net:
        await net.start(Auth)
        caller = await net.client()
        assert (await caller.rpc.call(auth.login_user, login("pw"))).user.email == "pw"
        big = "x" * 900_000
        assert (await caller.rpc.call(auth.login_user, login(big))).user.email == big
        who = await caller.rpc.call(auth.login_user, login("whoami"), credential=Credential("key"))
        assert who.user.email == "client key"


async def test_a_mesh_whose_nats_server_has_an_ipv6_address() -> None:
    async with testnet("::1") as net:
        assert net.server.url == f"nats://[::1]:{net.server.port}"
        await net.start(Auth)
        caller = await net.client()
        assert (await caller.rpc.call(auth.login_user, login("pw"))).user.email == "pw"


async def test_errors_keep_their_type() -> None:
    async with testnet() as net:
        await net.start(Auth)
        caller = await net.client()
        with pytest.raises(errors.NotAuthenticated, match="no such user") as refused:
            await caller.rpc.call(auth.login_user, login("wrong"))
        assert (refused.value.hint, refused.value.retry_after_seconds) == ("try again", 3)
        with pytest.raises(errors.Internal) as broken:
            await caller.rpc.call(auth.login_user, login("bug"))
        assert "secret" not in broken.value.message + broken.value.hint
        with pytest.raises(errors.Internal, match="a bug in the service"):
            # As with any bug of a handler, only its own call ends, and not the node.
            await caller.rpc.call(auth.login_user, login("too big"))
        with pytest.raises(errors.UnknownMethod, match=r"auth\.listUsers"):
            await caller.rpc.call(auth.list_users, auth.ListUsers())
        with pytest.raises(errors.WrongRole, match=r"client may not call auth\.validateApiKey"):
            # A check in the client would be worth nothing, so there is none: the receiver refuses.
            await caller.rpc.call(auth.validate_api_key, auth.ValidateApiKey(Credential("k")))
        with pytest.raises(errors.TooLarge, match="bytes, the limit is"):
            await caller.rpc.call(auth.login_user, login("x" * (wire.MAX_MESSAGE_BYTES + 1)))
        assert (await caller.rpc.call(auth.login_user, login("pw"))).user.email == "pw", "the link has survived all of it"


async def test_a_wrong_role_is_refused_before_the_request_is_read() -> None:
    async with testnet() as net:
        auth_node = await net.start(Auth)
        stranger = await net.client()
        connection = await stranger.rpc._pool.connection(Role.AUTH, auth_node.node.id, 1e9)
        asked = _Collector()
        connection.ask(Call(connection.next_id(), "auth.validateApiKey", 1000, b"\xc1 not msgpack"), asked, streaming=False)
        with pytest.raises(errors.WrongRole, match=r"a client may not call auth\.validateApiKey"):
            await asked.outcome


async def test_an_invalid_body_names_the_field() -> None:
    async with testnet() as net:
        auth_node = await net.start(Auth)
        caller = await net.client()
        connection = await caller.rpc._pool.connection(Role.AUTH, auth_node.node.id, 1e9)
        for body in (b"", b"\xc1", b"\x81\xabcredentials\x81\xa8password\x01", b"\x91" * 5000):
            asked = _Collector()
            connection.ask(Call(connection.next_id(), "auth.loginUser", 1000, body), asked, streaming=False)
            with pytest.raises(errors.BadRequest, match=r"auth\.loginUser"):
                await asked.outcome


async def test_a_text_that_no_store_takes_is_refused_before_the_handler_runs() -> None:
    async with testnet() as net:
        auth_node = await net.start(Auth)
        assert isinstance(auth_node.service, Auth)
        caller = await net.client()
        with pytest.raises(errors.BadRequest, match=r"auth\.loginUser: a text must not contain the character U\+0000"):
            await caller.rpc.call(auth.login_user, login("p\0w"))
        assert auth_node.service.seen == []


async def test_a_deadline_is_propagated_and_enforced() -> None:
    async with testnet() as net:
        running = await net.start(Auth)
        assert isinstance(running.service, Auth)
        caller = await net.client()
        told = float((await caller.rpc.call(auth.login_user, login("remaining"), deadline_seconds=60)).user.email)
        assert 40 < told < 60
        with pytest.raises(errors.DeadlineExceeded, match=r"auth\.loginUser did not answer in time"):
            await caller.rpc.call(auth.login_user, login("hang"), deadline_seconds=1.0)
        await asyncio.wait_for(running.service.cancelled.wait(), 30)
        connection = await caller.rpc._pool.connection(Role.AUTH, running.node.id, 1e9)
        asked = _Collector()
        connection.ask(Call(connection.next_id(), "auth.loginUser", 0, b"\x80"), asked, streaming=False)
        with pytest.raises(errors.DeadlineExceeded, match="had passed"):
            await asked.outcome


@pytest.mark.parametrize("milliseconds", [2**40, 2**63, 2**64 - 1])
async def test_a_deadline_beyond_a_day_is_capped_at_a_day(milliseconds: int) -> None:
    async with testnet() as net:
        running = await net.start(Auth)
        caller = await net.client()
        connection = await caller.rpc._pool.connection(Role.AUTH, running.node.id, 1e9)
        asked = _Collector()
        call = Call(connection.next_id(), "auth.loginUser", milliseconds, bodies.encode(login("remaining")))
        connection.ask(call, asked, streaming=False)
        session = bodies.decode_reply(auth.LoginSession, await asked.outcome, "auth.loginUser")
        assert 86_000 < float(session.user.email) <= 86_400


async def test_canceling_the_caller_cancels_the_handler() -> None:
    async with testnet() as net:
        running = await net.start(Auth)
        assert isinstance(running.service, Auth)
        caller = await net.client()
        task = asyncio.create_task(caller.rpc.call(auth.login_user, login("hang")))
        await asyncio.wait_for(running.service.started.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(running.service.cancelled.wait(), 30)


async def test_a_stream_arrives_in_order_and_ends() -> None:
    async with testnet() as net:
        await net.start(Worker)
        door = await net.start(Gateway)
        async with door.node.rpc.stream(inference.process_prompt, prompt("tok", 5000)) as answer:
            with pytest.raises(RuntimeError, match="has not ended yet"):
                answer.end  # noqa: B018
            ids = [chunk.token_ids[0] async for chunk in answer]
        assert ids == list(range(5000))
        assert answer.end == GenerationEnd(FinishReason.STOP, Usage(1, 5000))


@pytest.mark.parametrize(("text", "accepted"), [("tok", inference.PromptAccepted(42)), ("silent", None)])
async def test_the_callees_acceptance_arrives_before_the_first_item(text: str, accepted: inference.PromptAccepted | None) -> None:
    async with testnet() as net:
        await net.start(Worker)
        door = await net.start(Gateway)
        async with door.node.rpc.stream(inference.process_prompt, prompt(text, 1)) as answer:
            assert answer.accepted is None
            await anext(answer)
            assert answer.accepted == accepted


async def test_leaving_a_stream_early_stops_the_worker() -> None:
    async with testnet() as net:
        running = await net.start(Worker)
        assert isinstance(running.service, Worker)
        door = await net.start(Gateway)
        async with door.node.rpc.stream(inference.process_prompt, prompt("hang", 1)) as answer:
            await anext(answer)
        await asyncio.wait_for(running.service.cancelled.wait(), 30)


async def test_a_canceled_stream_stops_the_worker_before_its_reader_returns_and_keeps_what_has_arrived() -> None:
    async with testnet() as net:
        running = await net.start(Worker)
        assert isinstance(running.service, Worker)
        door = await net.start(Gateway)
        async with door.node.rpc.stream(inference.process_prompt, prompt("hang", 5)) as answer:
            ids = [(await anext(answer)).token_ids[0]]
            await until(lambda: running.service.sent == 5)
            answer.cancel(errors.Cancelled("another request needs the slot"))
            await asyncio.wait_for(running.service.cancelled.wait(), 30)
            with pytest.raises(errors.Cancelled, match="another request needs the slot"):
                async for chunk in answer:
                    ids.append(chunk.token_ids[0])  # noqa: PERF401 - the iteration ends with an error
            assert ids == list(range(len(ids)))


async def test_a_slow_reader_pauses_the_producer() -> None:
    async with testnet() as net:
        running = await net.start(Worker)
        assert isinstance(running.service, Worker)
        door = await net.start(Gateway)
        async with door.node.rpc.stream(inference.process_prompt, prompt("tok", 100_000)) as answer:
            await anext(answer)
            await until(lambda: running.service.sent >= windows.LARGEST_ITEMS)
            before = running.service.sent
            # The link's other calls continue meanwhile.
            async with door.node.rpc.stream(inference.process_prompt, prompt("other", 10)) as other:
                assert len([chunk async for chunk in other]) == 10
            assert running.service.sent - before <= 11


async def test_a_thousand_streams_run_concurrently_on_one_link() -> None:
    async with testnet() as net:
        running = await net.start(Worker)
        assert isinstance(running.service, Worker)
        door = await net.start(Gateway)
        first = asyncio.Barrier(1001)

        async def read() -> int:
            async with door.node.rpc.stream(inference.process_prompt, prompt("hang", 2)) as answer:
                chunks = [await anext(answer)]
                await first.wait()
                return len(chunks + [chunk async for chunk in answer])

        readers = [asyncio.create_task(read()) for _ in range(1000)]
        async with asyncio.timeout(60):
            await first.wait()
            assert door.node.pool.in_flight(running.node.id) == 1000
            assert len([link for link in running.node.node_transports.links() if link.peer.node == door.node.id]) == 1
            running.service.may_go_on.set()
            assert await asyncio.gather(*readers) == [2] * 1000


async def test_unread_replies_on_a_link_use_at_most_16_mib_and_block_no_other_call() -> None:
    async with testnet() as net:
        running = await net.start(Worker)
        assert isinstance(running.service, Worker)
        door = await net.start(Gateway)
        async with contextlib.AsyncExitStack() as streams:
            stalled = [
                await streams.enter_async_context(door.node.rpc.stream(inference.process_prompt, prompt("x" * 1000, 100)))
                for _ in range(500)
            ]
            sent_before = -1
            async with asyncio.timeout(60):
                while running.service.sent != sent_before:  # until no producer has credit
                    sent_before = running.service.sent
                    async with door.node.rpc.stream(inference.process_prompt, prompt("other", 10)) as other:
                        assert len([chunk async for chunk in other]) == 10
                    running.service.sent -= 10
            held = sum(len(body) for answer in stalled for body in answer._bodies)
            assert 500 * windows.FLOOR_BYTES <= held <= windows.MAX_LINK_BYTES
            assert running.service.sent < 500 * 100, "nobody was held back"


async def test_a_peer_that_takes_256_calls_gets_no_more() -> None:
    async with testnet() as net:
        running = await net.start(Auth)
        transport = running.node.node_transports.nats
        assert transport is not None
        say_hello = transport._hello
        transport._hello = lambda link: msgspec.structs.replace(say_hello(link), max_calls=256)  # type: ignore[method-assign]
        caller = await net.client()
        await caller.rpc.call(auth.login_user, login("ada"))
        asked = [asyncio.create_task(caller.rpc.call(auth.login_user, login("hang"), deadline_seconds=60)) for _ in range(300)]
        await until(lambda: sum(task.done() for task in asked) == 44, seconds=30)
        running.service.may_go_on.set()  # type: ignore[attr-defined]  # it is an Auth
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(end) for end in ends] == [auth.LoginSession] * 256 + [errors.Overloaded] * 44


async def test_two_processes_with_one_key_end_the_link_as_retryable() -> None:
    """Both processes get every message, and one link would mix their answers into one stream."""
    async with testnet() as net:
        elder = await net.start(Worker)
        copy = net.server.folder / "copy.nk"
        copy.touch(mode=0o600)
        copy.write_bytes(elder.key_file.read_bytes())
        await net.start(Worker, NodeSettings(mesh=MESH, nats_url=net.server.url, node_key_file=copy))
        door = await net.start(Gateway)
        ends: Counter[tuple[str, int, bool]] = Counter()
        while not ends[LOST] and ends.total() < 50:  # before the younger one stops
            try:
                async with door.node.rpc.stream(inference.process_prompt, prompt("hang", 50), deadline_seconds=2) as answer:
                    assert [chunk.token_ids[0] async for chunk in answer] == list(range(50))
            except errors.AimeshError as error:
                ends[(errors.code_of(error), error.status, error.retryable)] += 1
        assert set(ends) == {LOST}, ends


async def test_an_error_follows_the_items_before_it() -> None:
    async with testnet() as net:
        await net.start(Worker)
        door = await net.start(Gateway)
        got = []
        with pytest.raises(errors.ModelCrashed, match="the engine died"):
            async with door.node.rpc.stream(inference.process_prompt, prompt("crash", 3)) as answer:
                async for chunk in answer:
                    got.append(chunk)  # noqa: PERF401 - the chunks before the error must not be lost
        assert len(got) == 3


async def test_one_request_id_is_used_on_every_hop() -> None:
    async with testnet() as net:
        worker, door = await net.start(Worker), await net.start(Gateway)
        caller = await net.client()
        request = gateway.ProcessInferenceRequest(gateway.InferenceRequest(prompt="x"))
        context.current.set(context.RequestContext(REQUEST_ID, "00-" + "a" * 32 + "-" + "b" * 16 + "-01"))
        async with caller.rpc.stream(gateway.process_inference_request, request) as answer:
            assert [chunk.text async for chunk in answer] == ["x", "x", "x"]
        [at_gateway], [at_worker] = door.service.seen, worker.service.seen
        assert at_gateway is not None
        assert at_worker is not None
        assert at_worker.request_id == at_gateway.request_id == answer.end.request_id != REQUEST_ID, "a client's ids are not ours"
        [here], [there] = door.node.traces.read(0).spans, worker.node.traces.read(0).spans
        assert here.trace_id == there.trace_id == "a" * 32, "a client's trace goes on"
        assert here.parent_id == "b" * 16
        assert there.parent_id == here.span_id
        assert at_worker.traceparent == f"00-{there.trace_id}-{there.span_id}-01"


async def test_calls_are_spread_over_the_nodes_that_serve_them() -> None:
    async with testnet() as net:
        workers = [await net.start(Worker) for _ in range(3)]
        door = await net.start(Gateway)
        await until(lambda: len(door.node.directory.usable(Role.WORKER)) == 3)
        # Usually about 20 calls. A worker that looks dead on a busy machine gets none for a while.
        async with asyncio.timeout(60):
            while min(len(worker.service.seen) for worker in workers) < 5:
                async with door.node.rpc.stream(inference.process_prompt, prompt("x", 1)) as answer:
                    _ = [chunk async for chunk in answer]


async def test_a_killed_node_fails_its_calls_within_four_seconds_and_is_not_used_again() -> None:
    async with testnet() as net:
        worker, door = await net.start(Worker), await net.start(Gateway)
        started = asyncio.get_running_loop().time()
        with pytest.raises(errors.LinkLost, match="silent"):
            async with door.node.rpc.stream(inference.process_prompt, prompt("hang", 1)) as answer:
                await anext(answer)
                await worker.cut()
                await anext(answer)
        assert asyncio.get_running_loop().time() - started < 5 or not stopwatch.bounds_hold
        assert door.node.directory.usable(Role.WORKER) == []
        [entry] = door.node.directory.entries(Role.WORKER)
        assert "silent" in entry.why_not


async def test_a_restarted_node_resets_the_links_of_its_old_process_immediately() -> None:
    async with testnet() as net:
        worker, door = await net.start(Worker), await net.start(Gateway)
        async with door.node.rpc.stream(inference.process_prompt, prompt("hang", 1)) as answer:
            await anext(answer)
            await worker.cut()
            await net.start(Worker, net.settings_of(worker))
            with pytest.raises(errors.LinkLost, match="was restarted"):
                await anext(answer)
        async with door.node.rpc.stream(inference.process_prompt, prompt("x", 2)) as again:
            assert len([chunk async for chunk in again]) == 2


async def test_a_lost_link_of_the_old_process_does_not_count_against_a_restarted_node() -> None:
    """The restarted node had announced itself, but the old link's loss marked it as gone until its next announcement 2 s later."""
    async with testnet() as net:
        worker, door = await net.start(Worker), await net.start(Gateway)
        async with door.node.rpc.stream(inference.process_prompt, prompt("hang", 1)) as answer:
            await anext(answer)
            await worker.cut()
            await net.start(Worker, net.settings_of(worker))
            with pytest.raises(errors.LinkLost, match="was restarted"):
                await anext(answer)
        await until(lambda: len(door.node.directory.usable(Role.WORKER)) == 1, seconds=1.5)


async def test_an_orderly_stop_lets_calls_finish_and_accepts_no_new_ones() -> None:
    async with testnet() as net:
        worker, door = await net.start(Worker), await net.start(Gateway)
        assert isinstance(worker.service, Worker)
        async with door.node.rpc.stream(inference.process_prompt, prompt("hang", 2)) as answer:
            await anext(answer)
            stopping = asyncio.create_task(worker.stop())
            await until(lambda: door.node.directory.usable(Role.WORKER) == [])
            with pytest.raises(errors.NotReachable, match="draining"):
                async with door.node.rpc.stream(inference.process_prompt, prompt(), deadline_seconds=0.2):
                    pass
            worker.service.may_go_on.set()
            assert len([chunk async for chunk in answer]) == 1
            assert answer.end.finish_reason is FinishReason.STOP
        await stopping
        await until(lambda: [entry.why_not for entry in door.node.directory.entries(Role.WORKER)] == ["stopped"])


async def test_a_lost_message_ends_the_link_and_the_next_call_opens_a_new_one() -> None:
    async with testnet() as net:
        running, caller = await net.start(Auth), await net.client()
        await caller.rpc.call(auth.login_user, login("pw"))
        [connection] = caller.rpc._pool.connections()
        connection.link.sent += 1  # type: ignore[attr-defined]  # as if NATS had dropped one
        with pytest.raises(errors.LinkLost, match="1 messages were lost"):
            await caller.rpc.call(auth.login_user, login("pw"))
        assert len(caller.directory.usable(Role.AUTH)) == 1, "whoever tells us that a message was lost is alive"
        assert (await caller.rpc.call(auth.login_user, login("pw"))).user.email == "pw"
        assert running.node.dispatcher.running == 0


async def test_a_peer_that_violates_the_protocol_only_loses_its_link() -> None:
    async with testnet() as net:
        await net.start(Auth)
        bad, good = await net.client(), await net.client()
        await good.rpc.call(auth.login_user, login("pw"))
        await bad.rpc.call(auth.login_user, login("pw"))
        [connection] = bad.rpc._pool.connections()
        [link] = good.rpc._pool.connections()
        connection.link.send(Item(999, b""))
        await until(lambda: connection.link.closed is not None)
        assert link.link.closed is None
        assert (await bad.rpc.call(auth.login_user, login("pw"))).user.email == "pw"


async def test_everything_recovers_after_a_restart_of_nats() -> None:
    async with testnet() as net:
        worker, door = await net.start(Worker), await net.start(Gateway)
        with pytest.raises(errors.LinkLost, match="NATS"):
            async with door.node.rpc.stream(inference.process_prompt, prompt("hang", 1)) as answer:
                await anext(answer)
                net.server.kill()
                await anext(answer)
        with pytest.raises(errors.NotConnected, match="no worker is available: our own connection to NATS is lost"):
            async with door.node.rpc.stream(inference.process_prompt, prompt(), deadline_seconds=0.1):
                pass
        net.server.start()
        started = asyncio.get_running_loop().time()
        await until(lambda: len(door.node.directory.usable(Role.WORKER)) == 1)
        async with door.node.rpc.stream(inference.process_prompt, prompt("x", 2)) as again:
            assert len([chunk async for chunk in again]) == 2
        assert asyncio.get_running_loop().time() - started < 5 or not stopwatch.bounds_hold
        assert worker.node.node_transports.nats.nats.reconnects == 1


async def test_processes_of_one_profile_share_a_key_without_interfering() -> None:
    async with testnet() as net:
        await net.start(Auth)
        settings = ClientSettings(mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("shared", Role.CLIENT))
        async with contextlib.AsyncExitStack() as stack:
            callers = [await stack.enter_async_context(client(settings)) for _ in range(8)]

            async def ask(number: int) -> str:
                return (await callers[number % 8].rpc.call(auth.login_user, login(str(number)))).user.email

            assert await asyncio.gather(*(ask(number) for number in range(80))) == [str(number) for number in range(80)]


async def test_an_unreachable_service_is_reported_with_a_hint() -> None:
    async with testnet() as net:
        caller = await net.client()
        with pytest.raises(errors.NotReachable, match="no auth is available") as nobody:
            await caller.rpc.call(auth.login_user, login("pw"), deadline_seconds=0.1)
        assert "aicli doctor" in nobody.value.hint


async def test_every_service_serves_its_health_and_metrics_over_the_mesh() -> None:
    async with testnet() as net:
        worker, watcher = await net.start(Worker), await net.start(Metrics)
        await until(lambda: watcher.node.directory.usable(Role.WORKER) != [])
        health = await watcher.node.rpc.call(node_api.read_health, node_api.ReadHealth(), to=worker.node.id)
        assert health.ready
        text = await watcher.node.rpc.call(node_api.read_metrics, node_api.ReadMetrics(), to=worker.node.id)
        assert 'ai_platform_requests_total{method="readHealth",service="inference",status="success"} 1.0' in text.text


class _Collector:
    """A waiter for calls that the typed client would never send."""

    def __init__(self) -> None:
        self.outcome: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def received(self, message: wire.Accepted | wire.Item | wire.Reply | wire.End) -> None:
        self.outcome.set_result(message.body)

    def failed(self, error: errors.AimeshError) -> None:
        self.outcome.set_exception(error)
