"""`processInferenceRequest` with a stock NATS client (nats-py) at a real gateway: access, billing, and refusals with their reasons."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

import asyncpg
import nats
import pytest
from nats.aio.msg import Msg

from services.gateway.service import GatewayService
from services.gateway.settings import GatewaySettings
from shared import errors
from shared.api import auth, inference
from shared.api.auth import Principal
from shared.api.generation import GenerationEnd, Usage
from shared.identity import credentials
from shared.node import Node
from shared.protocol.directory import ModelOffer, WorkerLoad
from shared.rpc import RpcCall, StreamCall, serves
from shared.types import Credential, FinishReason, KeyId, ModelName, Permission, Role, Tier, UserId, UserRole
from tests.services.gateway.test_service import StandInAuth
from tests.testnet import MESH, NodeService, RunningNode, testnet, until

SUBJECT = f"aimesh.{MESH}.rpc.gateway.processInferenceRequest"
SECONDS = 30
JSON = {"content-type": "application/json"}
STREAM = {**JSON, "stream": "true"}
#: One token of the worker's answer to the prompt "large".
LARGE = "x" * 10_000
LARGE_COUNT = 200
#: A limit of this many tokens allows that much text.
LARGE_ANSWER = {"request": {"prompt": "large", "maxTokens": 8000}}


def key(letter: str) -> Credential:
    return Credential(credentials.PREFIX + letter * 43 + credentials.checksum(letter * 43))


ANY, NO_RIGHT, OTHER_MODEL, NETWORK, UNKNOWN = (key(letter) for letter in "abcde")


def person(number: int, **bounds: Any) -> Principal:
    return Principal(UserId(UUID(int=1)), "ada", UserRole.USER, Tier.FREE, KeyId(UUID(int=number)), "laptop", **bounds)


PEOPLE = {
    ANY: person(2),
    NO_RIGHT: person(3, scopes=(Permission.READ_USAGE,)),
    OTHER_MODEL: person(4, models=(ModelName("llama"),)),
    NETWORK: person(5, networks=("192.0.2.0/24",)),
}


class KeyAuth(StandInAuth):
    @serves(auth.validate_api_key)
    async def validate(self, request: auth.ValidateApiKey, _call: RpcCall) -> Principal:
        found = PEOPLE.get(request.api_key)
        if found is None:
            raise errors.NotAuthenticated("this key is unknown or was revoked", hint="ask for a new one")
        return found


class Worker(NodeService):
    role: ClassVar[Role] = Role.WORKER

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.ran = self.running = self.cancelled = 0
        node.offer(models=(ModelOffer(ModelName("smollm2"), 8192),), load=WorkerLoad(slots=4))

    @serves(inference.process_prompt)
    async def process(self, request: inference.ProcessPrompt, stream: StreamCall[inference.Chunk]) -> GenerationEnd:
        self.ran += 1
        self.running += 1
        prompt = request.prompt if isinstance(request.prompt, str) else request.prompt[-1].content
        try:
            stream.accept(inference.PromptAccepted(5))
            count = {"large": LARGE_COUNT, "endless": 10**9}.get(prompt, 2)
            for number in range(count):
                await stream.send(inference.Chunk(LARGE if prompt == "large" else ("Hello", " world")[number % 2], (number,)))
                await asyncio.sleep(0.002 if prompt == "endless" else 0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return GenerationEnd(FinishReason.STOP, Usage(5, count))

    @serves(inference.list_available_models)
    async def models(self, _request: inference.ListAvailableModels, _call: RpcCall) -> inference.AvailableModels:
        return inference.AvailableModels((STATUS,))

    @serves(inference.get_model_status)
    async def status(self, request: inference.GetModelStatus, _call: RpcCall) -> inference.ModelStatus:
        if request.model_id != STATUS.model_id:
            raise errors.UnknownModel(f"there is no model {request.model_id!r} here")
        return STATUS


STATUS = inference.ModelStatus(ModelName("smollm2"), inference.ModelState.READY, "", "echo", 2048, 4, 0, 0)


@dataclass
class StockClientHarness:
    nats: nats.NATS
    gateway: RunningNode
    worker: Worker
    database_url: str

    async def ask(self, prompt: str = "hi", credential: str | None = ANY, **more: Any) -> Msg:
        return await self.send({"request": {"prompt": prompt}, **more}, credential)

    async def send(self, body: Any, credential: str | None = ANY, headers: dict[str, str] = JSON, subject: str = SUBJECT) -> Msg:
        all_headers = headers if credential is None else {**headers, "authorization": f"Bearer {credential}"}
        return await self.nats.request(subject, json.dumps(body).encode(), headers=all_headers, timeout=SECONDS)

    async def stream(self, body: Any, credential: str = ANY) -> Any:
        inbox = self.nats.new_inbox()
        replies = await self.nats.subscribe(inbox)
        all_headers = {**STREAM, "authorization": f"Bearer {credential}"}
        await self.nats.publish(SUBJECT, json.dumps(body).encode(), reply=inbox, headers=all_headers)
        return replies

    async def read(self, body: Any) -> list[Msg]:
        replies, messages = await self.stream(body), []
        while not messages or messages[-1].headers.get("stream") == "item":
            messages.append(await replies.next_msg(SECONDS))
        await replies.unsubscribe()
        return messages

    async def rows(self, count: int = 1) -> list[tuple[Any, ...]]:
        """Return how the oldest requests ended and what they cost, once there are this many."""
        rows: list[tuple[Any, ...]] = []
        connection = await asyncpg.connect(self.database_url)
        try:
            async with asyncio.timeout(SECONDS):
                while len(rows) < count:
                    query = "SELECT status, error_code, completion_tokens, cost_micro > 0 FROM gateway.request_logs ORDER BY id"
                    rows = [tuple(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()
        return rows


@pytest.fixture
async def harness(postgres_url: str, valkey_url: str) -> AsyncIterator[StockClientHarness]:
    async with testnet() as net:
        seed = net.server.key("operator", Role.OPERATOR).read_text()
        await net.start(KeyAuth)
        worker = await net.start(Worker)
        settings = GatewaySettings(
            mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("gateway", Role.GATEWAY), database_url=postgres_url,
            redis_url=valkey_url, prompt_hash_secret="s" * 32, response_cache="off",
            tier_free={"requests_per_minute": "unlimited", "concurrency": "2"},
        )  # fmt: skip
        running = await net.start(GatewayService, settings)
        directory = running.node.directory
        await until(lambda: directory.usable(Role.WORKER) and directory.usable(Role.AUTH))
        connection = await nats.connect(net.server.url, nkeys_seed_str=seed, allow_reconnect=False)
        assert isinstance(worker.service, Worker)
        yield StockClientHarness(connection, running, worker.service, postgres_url)
        await connection.close()


def problem(message: Msg) -> tuple[str, str]:
    """Return an error's code and message."""
    assert message.headers is not None
    assert "Nats-Service-Error-Code" in message.headers, message.data
    return json.loads(message.data)["error"]["code"], message.headers["Nats-Service-Error"]


