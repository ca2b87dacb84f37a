"""Pulls requested by administrators, with the real program and a server on loopback."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import cast
from uuid import UUID

import msgspec
import psutil
import pytest

from services.inference import model_pulls
from services.inference.model_pulls import ModelPulls
from services.inference.models import model_discovery, model_files
from services.inference.models.catalog import Defaults
from services.inference.models.model_store import ModelStore
from services.inference.settings import InferenceSettings
from shared import context, errors
from shared.api.inference import (
    Assignment,
    EnsuredModel,
    EnsureModel,
    ModelState,
    ModelStatus,
    PulledModel,
    PullModel,
    PullProgress,
    RemoveModel,
    StoredModel,
)
from shared.api.model_copies import VERSION_SOURCE
from shared.models import manifest
from shared.node import lifecycle
from shared.rpc import StreamCall
from shared.types import ModelName, UserId
from tests.services.inference.models import ranged_server
from tests.services.inference.models.ranged_server import RangedServer
from tests.services.inference.standins import Node, until
from tests.shared.models.publishers import manifest_of
from tests.stopwatch import HANG_SECONDS

USER = UserId(UUID(int=1))
NOW = datetime(2026, 11, 29, tzinfo=UTC)
BODY = ranged_server.model_bytes(3_000_000)


class ProgressReader:
    """The stream of the call; ``gate`` blocks ``send``."""

    def __init__(self) -> None:
        self.items: list[PullProgress] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, item: PullProgress) -> None:
        self.items.append(item)
        await self.gate.wait()

    def has(self, step: str) -> bool:
        return any(item.step.startswith(step) for item in self.items)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_pulls, "REPORT_SECONDS", 0.01)


@pytest.fixture
def server() -> Iterator[RangedServer]:
    with ranged_server.serving(BODY) as site:
        yield site


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    found = Node()
    async with lifecycle.background() as found.tasks:
        yield found


def pulls_of(store: ModelStore, node: Node, **settings: object) -> ModelPulls:
    given = InferenceSettings(node_key_file=Path("/nowhere/worker.nk"), model_store=store._root, **settings)  # type: ignore[arg-type]
    return ModelPulls(given, lambda: given.allow_pulls is not False, node)  # type: ignore[arg-type]


@pytest.fixture
def pulls(store: ModelStore, node: Node) -> ModelPulls:
    return pulls_of(store, node)


async def pull(pulls: ModelPulls, request: PullModel, reader: ProgressReader | None = None) -> PulledModel:
    return await pulls.pull(request, cast("StreamCall[PullProgress]", reader or ProgressReader()))


@asynccontextmanager
async def pulling(pulls: ModelPulls, server: RangedServer) -> AsyncIterator[asyncio.Task[PulledModel]]:
    """Yield a pull that has received a third and waits for the rest."""
    server.pause_at = 1_000_000
    server.gate.clear()
    reader = ProgressReader()
    task = asyncio.create_task(pull(pulls, PullModel(server.url), reader))
    try:
        await until(lambda: task.done() or reader.has("downloading"), seconds=60)
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, errors.AimeshError):
            await task


def programs() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            found += [child] if "services.inference.models.store_program" in child.cmdline() else []
    return found


async def test_model_is_pulled_into_the_workers_store(pulls: ModelPulls, store: ModelStore, server: RangedServer) -> None:
    reader = ProgressReader()
    server.pause_at = 1_000_000
    server.gate.clear()
    task = asyncio.create_task(pull(pulls, PullModel(server.url, ModelName("mine")), reader))
    await until(lambda: reader.has("downloading"), seconds=60)
    server.gate.set()
    assert await task == PulledModel(ModelName("mine"), server.digest, len(BODY))
    assert [model.name for model in store.models()] == ["mine"]
    assert (await pull(pulls, PullModel(f"{server.url}#sha256={server.digest}", ModelName("mine")))).unchanged
    assert programs() == []


async def test_canceled_pull_ends_its_program_and_is_resumed(pulls: ModelPulls, server: RangedServer) -> None:
    async with pulling(pulls, server) as task:
        assert len(programs()) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert programs() == []
    server.gate.set()
    assert (await pull(pulls, PullModel(server.url))).digest == server.digest
    assert server.ranges()[-1] is not None


async def test_shutdown_ends_a_pull_with_a_reason(pulls: ModelPulls, server: RangedServer, node: Node) -> None:
    async with pulling(pulls, server) as task:
        node.drain_started.set()
        with pytest.raises(errors.Draining, match="this worker is shutting down"):
            await asyncio.wait_for(task, 60)
    assert programs() == []


async def test_two_pulls_of_one_model_are_one_download(pulls: ModelPulls, server: RangedServer) -> None:
    async with pulling(pulls, server) as first:
        reader = ProgressReader()
        second = asyncio.create_task(pull(pulls, PullModel(server.url), reader))
        await until(lambda: reader.has("waiting for another download"), seconds=60)
        server.gate.set()
        assert not (await first).unchanged
        assert (await second).unchanged
    assert server.sent_bytes == len(BODY)


async def test_too_many_pulls_are_refused(pulls: ModelPulls, server: RangedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_pulls, "MAX_AT_ONCE", 1)
    async with pulling(pulls, server) as task:
        with pytest.raises(errors.Overloaded, match="runs 1 pulls already"):
            await pull(pulls, PullModel("https://example.org/x.gguf"))
        server.gate.set()
        await task
    assert (await pull(pulls, PullModel(server.url, ModelName("again")))).model == "again"


async def test_slow_reader_of_the_progress_does_not_hold_up_the_download(
    pulls: ModelPulls, store: ModelStore, server: RangedServer
) -> None:
    reader = ProgressReader()
    reader.gate.clear()
    server.pause_at = 1_000_000
    server.gate.clear()
    task = asyncio.create_task(pull(pulls, PullModel(server.url), reader))
    await until(lambda: reader.items != [], seconds=60)
    server.gate.set()
    await until(lambda: bool(store.models()), seconds=60)
    assert len(reader.items) == 1
    reader.gate.set()
    assert (await task).digest == server.digest


async def test_owner_can_forbid_pulls(store: ModelStore, node: Node, server: RangedServer) -> None:
    with pytest.raises(errors.NotAllowed, match="the owner of this worker does not allow pulls"):
        await pull(pulls_of(store, node, allow_pulls=False), PullModel(server.url))
    assert server.asked == []


async def test_problems_of_the_program_are_raised_as_they_are(pulls: ModelPulls) -> None:
    with pytest.raises(errors.BadRequest, match=r"example\.org would be reached without TLS"):
        await pull(pulls, PullModel("http://example.org/x.gguf"))


async def test_program_that_is_killed_is_an_error_of_the_worker(pulls: ModelPulls, server: RangedServer) -> None:
    async with pulling(pulls, server) as task:
        programs()[0].kill()
        with pytest.raises(errors.Internal, match="ended with status -9"):
            await asyncio.wait_for(task, 60)


async def test_program_gets_the_proxy_but_no_secrets(
    store: ModelStore, node: Node, server: RangedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("SERVICE_TOKEN", "secret")
    pulls = pulls_of(store, node, hub_token="hub-secret")
    async with pulling(pulls, server):
        (program,) = programs()
        environment = program.environ() if os.geteuid() == 0 else {"HTTPS_PROXY": "http://127.0.0.1:9"}
        assert environment["HTTPS_PROXY"] == "http://127.0.0.1:9"
        assert not [name for name, value in environment.items() if "secret" in value]
        assert "secret" not in " ".join(program.cmdline())


async def ensured(pulls: ModelPulls, order: EnsureModel) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        while not (await pulls.ensure(order)).is_stored:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def failed(pulls: ModelPulls, order: EnsureModel) -> str:
    async with asyncio.timeout(HANG_SECONDS):
        while not (problem := (await pulls.ensure(order)).problem):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return problem


async def test_a_pull_goes_on_after_the_deadline_of_its_order(pulls: ModelPulls, monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines = list[float | None]()

    async def get(_request: EnsureModel) -> str:
        deadlines.append(context.deadline.get())
        return "it is only a test"

    monkeypatch.setattr(pulls, "_get", get)

    async def ordered() -> EnsuredModel:
        context.deadline.set(time.monotonic() + 5)
        return await pulls.ensure(EnsureModel(ModelName("llama3@2"), "mesh:sha256:0"))

    assert await asyncio.create_task(ordered()) == EnsuredModel(is_stored=False)
    assert await failed(pulls, EnsureModel(ModelName("llama3@2"), "mesh:sha256:0")) == "it is only a test"
    assert deadlines == [None]


async def test_a_version_needs_room_within_the_quota(store: ModelStore, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    class Copy:
        def __init__(self, _rpc: object, _nodes: object, found: ModelStore, _exchange: object) -> None:
            self.store = found

        async def get(self, *_order: object) -> None:
            self.store.check_room(2000)

    monkeypatch.setattr(model_pulls, "VersionCopy", Copy)
    store.ensure_folders()
    order = EnsureModel(ModelName("llama3@2"), VERSION_SOURCE + "sha256:0")
    assert "the store may use 0.0 MiB" in await failed(pulls_of(store, node, model_store_quota="1kB"), order)


async def test_what_the_mesh_orders_is_pulled_once_and_served_as_assigned(
    pulls: ModelPulls, store: ModelStore, server: RangedServer
) -> None:
    order = EnsureModel(ModelName("llama3@2"), server.url, Assignment(context_tokens=2048, slots=3))
    assert await pulls.ensure(order) == EnsuredModel(is_stored=False)
    assert pulls.assigned() == ("llama3@2",)
    await ensured(pulls, order)
    assert pulls.assigned() == ("llama3@2",)
    assert server.sent_bytes == len(BODY)
    assert store.assigned() == ("llama3@2",)
    (entry,) = model_discovery.in_store(store, Defaults(slots=1))
    assert (entry.name, entry.context_tokens, entry.slots) == ("llama3@2", 2048, 3)
    assert await pulls.ensure(msgspec.structs.replace(order, assignment=Assignment(slots=4))) == EnsuredModel(is_stored=True)
    (entry,) = model_discovery.in_store(store, Defaults(slots=1))
    assert (entry.context_tokens, entry.slots) == (None, 4)
    await pulls.remove(RemoveModel(ModelName("llama3@2")))
    assert store.models() == ()
    with pytest.raises(errors.NotFound):
        await pulls.remove(RemoveModel(ModelName("llama3@2")))


async def test_an_order_tells_why_the_last_attempt_failed_and_tries_again(pulls: ModelPulls, server: RangedServer) -> None:
    server.url += "x#sha256=" + 64 * "0"
    order = EnsureModel(ModelName("a"), server.url)
    await pulls.ensure(order)
    async with asyncio.timeout(HANG_SECONDS):
        while not (problem := (await pulls.ensure(order)).problem):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert "SHA-256" in problem
    assert await pulls.ensure(order) == EnsuredModel(is_stored=False)


@pytest.mark.parametrize("is_owners", [False, True])
async def test_what_a_person_removed_comes_back_only_when_the_owner_accepts_again(
    pulls: ModelPulls, store: ModelStore, server: RangedServer, *, is_owners: bool
) -> None:
    first, second = (EnsureModel(ModelName(f"llama3@{number}"), server.url) for number in (1, 2))
    if is_owners:
        await pull(pulls, PullModel(server.url, first.name))
    else:
        await ensured(pulls, first)
    await pulls.remove(RemoveModel(first.name, by=USER))
    assert (store.find(first.name), pulls.assigned(), pulls.refused()) == (None, (), ("llama3",))
    for order in (first, second):
        with pytest.raises(errors.NotAllowed, match="was removed from this worker"):
            await pulls.ensure(order)
    await pulls.consent_changed(accepts_models=True)
    await ensured(pulls, second)
    assert pulls.refused() == ()


async def test_nothing_is_refused_that_was_not_there(pulls: ModelPulls) -> None:
    with pytest.raises(errors.NotFound):
        await pulls.remove(RemoveModel(ModelName("llama3"), by=USER))
    assert pulls.refused() == ()


async def test_an_owner_who_refuses_models_stops_what_is_on_its_way(pulls: ModelPulls, store: ModelStore, server: RangedServer) -> None:
    server.pause_at = 1_000_000
    server.gate.clear()
    order = EnsureModel(ModelName("llama3"), server.url)
    await pulls.ensure(order)
    await until(programs, seconds=HANG_SECONDS)
    assert pulls.assigned() == ("llama3",)
    await pulls.consent_changed(accepts_models=False)
    assert (pulls.assigned(), store.models()) == ((), ())
    await until(lambda: not programs(), seconds=HANG_SECONDS)
    server.gate.set()
    await ensured(pulls, order)


async def test_a_model_of_a_person_stays_when_the_mesh_removes_its_own(pulls: ModelPulls, store: ModelStore, server: RangedServer) -> None:
    await pull(pulls, PullModel(server.url, ModelName("mine")))
    await ensured(pulls, EnsureModel(ModelName("mine"), server.url, Assignment(slots=3)))
    assert store.assigned() == ()
    with pytest.raises(errors.NotFound):
        await pulls.remove(RemoveModel(ModelName("mine")))
    assert pulls.assigned() == ()
    assert [model.name for model in store.models()] == ["mine"]
    await ensured(pulls, EnsureModel(ModelName("theirs"), server.url))
    assert store.assigned() == ("theirs",)
    await pull(pulls, PullModel(server.url, ModelName("theirs")))
    assert store.assigned() == ()


async def test_an_order_that_is_taken_back_ends_its_pull(pulls: ModelPulls, server: RangedServer) -> None:
    server.gate.clear()
    server.pause_at = 1_000_000
    order = EnsureModel(ModelName("a"), server.url)
    await pulls.ensure(order)
    await until(lambda: len(programs()) == 1, seconds=HANG_SECONDS)
    await pulls.remove(RemoveModel(ModelName("a")))
    await until(lambda: programs() == [], seconds=HANG_SECONDS)


async def test_a_version_whose_file_has_another_digest_is_quarantined(
    pulls: ModelPulls, node: Node, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_pulls, "QUARANTINE_SECONDS", 0.01)
    store.ensure_folders()
    for name, source in (("llama3@2", "mesh:sha256:" + 64 * "0"), ("pulled", "hf:org/pulled")):
        digest = hashlib.sha256(name.encode()).hexdigest()
        store.blob(digest).write_bytes(BODY)
        store._write(StoredModel(name=ModelName(name), digest=digest, size=len(BODY), source=source, stored_at=NOW, source_key="k"))

    def status(name: str, state: ModelState, digest: str) -> ModelStatus:
        return ModelStatus(ModelName(name), state, "", "llama", 64, 1, 0, 0, digest=digest)

    # One that nobody trusted has signed, and that sees images, is whole.
    whole, projector = hashlib.sha256(b"whole").hexdigest(), hashlib.sha256(b"projector").hexdigest()
    text = manifest_of()
    signed = StoredModel(
        name=ModelName("signed@1"),
        digest=whole,
        size=1,
        source=VERSION_SOURCE + manifest.digest_of(text),
        stored_at=NOW,
        source_key="k",
        projector=projector,
    )
    store._write(signed)
    store.blob(manifest.digest_of(text).removeprefix("sha256:")).write_bytes(text)
    statuses = [
        status("llama3@2", ModelState.FAILED, ""),
        status("pulled", ModelState.FAILED, "other"),
        status("signed@1", ModelState.FAILED, model_files.joined((whole, projector))),
    ]
    node.tasks.create_task(pulls.quarantine(lambda: statuses))
    await asyncio.sleep(0.05)
    assert len(store.models()) == 3
    statuses[0] = status("llama3@2", ModelState.FAILED, "other")
    await until(lambda: [model.name for model in store.models()] == ["pulled", "signed@1"])
    counter = node.metrics.registry.get_sample_value
    await until(lambda: counter("ai_platform_model_quarantines_total", {"model": "llama3@2"}) == 1)
