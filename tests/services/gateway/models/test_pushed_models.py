"""Two whole gateways: uploads over HTTP, one of them killed, and requests by every name of a version."""

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import httpx
import msgspec
import pytest

from cli.ask import blob_transfers, model_versions
from cli.connection import MeshConnection
from cli.output.progress_line import ProgressLine
from cli.profile import Profile
from services.gateway.service import GatewayService
from services.gateway.settings import GatewaySettings
from shared import errors
from shared.api import auth, gateway, membership, model_copies, models
from shared.api.gateway import HttpRequest, InferenceRequest, ProcessInferenceRequest
from shared.models import manifest, trust_bundle
from shared.node import Node
from shared.node.client_node import ClientNode
from shared.protocol.directory import ModelOffer, WorkerLoad
from shared.rpc import RpcCall, serves
from shared.types import Credential, ModelName, NodeId, Peer, Role
from tests.services.gateway.http_answers import problem
from tests.services.gateway.models import registries
from tests.services.gateway.models.registries import ADMIN, DEVELOPER, PIECE, STRANGER, Push, push_of
from tests.services.gateway.test_service import StandInAuth, StandInWorker
from tests.shared.models.publishers import Publisher
from tests.testnet import MESH, RunningNode, TestNet, testnet, until

PEOPLE = {"admin": ADMIN, "dev": DEVELOPER, "eve": STRANGER}
KEYS = {name: Credential(f"{name}.eyJleHAiOjk5OTk5OTk5OTl9.x") for name in PEOPLE}


class Auth(StandInAuth):
    #: What the owners of machines may read.
    machines: ClassVar[dict[NodeId, membership.Machine]] = {}

    @serves(membership.describe_machine)
    async def describe(self, request: membership.DescribeMachine, _call: RpcCall) -> membership.Machine:
        return self.machines.get(request.node, membership.Machine())

    @serves(auth.identify)
    async def identify(self, request: auth.Identify, _call: RpcCall) -> auth.Principal:
        return PEOPLE[request.credential.partition(".")[0]]


class Worker(StandInWorker):
    def __init__(self, node: Node) -> None:
        super().__init__(node)
        served = ("llama3@1", "llama3@2", "acme@1")
        node.offer(models=tuple(ModelOffer(ModelName(name), 2048) for name in served), load=WorkerLoad(slots=4))


@dataclass
class Site:
    net: TestNet
    settings: GatewaySettings
    gateways: list[RunningNode]
    client: ClientNode

    def http(self, number: int, who: str) -> httpx.AsyncClient:
        asgi = self.gateways[number].service.asgi()
        assert asgi is not None
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(asgi), base_url="http://gateway", headers={"authorization": f"Bearer {KEYS[who]}"}
        )

    async def ask(self, model: str, who: str = "dev") -> str:
        request = ProcessInferenceRequest(InferenceRequest(prompt="hi", model=ModelName(model)), fresh=True)
        async with self.client.rpc.stream(gateway.process_inference_request, request, credential=KEYS[who]) as answer:
            assert "".join([chunk.text async for chunk in answer]) == "Hello world"
        return answer.end.model

    async def reads(self, condition: Any) -> None:
        """Wait until both gateways have read a change."""
        await until(lambda: all(condition(each.service.parts.scheduling.live.config.names) for each in self.gateways), seconds=10)  # type: ignore[attr-defined]


