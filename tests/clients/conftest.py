"""The stack of these tests, with the default model and the scripted one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from tests import echo_stack, replicas, stacks
from tests.clients import scripted_model
from tests.services.inference import fake_http
from tests.stacks import RunningStack, until

#: Without limits per minute, which would slow the checks down; the key belongs to the administrator. The checks get webhooks.
VARIABLES = dict.fromkeys(("TIER_PRO", "TIER_ENTERPRISE"), echo_stack.WITHIN_A_MINUTE) | {"WEBHOOK_ALLOWED_HOSTS": "127.0.0.0/8"}
_shared = stacks.OfFolders((Path(__file__).parent,), **VARIABLES)
_UPSTREAMS = f"""\
[script]
url = "{{url}}/v1"
# It passes every parameter on.
dialect = "vllm"
only_models = ["{scripted_model.MODEL}"]
images = true
reasoning = true
tools = true

[judge]
url = "{{url}}/v1"
task = "moderation"
only_models = ["{scripted_model.JUDGE}"]
"""
_ROUTES = f"routes: {{moderation: {{targets: [{{name: judge, model: {scripted_model.JUDGE}, task: moderation}}]}}}}\n"


@pytest.fixture(scope="module")
def plain_stack(pytestconfig: pytest.Config) -> RunningStack:
    return _shared.get(pytestconfig)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(plain_stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningStack]:
    async with scripted(plain_stack, tmp_path_factory.mktemp("scripted")):
        yield plain_stack


@asynccontextmanager
async def scripted(stack: RunningStack, folder: Path) -> AsyncIterator[None]:
    """Add a worker with the scripted models."""
    async with fake_http.serving(scripted_model.answers()) as upstream:
        (folder / "upstreams.toml").write_text(_UPSTREAMS.format(url=upstream.url), encoding="utf-8")
        settings = {"INFERENCE_BACKEND": "openai", "OPENAI_UPSTREAMS": str(folder / "upstreams.toml")}
        async with replicas.replica(stack, "inference", folder=folder, name="scripted", settings=settings) as worker:
            await worker.ready()
            (folder / "routes.yaml").write_text(_ROUTES, encoding="utf-8")
            applied = await stack.aicli("admin", "config", "apply", "-f", str(folder / "routes.yaml"))
            assert applied.status == 0, applied.err

            async def are_served() -> bool:
                async with stack.http(stack.api_key) as http:
                    listed = (await http.get("/v1/models")).json()["data"]
                routes = (await stack.aicli("admin", "routes", "list", "--json")).json()
                return any(model["id"] == scripted_model.MODEL for model in listed) and any(
                    target["workers"] for route in routes for target in route["targets"]
                )

            await until(are_served, seconds=60, what="the gateway sees the scripted models")
            yield


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    # After the fixtures of modules, whose worker leaves the running stack.
    _shared.leave(nextitem)
