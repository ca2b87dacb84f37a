"""Programs of others read what we write, and we read what they write: skopeo copies a version into Debian's registry and back."""

import asyncio
from pathlib import Path

import pytest

from cli.ask import blob_transfers, model_images, model_versions
from cli.connection import MeshConnection
from cli.output.progress_line import ProgressLine
from cli.profile import Profile
from services.inference.models import store_program
from shared.api import models
from shared.api.inference import StoreRequest
from shared.models import manifest
from shared.models.manifest import Statement
from shared.types import ModelName
from tests import capabilities
from tests.services.gateway.models import registries
from tests.services.gateway.models.registries import push_of
from tests.services.gateway.models.test_pushed_models import KEYS, MESH, Site, push, site  # noqa: F401 - a fixture
from tests.services.inference.models.test_registry import registry
from tests.testnet import until

pytestmark = pytest.mark.nightly("clients")


def contents(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in (folder / "blobs" / "sha256").iterdir()}


async def skopeo(*words: str) -> None:
    program = capabilities.find_program("skopeo")
    assert program is not None
    process = await asyncio.create_subprocess_exec(program, "--insecure-policy", *words, stderr=asyncio.subprocess.PIPE)
    _, problem = await process.communicate()
    assert process.returncode == 0, problem.decode()


async def test_skopeo_copies_our_version_to_a_registry_and_back(site: Site, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    capabilities.require("registry")
    capabilities.require("skopeo")
    model = registries.gguf(tmp_path)
    made = push_of({"model.gguf": model, "LICENSE": b"MIT"}, license="MIT")
    await push(site, "admin", made, "llama3")
    connection, show = MeshConnection(site.client, Profile(mesh=MESH, api_key=KEYS["admin"])), ProgressLine()
    (version,) = (await connection.call(models.list_model_versions, models.ListModelVersions(ModelName("llama3"), 1))).versions
    await model_images.write_layout(connection, version, tmp_path / "out", show)
    async with registry(tmp_path) as host:
        await skopeo("copy", "--dest-tls-verify=false", f"oci:{tmp_path}/out:llama3-1", f"docker://{host}/team/llama3:1")
        await skopeo("copy", "--src-tls-verify=false", f"docker://{host}/team/llama3:1", f"oci:{tmp_path}/back:llama3-1")
        request = StoreRequest(command="pull", folder=str(tmp_path / "store"), target=f"oci://{host}/team/llama3:1")
        (pulled,) = (await asyncio.to_thread(store_program.carry_out, request)).models
        assert f"sha256:{pulled.digest}" == manifest.digest_of(model)
    assert contents(tmp_path / "back") == contents(tmp_path / "out")
    data, blobs = model_versions._describe(tmp_path, "oci:back", Statement(), show)
    await blob_transfers.upload(connection, blobs, show)
    again = await connection.call(models.complete_model_version, models.CompleteModelVersion(ModelName("again"), data))
    assert again.digest == version.digest == made.digest


async def test_skopeo_reads_the_meshs_own_store(site: Site, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    capabilities.require("skopeo")
    made = push_of({"model.gguf": registries.gguf(tmp_path)})
    await push(site, "admin", made, "llama3")
    await until((tmp_path / "origin" / "models" / "index.json").exists)
    await skopeo("copy", f"oci:{tmp_path}/origin/models:llama3@1", f"oci:{tmp_path}/out:1")
    assert contents(tmp_path / "out").keys() == {digest.removeprefix("sha256:") for digest in (made.digest, *made.blobs)}