# --- access -------------------------------------------------------------------------------------------------------------


async def test_the_key_may_be_in_the_header_or_in_auth_or_in_both(harness: StockClientHarness) -> None:
    answers = [
        await harness.ask(),
        await harness.ask(credential=None, auth={"apiKey": ANY}),
        await harness.ask(auth={"apiKey": ANY}),
    ]
    assert [json.loads(answer.data)["text"] for answer in answers] == ["Hello world"] * 3
    assert await harness.rows(3) == [("success", None, 2, True)] * 3


@pytest.mark.parametrize(
    ("credential", "more", "refusal"),
    [
        pytest.param(None, {}, ("not_authenticated", "no credential"), id="no key"),
        pytest.param(UNKNOWN, {}, ("not_authenticated", "this key is unknown or was revoked"), id="a wrong key"),
        pytest.param(None, {"auth": {"apiKey": UNKNOWN}}, ("not_authenticated", "this key is unknown or was revoked"), id="in auth"),
        pytest.param(
            NO_RIGHT,
            {},
            ("not_allowed", "the key 'laptop' lacks the scope inference:execute"),
            id="a key without the scope",
        ),
        pytest.param(OTHER_MODEL, {}, ("not_allowed", "this key may not use smollm2"), id="a key for other models"),
        pytest.param(
            NETWORK,
            {},
            ("not_allowed", "this key is bound to networks, but this connection shows no address"),
            id="a key bound to networks",
        ),
        pytest.param(
            ANY,
            {"auth": {"apiKey": UNKNOWN}},
            ("bad_request", "the call has two different credentials: one in `auth`, one in its header or in `hello`"),
            id="two keys",
        ),
        pytest.param(
            ANY, {"rest": {"after": 1}}, ("bad_request", "rest requires a stream; omit it to get the whole answer"), id="the rest"
        ),
    ],
)
async def test_a_refusal_gives_its_reason(harness: StockClientHarness, credential: str | None, more: Any, refusal: tuple[str, str]) -> None:
    code, words = problem(await harness.ask(credential=credential, **more))
    assert (code, words[: len(refusal[1])]) == refusal
    assert harness.worker.ran == 0


