"""A whole gateway on a mesh: `aicli files` over RPC, and one without a store."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cli.ask import blob_transfers
from cli.connection import MeshConnection
from cli.profile import Profile
from features.files import contract as files
from features.files.cli import commands as files_module
from features.files.gateway.rules.sealed_parts import PART_BYTES
from features.files.settings import FileSettings
from services.gateway.service import GatewayService
from services.gateway.settings import GatewaySettings
from shared import errors
from shared.api import auth, gateway
from shared.api.gateway import HttpRequest
from shared.node.client_node import ClientNode
from shared.rpc import RpcCall, serves
from shared.types import Role
from tests.features.files.gateway.file_site import KEYS, PEOPLE
from tests.services.gateway.test_service import StandInAuth
from tests.testnet import MESH, TestNet, testnet, until


class Auth(StandInAuth):
    @serves(auth.identify)
    async def identify(self, request: auth.Identify, _call: RpcCall) -> auth.Principal:
        return PEOPLE[request.credential.partition(".")[0]]


@pytest.fixture
async def net() -> AsyncIterator[TestNet]:
    async with testnet() as net:
        await net.start(Auth)
        yield net


async def start(net: TestNet, postgres_url: str, valkey_url: str, files_url: str | None, **more: Any) -> ClientNode:
    settings = GatewaySettings(
        mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("gateway", Role.GATEWAY), database_url=postgres_url,
        redis_url=valkey_url, prompt_hash_secret="s" * 32, more=(FileSettings(files_url=files_url),), **more,
    )  # fmt: skip
    running = await net.start(GatewayService, settings)
    await until(lambda: running.node.directory.usable(Role.AUTH))
    client = await net.client()
    await until(lambda: client.directory.usable(Role.GATEWAY))
    return client


async def test_aicli_uploads_lists_downloads_and_deletes(net: TestNet, postgres_url: str, valkey_url: str, tmp_path: Path) -> None:
    client = await start(net, postgres_url, valkey_url, str(tmp_path / "store"))
    ada, eve = (MeshConnection(client, Profile(mesh=MESH, api_key=KEYS[who])) for who in ("ada", "eve"))
    content = os.urandom(PART_BYTES + 70_000)
    made = await files_module.store(ada, "größe.bin", content, {"purpose": "fine-tune"})
    facts = await ada.call(files.get_file, files.GetFile(made))
    assert (facts.name, facts.size, facts.purpose) == ("größe.bin", len(content), "fine-tune")
    assert (await ada.call(files.list_files, files.ListFiles())).files == (facts,)
    with (tmp_path / "again").open("wb") as output:
        await files_module.receive(ada, facts, output)
    assert (tmp_path / "again").read_bytes() == content
    assert (await eve.call(files.list_files, files.ListFiles())).files == ()
    with pytest.raises(errors.NotFound):
        await eve.call(files.get_file, files.GetFile(made))
    with pytest.raises(errors.NotFound):
        await eve.call(files.delete_file, files.DeleteFile(made))
    (part,) = (tmp_path / "store" / "files").rglob("*/1")
    part.unlink()
    with (tmp_path / "damaged").open("wb") as output, pytest.raises(errors.LinkLost, match=f"{PART_BYTES} of {len(content)} bytes"):
        await files_module.receive(ada, facts, output)
    await ada.call(files.delete_file, files.DeleteFile(made))
    assert (await ada.call(files.list_files, files.ListFiles())).files == ()
    health = await client.rpc.call(gateway.get_service_health, gateway.GetServiceHealth())
    assert [(check.ok, check.needed) for check in health.checks if check.name == "files"] == [(True, False)]


async def test_a_gateway_without_a_store_says_so_and_has_no_files(net: TestNet, postgres_url: str, valkey_url: str) -> None:
    client = await start(net, postgres_url, valkey_url, None)
    ada = MeshConnection(client, Profile(mesh=MESH, api_key=KEYS["ada"]))
    assert (await ada.call(files.list_files, files.ListFiles())).files == ()
    request = HttpRequest("POST", "/v1/files", headers=((b"content-type", b"multipart/form-data; boundary=x"),), body=b"--x")
    with pytest.raises(errors.Unavailable, match="no store for files") as refused:
        await blob_transfers.ask_http(ada, request)
    assert "FILES_URL" in refused.value.hint
    health = await client.rpc.call(gateway.get_service_health, gateway.GetServiceHealth())
    assert "files" not in {check.name for check in health.checks}


async def test_the_plan_limits_all_files_together(net: TestNet, postgres_url: str, valkey_url: str, tmp_path: Path) -> None:
    client = await start(net, postgres_url, valkey_url, str(tmp_path / "store"), tier_free={"file_bytes": "10"})
    ada = MeshConnection(client, Profile(mesh=MESH, api_key=KEYS["ada"]))
    await files_module.store(ada, "six", b"123456", {"purpose": "batch"})
    with pytest.raises(errors.NotAllowed, match=r"\(6 bytes\); with 6 more they would exceed the limit of 10 bytes"):
        await files_module.store(ada, "six", b"123456", {"purpose": "batch"})
