"""A worker's port while it cannot join its mesh."""

import asyncio
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from services.inference.settings import InferenceSettings
from shared import errors
from shared.identity import node_keys
from shared.node import member, program
from shared.types import Role
from tests import stopwatch
from tests.testnet import MESH, free_port


class Worker:
    role: ClassVar[Role] = Role.WORKER


async def test_a_worker_that_cannot_join_works_and_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "CONNECT_SECONDS", stopwatch.patience(5.0))
    key, port = tmp_path / "worker.nk", free_port()
    key.touch(mode=0o600)
    key.write_bytes(node_keys.new_seed())
    settings: Any = InferenceSettings(mesh=MESH, nats_url=f"nats://127.0.0.1:{free_port()}", node_key_file=key, host="127.0.0.1", port=port)
    running = asyncio.create_task(program._live(Worker, settings))  # type: ignore[arg-type]  # it is never opened
    found = {}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=3.0, transport=httpx.AsyncHTTPTransport(retries=9)) as http:
        for path in ("/readyz", "/healthz", "/infer"):
            found[path] = (await http.get(path)).status_code
        assert "has not joined its mesh yet" in (await http.get("/readyz")).text
    assert found == {"/readyz": 503, "/healthz": 200, "/infer": 503}
    with pytest.raises(errors.Unavailable, match="no NATS server answers"):
        await running