@pytest.fixture
async def site(postgres_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    async with testnet() as net:
        settings = GatewaySettings(
            mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("gateway", Role.GATEWAY), database_url=postgres_url,
            redis_url=valkey_url, prompt_hash_secret="s" * 32, model_origin=str(tmp_path / "origin"), model_aliases={},
        )  # fmt: skip
        await net.start(Auth)
        await net.start(Worker)
        second = msgspec.structs.replace(settings, node_key_file=net.server.key("other", Role.GATEWAY))
        gateways = [await net.start(GatewayService, each) for each in (settings, second)]
        client = await net.client()
        for running in gateways:
            directory = running.node.directory
            await until(lambda: directory.usable(Role.WORKER) and directory.usable(Role.AUTH))  # noqa: B023
        await until(lambda: len(client.directory.usable(Role.GATEWAY)) == 2)
        yield Site(net, settings, gateways, client)


async def upload(http: httpx.AsyncClient, data: bytes, *, start: int = 0, until_byte: int | None = None) -> httpx.Response | None:
    answer = None
    for at in range(start, until_byte or len(data), PIECE):
        piece = data[at : at + PIECE]
        headers = {"content-range": f"bytes {at}-{at + len(piece) - 1}/{len(data)}"}
        answer = await http.patch(f"/api/models/blobs/{manifest.digest_of(data)}", content=piece, headers=headers)
        assert answer.status_code in (200, 202), answer.text
    return answer


async def push(site: Site, who: str, push: Push, model: str) -> dict[str, Any]:
    async with site.http(0, who) as http:
        for digest, data in push.blobs.items():
            await upload(http, data)
            await _wait(http, digest)
        made = await http.post(f"/api/models/{model}/versions", content=push.manifest)
        assert made.status_code == 200, made.text
        while (found := (await http.get(f"/api/models/{model}/versions")).json()["versions"][0])["state"] == "checking":
            pass
        return dict(found)


async def _wait(http: httpx.AsyncClient, digest: str) -> None:
    while (await http.head(f"/api/models/blobs/{digest}")).status_code == 202:
        pass


async def test_an_upload_goes_on_at_the_other_gateway_when_one_is_killed(site: Site, tmp_path: Path) -> None:
    model = registries.gguf(tmp_path)
    made, blob = push_of({"model.gguf": model}), f"/api/models/blobs/{manifest.digest_of(model)}"
    async with site.http(0, "admin") as http:
        assert (await http.head(blob)).status_code == 404
        answer = await upload(http, model, until_byte=PIECE)
        assert answer is not None
        assert (answer.status_code, answer.headers["upload-offset"]) == (202, str(PIECE))
    await site.gateways.pop(0).cut()
    async with site.http(0, "admin") as http:
        found = await http.head(blob)
        assert (found.status_code, found.headers["upload-offset"]) == (202, str(PIECE))
        # Not a piece, and not the next one.
        problem(await http.patch(blob, content=b"x", headers={"content-range": "bytes 0-5/9"}), 400, "bad_request")
        problem(await http.patch(blob, content=bytes(17 << 20), headers={"content-range": "bytes 0-17825791/17825792"}), 413, "too_large")
        rest = model[PIECE : 2 * PIECE]
        ahead = {"content-range": f"bytes {2 * PIECE}-{3 * PIECE - 1}/{9 * PIECE}"}
        problem(await http.patch(blob, content=rest, headers=ahead), 409, "already_exists")
        await upload(http, model, start=PIECE)
        await _wait(http, manifest.digest_of(model))
    version = await push(site, "admin", made, "llama3")
    assert (version["version"], version["state"], version["digest"]) == (1, "ready", made.digest)


async def test_every_name_of_a_version_works_in_requests(site: Site) -> None:
    versions = [await push(site, "admin", push_of({"a": registries.small(seed)}), "llama3") for seed in (1, 2)]
    async with site.http(1, "admin") as http:
        promoted = await http.post("/api/models/llama3/promote", json={"version": 1})
        assert promoted.json()["channels"] == ["stable"]
        canary = await http.post("/api/models/llama3/promote", json={"channel": "canary"})
        assert (canary.json()["version"], canary.json()["channels"]) == (2, ["canary"])
    await site.reads(lambda names: "llama3@canary" in names.aliases and f"llama3@{versions[1]['digest']}" in names.aliases)
    asked = ("llama3", "llama3@stable", "llama3@canary", "llama3@1", f"llama3@{versions[1]['digest']}")
    assert [await site.ask(name) for name in asked] == ["llama3", "llama3@stable", "llama3@canary", "llama3@1", "llama3@2"]
    listed = (await site.client.rpc.call(gateway.list_models, gateway.ListModels(), credential=KEYS["dev"])).models
    assert {model.name: set(model.aliases) for model in listed if model.name != "acme@1"} == {
        "llama3@1": {"llama3", "llama3@stable"},
        "llama3@2": {"llama3@canary"},
    }
    # Back, and to the other.
    async with site.http(0, "admin") as http:
        await http.post("/api/models/llama3/promote", json={"version": 2})
        rolled = await http.post("/api/models/llama3/rollback", json={})
        assert rolled.json()["version"] == 1
        problem(await http.post("/api/models/llama3/promote", json={"version": 9}), 404, "not_found")
        problem(await http.post("/api/models/llama3/retire", json={"version": 1}), 409, "already_exists")


async def test_a_model_of_an_organization_answers_only_it(site: Site) -> None:
    version = await push(site, "dev", push_of({"a": registries.small(7)}), "acme")
    async with site.http(0, "dev") as http:
        assert (await http.post("/api/models/acme/promote", json={})).json()["organization"] == str(DEVELOPER.team_id)
    await site.reads(lambda names: "acme" in names.aliases)
    assert [await site.ask(name) for name in ("acme", "acme@1")] == ["acme", "acme@1"]
    for name in ("acme", "acme@1", "acme@stable", f"acme@{version['digest']}"):
        with pytest.raises(errors.UnknownModel, match="no worker serves") as refused:
            await site.ask(name, "eve")
        assert "acme@1" not in refused.value.message.partition("served models:")[2]
    names = {}
    for who in ("dev", "eve"):
        async with site.http(1, who) as http:
            names[who] = {model["id"] for model in (await http.get("/v1/models")).json()["data"]}
            listed = await http.get("/api/models/acme/versions")
            assert listed.status_code == (200 if who == "dev" else 404)
    assert {name for name in names["dev"] if name.startswith("acme")} >= {"acme@1"}
    assert not {name for name in names["eve"] if name.startswith("acme")}
    health = await site.client.rpc.call(gateway.get_service_health, gateway.GetServiceHealth())
    assert "acme@1" not in health.models


async def test_bad_manifests_are_refused_within_bounds(site: Site) -> None:
    """What `shared.models.manifest` refuses; here: over HTTP and by RPC, before anything is read."""
    good = push_of({"a": registries.small()})
    cases = {
        "dot dot": good.manifest.replace(b'"a"', b'"../a"'),
        "absolute": good.manifest.replace(b'"a"', b'"/etc/passwd"'),
        "case twins": push_of({"a": registries.small(1), "A": registries.small(2)}).manifest,
        "a million layers": good.manifest.replace(b'"layers":[', b'"layers":[' + b'{"mediaType":"a","digest":"b","size":1},' * 50_000),
        "sparse file of 4 TiB": good.manifest.replace(b'"size":1000', b'"size":%d' % (5 << 40)),
        "deep": b'{"layers":' + b"[" * 100_000,
        "no JSON": b"\xff" * 1000,
    }
    async with site.http(0, "dev") as http:
        for name, body in cases.items():
            answer = await http.post("/api/models/bad/versions", content=body)
            assert answer.status_code == 400, (name, answer.text)
        answer = await http.post("/api/models/bad/versions", content=b"x", headers={"content-length": str(1 << 30)})
        problem(answer, 413, "too_large")
        for name in ("..", "a@b", "x" * 81):
            assert (await http.post(f"/api/models/{name}/versions", content=good.manifest)).status_code in (400, 404)


async def test_versions_are_downloaded_in_pieces_by_whoever_sees_them(site: Site, tmp_path: Path) -> None:
    model = registries.gguf(tmp_path)
    made = push_of({"model.gguf": model})
    version = await push(site, "dev", made, "acme")
    blob = f"/api/models/blobs/{manifest.digest_of(model)}"
    async with site.http(1, "dev") as http:
        parts = [await http.get(blob, headers={"range": f"bytes={at}-{at + PIECE - 1}"}) for at in range(0, len(model), PIECE)]
        assert [part.status_code for part in parts] == [206] * len(parts)
        assert b"".join(part.content for part in parts) == model
        assert parts[-1].headers["content-range"] == f"bytes {len(model) // PIECE * PIECE}-{len(model) - 1}/{len(model)}"
        whole = await http.get(f"/api/models/blobs/{version['digest']}", headers={"range": "bytes=0-4194303"})
        assert whole.content == made.manifest
        for wrong in ("", "bytes=0-", "bytes=5-4", f"bytes=0-{16 << 20}", f"bytes={len(model)}-{len(model) + 5}", "bytes=0-1,4-5"):
            problem(await http.get(blob, headers={"range": wrong}), 400, "bad_request")
        problem(await http.get(f"/api/models/blobs/sha256:{'0' * 64}", headers={"range": "bytes=0-5"}), 404, "not_found")
    async with site.http(0, "eve") as http:
        problem(await http.get(blob, headers={"range": "bytes=0-5"}), 404, "not_found")
    async with site.http(0, "admin") as http:
        assert (await http.get(blob, headers={"range": "bytes=0-5"})).content == model[:6]
        await http.post("/api/models/acme/revoke", json={"version": 1, "reason": "wrong"})
        problem(await http.get(blob, headers={"range": "bytes=0-5"}), 404, "not_found")


async def test_signatures_are_kept_and_shown_over_http(site: Site, tmp_path: Path) -> None:
    made, publisher = push_of({"model.gguf": registries.gguf(tmp_path)}), Publisher()
    version = await push(site, "dev", made, "acme")
    signature = base64.b64encode(publisher.sign(version["digest"])).decode()
    async with site.http(0, "dev") as http:
        signed = await http.post("/api/models/acme/sign", json={"version": 1, "signature": signature})
        assert signed.json()["signedBy"] == [trust_bundle.fingerprint(publisher.key.public_key())]
        for query in ("", "?version=1"):
            shown = (await http.get(f"/api/models/acme/trust{query}")).json()
            assert shown["rules"] == {}
            assert base64.b64decode(shown["manifest"]) == made.manifest
            assert shown["signatures"] == [signature]
        other = base64.b64encode(publisher.sign(manifest.digest_of(b"other"))).decode()
        for wrong in (other, base64.b64encode(b"{}").decode(), "*", ""):
            problem(await http.post("/api/models/acme/sign", json={"version": 1, "signature": wrong}), 400, "bad_request")
        problem(await http.post("/api/models/acme/sign", json={"version": 2, "signature": signature}), 404, "not_found")
        problem(await http.get("/api/models/acme/trust?version=2"), 404, "not_found")
        problem(await http.get("/api/models/acme/trust?versions=1"), 400, "bad_request")
    async with site.http(0, "eve") as http:
        problem(await http.post("/api/models/acme/sign", json={"version": 1, "signature": signature}), 404, "not_found")
        problem(await http.get("/api/models/acme/trust"), 404, "not_found")


async def test_blobs_are_uploaded_over_the_mesh_and_read_by_workers_only_of_versions(site: Site) -> None:
    made = push_of({"a": registries.small(3)})
    digest, data = manifest.digest_of(registries.small(3)), registries.small(3)
    headers = ((b"content-range", b"bytes 0-%d/%d" % (len(data) - 1, len(data))),)
    request = HttpRequest("PATCH", f"/api/models/blobs/{digest}", headers=headers, body=data)
    async with site.client.rpc.stream(gateway.serve_http, request, credential=KEYS["admin"]) as parts:
        assert [part.status async for part in parts if part.status] == [200]
    read = model_copies.ReadBlob(digest, 10, 5)
    registry = site.gateways[0].service.parts.models.registry  # type: ignore[attr-defined]

    class Stream:
        caller = Peer(Role.WORKER, NodeId("U"))
        items: ClassVar[list[bytes]] = []

        async def send(self, part: model_copies.BlobPart) -> None:
            self.items.append(part.data)

    with pytest.raises(errors.NotFound, match="no version has"):
        await registry.read_blob(read, Stream())
    assert await registry.find_size(digest) is None
    await push(site, "admin", made, "other")
    assert await registry.find_size(digest) == len(data)
    await registry.read_blob(read, Stream())
    assert b"".join(Stream.items) == data[10:15]


async def test_aicli_pushes_over_the_mesh(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(registries.gguf(tmp_path))
    connection = MeshConnection(site.client, Profile(mesh=MESH, api_key=KEYS["admin"]))
    show = ProgressLine()
    data, blobs = model_versions._describe(tmp_path, file.name, manifest.Statement(), show)
    await blob_transfers.upload(connection, blobs, show)
    request = models.CompleteModelVersion(ModelName("pushed"), data)
    made = await connection.call(models.complete_model_version, request)
    async with site.http(0, "admin") as http:
        while (found := (await http.get("/api/models/pushed/versions")).json()["versions"][0])["state"] == "checking":
            pass
    assert (found["state"], found["digest"], found["facts"]["architecture"]) == ("ready", made.digest, "llama")