async def test_a_too_large_prompt_is_refused_with_its_size(harness: StockClientHarness) -> None:
    code, words = problem(await harness.ask("x" * 1_000_000))
    assert code == "context_length_exceeded"
    assert words.startswith("prompt is too long: 333349 tokens > 8191 maximum")


# --- billing ------------------------------------------------------------------------------------------------------------


async def test_a_stream_is_billed_once(harness: StockClientHarness) -> None:
    *items, end = await harness.read({"request": {"prompt": "hi"}})
    assert "".join(json.loads(item.data)["text"] for item in items) == "Hello world"
    assert json.loads(end.data)["usage"] == {"promptTokens": 5, "completionTokens": 2, "cachedTokens": 0, "reasoningTokens": 0}
    assert await harness.rows() == [("success", None, 2, True)]
    whole = json.loads((await harness.ask()).data)
    assert whole["costMicro"] == json.loads(end.data)["costMicro"] > 0
    assert len(await harness.rows(2)) == 2


@pytest.mark.parametrize(
    ("more", "ended"),
    [
        pytest.param({}, ("rejected", "too_large", False), id="without a key nobody can read it"),
        pytest.param({"idempotencyKey": "once"}, ("cancelled", "cancelled", True), id="a stream of the same key may have read it"),
    ],
)
async def test_an_answer_that_is_too_large_is_canceled(harness: StockClientHarness, more: Any, ended: Any) -> None:
    body = {**LARGE_ANSWER, **more}
    assert problem(await harness.send(body))[0] == "too_large"
    await until(lambda: harness.worker.running == 0, seconds=SECONDS)
    [(status, code, tokens, is_paid)] = await harness.rows()
    assert (status, code, is_paid) == ended
    assert 0 < tokens < LARGE_COUNT
    *items, end = await harness.read(body)
    assert "".join(json.loads(item.data)["text"] for item in items) == LARGE * LARGE_COUNT
    assert end.headers["stream"] == "end"
    assert (await harness.rows(2))[1] == ("success", None, LARGE_COUNT, True)


async def test_a_caller_that_disconnects_frees_its_slots_and_pays_for_what_it_got(harness: StockClientHarness) -> None:
    """Two requests at once are allowed, so the third would be refused if a slot were lost."""
    running = [await harness.stream({"request": {"prompt": "endless"}}) for _ in range(2)]
    for replies in running:
        await replies.next_msg(SECONDS)
    code, _ = problem(await harness.ask())
    assert code == "rate_limited"
    for replies in running:
        await replies.unsubscribe()
    await until(lambda: harness.worker.cancelled == 2, seconds=SECONDS)
    rows = await harness.rows(3)
    assert [(status, is_paid) for status, _, tokens, is_paid in rows if tokens] == [("cancelled", True)] * 2
    answers = await asyncio.gather(harness.ask(), harness.ask())
    assert [json.loads(answer.data)["text"] for answer in answers] == ["Hello world"] * 2
    assert harness.gateway.node.dispatcher.running == 0


# --- subject names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["worker", "inference"])
async def test_models_are_also_listed_under_the_service_name(harness: StockClientHarness, service: str) -> None:
    subject = f"aimesh.{MESH}.rpc.{service}"
    listed = await harness.send({}, None, subject=f"{subject}.listAvailableModels")
    assert [model["modelId"] for model in json.loads(listed.data)["models"]] == ["smollm2"]
    status = await harness.send({"modelId": "smollm2"}, None, subject=f"{subject}.getModelStatus")
    assert json.loads(status.data)["state"] == "ready"
    assert problem(await harness.send({"modelId": "x"}, None, subject=f"{subject}.getModelStatus"))[0] == "unknown_model"
    prompt = await harness.send({"prompt": "hi"}, None, subject=f"{subject}.processPrompt")
    assert problem(prompt) == ("wrong_role", "a operator may not call inference.processPrompt")
