"""The usage export of a whole gateway."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from features.usage_export import contract
from features.usage_export.gateway import export
from features.usage_export.rules.usage_events import UsageEvent
from features.usage_export.settings import UsageExportSettings
from services.gateway.service import GatewayService
from shared import errors
from shared.types import Role
from tests.services.gateway.test_service import ADMIN_TOKEN, HANG_SECONDS, KEY, MESH, USER, GatewayMesh, until


async def test_a_request_becomes_a_line_of_the_exported_file_and_the_export_agrees_with_the_ledger(
    mesh: GatewayMesh, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "POLL_SECONDS", 0.05)
    file, call = tmp_path / "usage.jsonl", mesh.client.rpc.call
    assert (await call(contract.read_usage_export, contract.ReadUsageExport(), credential=ADMIN_TOKEN)).sinks == ()
    await mesh.nodes["gateway"].stop()
    await until(lambda: not mesh.client.directory.usable(Role.GATEWAY))
    settings = msgspec.structs.replace(mesh.settings, more=(UsageExportSettings(usage_export_file=file),))
    gateway_ = (await mesh.net.start(GatewayService, settings)).node
    await until(lambda: gateway_.directory.usable(Role.WORKER) and gateway_.directory.usable(Role.AUTH))
    await until(lambda: mesh.client.directory.usable(Role.GATEWAY))
    results = [(await mesh.ask())[1] for _ in range(3)]
    await until(lambda: file.exists() and file.read_bytes().count(b"\n") == 3)
    events = [msgspec.json.decode(line, type=UsageEvent) for line in file.read_bytes().splitlines()]
    assert {(event.id, event.data.tokens) for event in events} == {(result.request_id, result.usage.total_tokens) for result in results}
    assert {(event.subject, event.source) for event in events} == {(USER, f"/aimesh/{MESH}")}
    (charged,) = await mesh.rows("SELECT sum(amount_micro) AS micro FROM gateway.entries WHERE account = 'revenue'")
    assert sum(event.data.cost_micro for event in events) == charged["micro"] > 0

    async def read() -> contract.UsageSink:
        (sink,) = (await call(contract.read_usage_export, contract.ReadUsageExport(), credential=ADMIN_TOKEN)).sinks
        return sink

    async with asyncio.timeout(HANG_SECONDS):
        while (state := await read()).waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (state.name, state.error, state.difference_tokens, state.difference_micro) == ("file", None, 0, 0)
    with pytest.raises(errors.NotAllowed):
        await call(contract.read_usage_export, contract.ReadUsageExport(), credential=KEY)
