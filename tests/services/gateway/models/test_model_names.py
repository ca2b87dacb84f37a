"""Two whole gateways: whose the name of a pushed model is, and what else may have it."""

import httpx
import msgspec
import pytest

from shared import errors
from shared.api import configuration, deployments, models
from shared.api.configuration import ConfigDocument
from shared.config_documents import ConfigKind, DeploymentDocument, Document, RouteDocument, TargetDocument
from shared.types import ModelName
from tests.services.gateway.http_answers import problem
from tests.services.gateway.models import registries, test_pushed_models
from tests.services.gateway.models.registries import DEVELOPER, Push, push_of
from tests.services.gateway.models.test_pushed_models import KEYS, Site, push, upload
from tests.services.gateway.test_service import StandInWorker
from tests.testnet import until

site = test_pushed_models.site
BOT = "companybot"
MODEL = push_of({"a": registries.small(5)})


async def apply(site: Site, kind: ConfigKind, name: str, body: Document) -> None:
    document = ConfigDocument(kind, name, msgspec.json.encode(body).decode())
    request = configuration.ApplyConfig(documents=(document,))
    await site.client.rpc.call(configuration.apply_config, request, credential=KEYS["admin"], to=site.gateways[0].node.id)


async def complete(site: Site, who: str, model: str, made: Push = MODEL, query: str = "") -> httpx.Response:
    """Upload a version and make it, at the other gateway than the one that changes the configuration."""
    async with site.http(1, who) as http:
        for data in made.blobs.values():
            await upload(http, data)
        return await http.post(f"/api/models/{model}/versions{query}", content=made.manifest)


async def begin(site: Site, who: str, model: str) -> None:
    """Ask what `aicli models push` asks before it reads the files."""
    request = models.FindModelBlobs((), ModelName(model))
    await site.client.rpc.call(models.find_model_blobs, request, credential=KEYS[who], to=site.gateways[1].node.id)


async def add_worker(site: Site) -> None:
    """Let a worker serve a model that nobody has pushed."""
    worker = (await site.net.start(StandInWorker)).node.id
    for running in site.gateways:
        directory = running.node.directory
        await until(lambda: (entry := directory.find(worker)) is not None and bool(entry.announcement.models))  # noqa: B023


async def test_an_administrator_does_not_push_to_a_tenants_model_by_accident(site: Site) -> None:
    await push(site, "dev", MODEL, BOT)
    ours = push_of({"a": registries.small(6)})
    refused = problem(await complete(site, "admin", BOT, ours), 409, "already_exists")
    assert f"{BOT} is a model of the organization or account {DEVELOPER.team_id}" in refused["message"]
    with pytest.raises(errors.AlreadyExists, match="is a model of the organization"):
        await begin(site, "admin", BOT)
    made = await complete(site, "admin", BOT, ours, f"?organization={DEVELOPER.team_id}")
    assert (made.json()["version"], made.json()["organization"]) == (2, str(DEVELOPER.team_id))
    await push(site, "admin", MODEL, "ours")
    problem(await complete(site, "admin", "ours", ours, f"?organization={DEVELOPER.team_id}"), 409, "already_exists")


async def test_a_deployment_of_a_tenants_model_names_the_tenant(site: Site) -> None:
    await push(site, "dev", MODEL, BOT)
    async with site.http(0, "dev") as http:
        assert (await http.post(f"/api/models/{BOT}/promote", json={})).status_code == 200

    async def deploy(document: DeploymentDocument, name: str = BOT) -> None:
        request = deployments.DeployModel(name, document)
        await site.client.rpc.call(deployments.deploy_model, request, credential=KEYS["admin"])

    for name in (BOT, f"{BOT}@stable", f"{BOT}@1"):
        with pytest.raises(errors.AlreadyExists, match=f"is a model of the organization or account {DEVELOPER.team_id}"):
            await deploy(DeploymentDocument(), name)
    # Nor through the configuration.
    await apply(site, ConfigKind.DEPLOYMENT, BOT, DeploymentDocument())
    listing = deployments.ListDeployments(ModelName(BOT))
    asked = site.client.rpc.call(deployments.list_deployments, listing, credential=KEYS["admin"], to=site.gateways[0].node.id)
    (found,) = (await asked).deployments
    assert (found.copies, found.problem) == (
        (), f"{BOT} is a model of the organization or account {DEVELOPER.team_id}, and its deployment names another one"
    )  # fmt: skip
    await deploy(DeploymentDocument(organization=DEVELOPER.team_id))
    await push(site, "admin", MODEL, "ours")
    async with site.http(0, "admin") as http:
        await http.post("/api/models/ours/promote", json={})
    with pytest.raises(errors.AlreadyExists, match="ours is a model of the mesh"):
        await deploy(DeploymentDocument(organization=DEVELOPER.team_id), "ours")
    await deploy(DeploymentDocument(), "ours")


