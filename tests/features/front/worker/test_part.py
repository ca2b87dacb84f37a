"""The backend `front`: it serves what its owner chose of one server, and two workers never serve one server at once."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from features.front.rules.local_servers import SharedServer
from features.front.settings import FrontSettings
from features.front.worker import part
from features.remote_servers.worker import remote_models
from services.inference import features
from services.inference.announcements import Announcements
from services.inference.backend_interface import Backend
from services.inference.features import Site
from services.inference.settings import InferenceSettings
from shared import errors
from shared.node import lifecycle
from tests.services.inference.fake_http import Answer, Answers, FakeServer, serving
from tests.services.inference.standins import Node, Reader, job, until

#: One of a company's, one with every letter that a name may have, and one that Ollama forwards.
NAMES = ("qwen3:8b", "hf.co/ann/Modèle de test 模型:Q4_K_M", "gpt-oss:120b-cloud", "private:latest")
SHARED = NAMES[:3]


def tags(*names: str) -> Answer:
    cloud = {"remote_model": "gpt-oss:120b", "remote_host": "https://ollama.com:443"}
    return Answer([json.dumps({"models": [{"name": name, "digest": "ab" * 32, **(cloud if "cloud" in name else {})} for name in names]})])


def ollama(**more: Answers) -> dict[str, Answers]:
    return {
        "/api/version": Answer(['{"version": "0.40.12"}']),
        "/api/tags": tags(*NAMES),
        **{f"/api/{name}": each for name, each in more.items()},
    }


@asynccontextmanager
async def worker(folder: Path, server: FakeServer, **shared: Any) -> AsyncIterator[tuple[Backend, Announcements]]:
    file = folder / "server.json"
    terms = {"kind": "ollama", "url": server.url, "models": SHARED, **shared}
    file.write_bytes(msgspec.json.encode(SharedServer(**terms)))
    async with opened(folder, file) as (backend, watcher):
        yield backend, watcher


@asynccontextmanager
async def opened(folder: Path, file: Path | None) -> AsyncIterator[tuple[Backend, Announcements]]:
    settings = InferenceSettings(node_key_file=folder / "node.nk", backend="front", more=(FrontSettings(server_file=file),))
    node = Node()
    watcher = Announcements(node)  # type: ignore[arg-type]
    open_backend = features.find_backend("front")
    assert open_backend is not None
    site = Site(settings=settings, node=node, watcher=watcher)  # type: ignore[arg-type]
    async with lifecycle.background() as node.tasks, open_backend(site) as backend:
        yield backend, watcher


def ready(backend: Backend) -> list[str]:
    return [status.model_id for status in backend.models() if status.state == "ready"]


async def test_it_serves_what_its_owner_chose_under_any_name(tmp_path: Path) -> None:
    async with serving(ollama()) as server, worker(tmp_path, server) as (backend, _):
        await until(lambda: len(ready(backend)) == len(SHARED))
        statuses = {status.model_id: status for status in backend.models()}
    assert set(statuses) == set(SHARED)
    # A policy with `external: []` sends no request there, and the others stay internal.
    assert [bool(statuses[name].provider) for name in SHARED] == [False, False, True]


async def test_two_workers_that_find_one_server_share_it_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "_LOOK_SECONDS", 0.01)
    async with serving(ollama()) as server, AsyncExitStack() as first:
        one, _ = await first.enter_async_context(worker(tmp_path, server))
        await until(lambda: ready(one))
        async with worker(tmp_path, server) as (other, watcher):
            await until(lambda: "another worker of this machine serves Ollama" in watcher.why_not_ready((), is_paused=False))
            assert not other.models()
            await first.aclose()
            await until(lambda: ready(other))


async def test_a_key_is_sent_to_its_server(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    models = {"data": [{"id": "big", "owned_by": "vllm", "max_model_len": 8192}]}
    pages: dict[str, Answers] = {"/version": Answer(['{"version": "0.11.0"}']), "/v1/models": Answer([json.dumps(models)])}
    async with serving(pages) as server:
        terms = {"kind": "vllm", "url": f"{server.url}/v1", "models": ("big",), "key_file": str(key)}
        async with worker(tmp_path, server, **terms) as (backend, _):
            await until(lambda: ready(backend) == ["big"])
        assert all("authorization: bearer s3cret" in head for head in server.headers)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "FRONT_SERVER_FILE is not set"),
        ("", "cannot read .*server.json: Input data was truncated"),
        ('{"kind": "ollama", "url": "http://127.0.0.1:1", "models": []}', "length >= 1"),
        (
            '{"kind": "vllm", "url": "http://127.0.0.1:1/v1", "models": ["m"], "key_file": "/nowhere"}',
            "cannot read the server's key in /nowhere",
        ),
    ],
)
async def test_a_wrong_file_says_what_writes_it(tmp_path: Path, body: str | None, message: str) -> None:
    file = None if body is None else tmp_path / "server.json"
    if file is not None:
        file.write_text(body or "")
    with pytest.raises(errors.BadSettings, match=message) as refused:
        async with opened(tmp_path, file):
            pass
    assert "aicli worker --s" in refused.value.hint


async def test_a_model_that_is_deleted_while_it_answers_ends_the_answer_and_leaves_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_models, "REFRESH_SECONDS", 0.05)
    listed = [tags(*NAMES)]
    piece = '{"message": {"role": "assistant", "content": "Hel"}, "done": false}\n'
    gone = Answer([piece, '{"error": "model \'qwen3:8b\' not found"}\n'])
    async with serving({**ollama(chat=gone), "/api/tags": lambda _: listed[0]}) as server, worker(tmp_path, server) as (backend, _):
        await until(lambda: len(ready(backend)) == len(SHARED))
        listed[0] = tags(*NAMES[1:])
        with pytest.raises(errors.AimeshError, match="not found"):
            await backend.generate(job("hi", model="qwen3:8b"), Reader())
        await until(lambda: "qwen3:8b" not in ready(backend))
        assert len(ready(backend)) == len(SHARED) - 1
