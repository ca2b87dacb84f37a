"""GET /api/models and /api/models/search, with the models of the source documents."""

from pathlib import Path

import httpx
import pytest

from services.gateway.http_api.http_app import HttpAccess, HttpApp
from services.gateway.http_api.rest_models import RestModels
from services.gateway.models import catalog
from services.gateway.rpc_api.model_search_rpc import ModelSearch
from services.inference.models import models_file
from services.inference.models.catalog import Defaults
from shared.api.auth import Principal
from shared.api.gateway import ServedModels
from shared.rpc.audit_reporting import AuditReporting
from tests.services.gateway.fakes import RunningService, node_id
from tests.services.gateway.http_answers import BEARER, problem
from tests.services.inference.models.test_models_file import INFERENCE_BLOCK, REGISTRY


@pytest.fixture
def http(running_service: RunningService) -> httpx.AsyncClient:
    service = running_service

    def list_models(caller: Principal) -> ServedModels:
        return ServedModels(service._served(caller))

    search = ModelSearch(service, service.rpc, service.directory, None, service._served, AuditReporting(service.rpc), catalog.load())  # type: ignore[arg-type]
    access = HttpAccess(identify=service.callers.identify, quotas=service.quotas)
    app = HttpApp(RestModels(search, list_models, node_id(99)).routes(), access, service.metrics, memory=service.memory)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", headers=BEARER)


@pytest.mark.parametrize(("text", "names"), [(REGISTRY, ["embeddings", "llm-gptq"]), (INFERENCE_BLOCK, ["llama-2-7b", "mistral-7b"])])
async def test_the_models_of_the_documents_are_listed(
    http: httpx.AsyncClient, running_service: RunningService, text: str, names: list[str]
) -> None:
    reading = models_file.read(text, source="models.yaml", folder=Path(), found={}, defaults=Defaults())
    running_service.add_worker(2, running_service.worker, *(model.name for model in (*reading.entries, *reading.elsewhere)))
    listed = (await http.get("/api/models")).json()["models"]
    assert sorted(model["name"] for model in listed) == sorted([*names, "smollm2"])
    assert {model["workers"] for model in listed} == {1}


async def test_a_search_is_what_the_method_finds(http: httpx.AsyncClient) -> None:
    found = (await http.get("/api/models/search", params={"text": "smollm2", "fits": "true"})).json()
    (row,) = found["models"]
    assert (row["name"], row["isServed"], row["model"]["source"]) == ("smollm2", True, catalog.load()["smollm2"].source)
    assert [fit["fit"] for fit in row["fits"]] == ["unknown"], "the fake worker has no such method"
    assert found["notes"] == []
    assert len((await http.get("/api/models/search?limit=3")).json()["models"]) == 3


async def test_a_search_needs_a_key_and_sound_numbers(http: httpx.AsyncClient) -> None:
    problem(await http.get("/api/models/search", headers={"authorization": ""}), 401, "not_authenticated")
    problem(await http.get("/api/models", headers={"authorization": ""}), 401, "not_authenticated")
    problem(await http.get("/api/models/search?limit=51"), 400, "bad_request")
    problem(await http.get("/api/models/search?txt=a"), 400, "bad_request")
    problem(await http.get("/api/models/search", params={"text": "a" * 101}), 400, "bad_request")
