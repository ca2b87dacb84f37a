"""Workers with the backends of other servers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from features.remote_servers.settings import ServerSettings
from services.inference import features
from services.inference.announcements import Announcements
from services.inference.features import Site
from services.inference.settings import InferenceSettings
from shared.api.servers import NO_SERVER
from shared.node import lifecycle
from tests.services.inference.standins import Node


class WorkerNode(Node):
    def __init__(self) -> None:
        super().__init__()
        self.dispatcher = SimpleNamespace(add=lambda _service: None)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"remote_model_hosts": ("vllm.lan",)}, []),
        ({"remote_model_hosts": ("vllm.lan",), "openai_key": "sk-x"}, ["openai"]),
        ({"remote_model_hosts": ("vllm.lan",), "openai_url": "http://127.0.0.1:1/v1"}, ["openai"]),
        ({}, ["openai"]),
    ],
)
async def test_a_worker_for_added_servers_needs_no_other(tmp_path: Path, given: dict[str, Any], names: list[str]) -> None:
    settings = InferenceSettings(node_key_file=tmp_path / "node.nk", backend="openai", more=(ServerSettings(**given),))
    node = WorkerNode()
    watcher = Announcements(node)
    site = Site(settings=settings, node=node, watcher=watcher)  # type: ignore[arg-type]
    open_backend = features.find_backend("openai")
    assert open_backend is not None
    async with lifecycle.background() as node.tasks, open_backend(site) as backend:
        assert [status.model_id for status in backend.models()] == names
        assert (watcher.why_not_ready((), is_paused=False) == NO_SERVER) is ("remote_model_hosts" in given)