async def test_tenants_cannot_take_names_that_the_mesh_uses(site: Site) -> None:
    one, two = TargetDocument(name="one", model="other", share=50), TargetDocument(name="two", model="third", share=50)
    await apply(site, ConfigKind.ROUTE, "routed", RouteDocument(targets=(one, two)))
    await apply(site, ConfigKind.ROUTE, "gpt-*", RouteDocument(targets=(one, two)))
    await apply(site, ConfigKind.ROUTE, "alias", RouteDocument(targets=(TargetDocument(name="only", model="smollm2"),)))
    await apply(site, ConfigKind.DEPLOYMENT, "deployed", DeploymentDocument(source="hf:org/deployed", paused=True))
    await apply(site, ConfigKind.DEPLOYMENT, "versioned@canary", DeploymentDocument(paused=True))
    await add_worker(site)
    for name, reason in {
        "smollm2": "a worker serves a model with this name",
        "routed": "is a route",
        "gpt-5": "the route gpt-* has it",
        "alias": "alias is an alias of smollm2",
        "deployed": "it is deployed",
        "versioned": "it is deployed",
    }.items():
        refused = problem(await complete(site, "dev", name), 409, "already_exists")
        assert reason in refused["message"], name
        with pytest.raises(errors.AlreadyExists):
            await begin(site, "dev", name)
    # A tenant's own model stays the tenant's.
    await push(site, "dev", MODEL, "mine")
    await apply(site, ConfigKind.DEPLOYMENT, "mine", DeploymentDocument(paused=True))
    assert (await complete(site, "dev", "mine", push_of({"a": registries.small(6)}))).json()["version"] == 2
    # Administrators may.
    assert (await complete(site, "admin", "deployed")).status_code == 200
    assert (await complete(site, "admin", "gpt-5")).status_code == 200


async def test_a_name_that_an_alias_hides_is_refused_with_the_reason(site: Site) -> None:
    await apply(site, ConfigKind.ROUTE, "llama3", RouteDocument(targets=(TargetDocument(name="only", model="smollm2"),)))
    for who in ("admin", "dev"):
        refused = problem(await complete(site, who, "llama3"), 409, "already_exists")
        assert "requests for llama3 would not get what you push: llama3 is an alias of smollm2" in refused["message"]
        with pytest.raises(errors.AlreadyExists, match="would not get what you push"):
            await begin(site, who, "llama3")
    # An alias of one of its versions hides nothing.
    await push(site, "admin", MODEL, "pinned")
    await apply(site, ConfigKind.ROUTE, "pinned", RouteDocument(targets=(TargetDocument(name="only", model="pinned@1"),)))
    assert (await complete(site, "admin", "pinned", push_of({"a": registries.small(6)}))).json()["version"] == 2


async def test_an_answer_says_which_version_has_served_it(site: Site) -> None:
    await push(site, "admin", MODEL, "llama3")
    await add_worker(site)
    async with site.http(0, "admin") as http:
        await http.post("/api/models/llama3/promote", json={})
    await site.reads(lambda names: "llama3@stable" in names.aliases)
    async with site.http(0, "dev") as http:
        for name in ("llama3", "llama3@stable", "llama3@1"):
            for stream in (False, True):
                body = {"model": name, "stream": stream, "messages": [{"role": "user", "content": "hi"}]}
                answer = await http.post("/v1/chat/completions", json=body)
                assert (answer.status_code, answer.headers["x-aimesh-version"]) == (200, "llama3@1")
        other = await http.post("/v1/chat/completions", json={"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]})
        assert (other.status_code, "x-aimesh-version" in other.headers) == (200, False)
