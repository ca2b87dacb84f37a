"""Health, kind and load of a server: the core alone, the loop in virtual time, and all of it over sockets."""

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from features.remote_servers.worker import openai, remote_models, server_watch
from features.remote_servers.worker.http_server_client import ProbeReply
from features.remote_servers.worker.remote_backend import RemoteBackend
from features.remote_servers.worker.rules.dialects import ServerLoad
from features.remote_servers.worker.server_watch import ServerHealth, ServerWatch
from features.remote_servers.worker.upstreams import Dialect, Upstream
from shared import errors
from shared.api.inference import ModelState
from shared.telemetry import Metrics
from shared.types import ModelName
from tests.features.remote_servers.worker.fake_token_servers import MLX_FIELDS, MODEL, SGLANG_FIELDS, TENSORRT_FIELDS, strict_pages
from tests.features.remote_servers.worker.test_upstream_failover import HANGS, HELLO
from tests.services.inference import asked
from tests.services.inference.fake_http import Answer, Answers, FakeServer, serving
from tests.services.inference.standins import Reader, Watch, job, until
from tests.shared.timing.virtual_time import VirtualLoop, pass_time

SILENT = ProbeReply(trouble="did not answer within 0.9 s")
OK = ProbeReply(200)


@pytest.mark.parametrize(
    ("replies", "out"),
    [
        ([OK], ""),
        ([SILENT], "did not answer within 0.9 s"),
        ([SILENT, OK], ""),
        ([ProbeReply(503)], "is not ready (status 503)"),
        ([ProbeReply(500)] * 2, ""),
        ([ProbeReply(500), ProbeReply(500), OK, ProbeReply(500)], ""),
        ([ProbeReply(500)] * 3, "fails with status 500"),
        ([ProbeReply(500)] * 3 + [OK], ""),
        ([ProbeReply(404)], ""),
        ([ProbeReply(401)], ""),
        ([ProbeReply(429)], ""),
    ],
)
def test_a_server_is_out_when_it_is_gone_or_after_three_strikes(replies: list[ProbeReply], out: str) -> None:
    health = ServerHealth()
    for reply in replies:
        health.judge(reply, was_heard=False)
    assert health.out == out


def test_a_server_that_sends_other_answers_is_only_slow() -> None:
    health = ServerHealth()
    health.judge(SILENT, was_heard=True)
    assert not health.out
    health.judge(SILENT, was_heard=False)
    health.judge(SILENT, was_heard=True)
    assert health.out, "it stays out until a probe is answered"


class Models:
    """Records what the watch reports, and when."""

    is_external = False

    def __init__(self) -> None:
        self.outs: list[tuple[float, bool]] = []
        self.loads: list[ServerLoad | None] = []
        self.slots = 0

    def set_out(self, reason: str) -> None:
        if not self.outs or self.outs[-1][1] != bool(reason):
            self.outs.append((asyncio.get_running_loop().time(), bool(reason)))

    def set_load(self, load: ServerLoad | None) -> None:
        self.loads.append(load)

    def set_slots(self, slots: int) -> None:
        self.slots = slots


class FakeProbes:
    """A server with a reply for each page; a page with None hangs."""

    def __init__(self, given: Dialect | None) -> None:
        self.pages: dict[str, ProbeReply | None] = {}
        self.asked: list[str] = []
        self.heard_at = -1.0
        self.source = SimpleNamespace(name="upstream x", cleaned=str, upstream=SimpleNamespace(dialect=given))

    async def probe(self, path: str, seconds: float, *, most: int) -> ProbeReply:
        self.asked.append(path)
        reply = self.pages.get(path, ProbeReply(404))
        if reply is None:
            await asyncio.sleep(seconds)
            return SILENT
        return ProbeReply(reply.status, reply.body[:most], is_cut=len(reply.body) > most)


def watched(given: Dialect | None = None) -> tuple[ServerWatch, FakeProbes, Models]:
    probes, models = FakeProbes(given), Models()
    return ServerWatch(probes, models, "models"), probes, models  # type: ignore[arg-type]


def in_virtual_time(run: Callable[[], Any]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())


@pytest.mark.parametrize("hangs_after", [2.0, 2.001, 3.0, 3.999])
def test_a_server_that_hangs_is_out_within_3_seconds_and_back_within_3(hangs_after: float) -> None:
    async def run() -> None:
        watch, probes, models = watched(Dialect.VLLM)
        probes.pages["/health"] = OK
        looking = asyncio.create_task(watch.run())
        await pass_time(hangs_after)
        probes.pages["/health"] = None
        await pass_time(3)
        out_at, is_out = models.outs[-1]
        assert is_out
        assert out_at - hangs_after <= 3
        await pass_time(7.3)
        probes.pages["/health"] = OK
        back_from = asyncio.get_running_loop().time()
        await pass_time(3)
        back_at, is_out = models.outs[-1]
        assert not is_out
        assert 0 <= back_at - back_from <= 3
        looking.cancel()

    in_virtual_time(run)


async def test_a_kind_is_recognized_by_its_answers() -> None:
    for pages, owners, dialect, slots in (
        ({"/version": b'{"version": "0.9.1"}'}, {"vllm"}, Dialect.VLLM, 256),
        ({"/version": b'{"version": "0.9.1"}'}, {"another"}, Dialect.COMPATIBLE, 0),
        ({"/props": b'{"total_slots": 3}'}, {"llamacpp"}, Dialect.LLAMA_CPP, 3),
        ({"/info": b'{"model_id": "m", "max_concurrent_requests": 300}'}, {"m"}, Dialect.TGI, 300),
        ({"/api/version": b'{"version": "0.40.12"}'}, {"library"}, Dialect.OLLAMA, 0),
        ({"/props": b"<html>", "/info": b"x" * 2**21}, set(), Dialect.COMPATIBLE, 0),
    ):
        watch, probes, models = watched()
        probes.pages.update({path: ProbeReply(200, page) for path, page in pages.items()})  # type: ignore[attr-defined]
        await watch.identify(owners)  # type: ignore[arg-type]
        assert (watch.dialect, models.slots) == (dialect, slots)
        asked = len(probes.asked)
        await watch.identify(owners)  # type: ignore[arg-type]
        assert len(probes.asked) == asked, "it is recognized once"


async def test_what_the_owner_says_of_a_server_is_not_guessed() -> None:
    watch, probes, models = watched(Dialect.AIMESH)
    probes.pages["/props"] = ProbeReply(200, b'{"total_slots": 3}')
    await watch.identify({"llamacpp"})
    assert (watch.dialect, models.slots, probes.asked) == (Dialect.AIMESH, 0, [])


async def test_a_provider_is_neither_probed_nor_asked_every_two_seconds() -> None:
    watch, probes, models = watched()
    models.is_external = True
    await watch.identify({"vllm"})
    await watch.look()
    assert probes.asked == []


async def test_a_plain_server_is_watched_by_its_list_of_models() -> None:
    watch, probes, models = watched()
    probes.pages["models"] = None
    await watch.look()
    assert (probes.asked, models.outs[-1][1]) == (["models"], True)


async def test_the_load_is_read_from_the_first_page_that_the_server_has() -> None:
    watch, probes, models = watched()
    probes.pages |= {"/props": ProbeReply(200, b'{"total_slots": 2}'), "/metrics": ProbeReply(501), "/health": OK}
    probes.pages["/slots"] = ProbeReply(200, b'[{"is_processing": true}, {"is_processing": false}]')
    await watch.identify(set())
    probes.asked.clear()
    for _ in range(2):
        await watch.look()
    assert (models.loads, probes.asked) == ([ServerLoad(1, 0, 2)], ["/health", "/metrics", "/health", "/slots"])
    probes.pages["/slots"] = None
    await watch.look()
    assert (len(models.loads), models.outs[-1][1]) == (1, False), "a busy server keeps its last load"


@pytest.mark.parametrize("page", [b"x" * (server_watch.MAX_PAGE_BYTES + 1), b"garbage", b"vllm:num_requests_running NaN\n"])
async def test_a_wrong_page_of_the_load_has_three_strikes(page: bytes) -> None:
    watch, probes, models = watched()
    good = ProbeReply(200, b"vllm:num_requests_running 1\nvllm:num_requests_waiting 1\n")
    probes.pages |= {"/version": ProbeReply(200, b'{"version": "1"}'), "/health": OK, "/metrics": ProbeReply(200, page)}
    await watch.identify({"vllm"})
    for reply in (*[ProbeReply(200, page)] * 2, good, *[ProbeReply(200, page)] * 3, good):
        probes.pages["/metrics"] = reply
        await watch.look()
    assert models.loads == [ServerLoad(1, 1), None]
    assert probes.asked.count("/metrics") == 6
    probes.pages["/health"] = None
    await watch.look()
    probes.pages["/health"] = OK
    await watch.identify({"vllm"})
    await watch.look()
    assert models.loads[-1] == ServerLoad(1, 1), "it may be another program when it is back"


# --- over sockets ---------------------------------------------------------------------------------------------------


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_watch, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(server_watch, "HEALTH_SECONDS", 0.3)


def upstream(server: FakeServer, name: str, **more: Any) -> Upstream:
    return Upstream(name=name, url=f"{server.url}/v1", **more)


def pages(chat: Answer | list[Answer], slots: int = 4) -> dict[str, Answer | list[Answer]]:
    """Return llama-server's pages."""
    return {
        "/v1/models": Answer(['{"data": [{"id": "m", "owned_by": "llamacpp"}]}']),
        "/v1/chat/completions": chat,
        "/health": Answer(['{"status": "ok"}']),
        "/props": Answer([json.dumps({"total_slots": slots})]),
        "/slots": Answer([json.dumps([{"is_processing": False}] * slots)]),
    }


def outs(backend: RemoteBackend) -> list[bool]:
    return [status.state is not ModelState.READY for server in backend.servers for status in server.models.statuses()]


@pytest.mark.usefixtures("fast")
async def test_a_request_leaves_a_server_that_hangs() -> None:
    one, other = pages(HANGS), pages(HELLO, slots=1)
    async with (
        serving(one) as first,
        serving(other) as second,
        openai.opened_all((upstream(first, "a"), upstream(second, "b")), 4, 32, Watch()) as backend,
    ):
        await until(lambda: backend.models()[0].slots == 5)
        reader = Reader()
        waiting = asyncio.create_task(backend.generate(job("hi", model="m"), reader))
        await until(lambda: first.asked)
        one["/health"] = HANGS
        async with asyncio.timeout(30):
            await waiting
        assert (reader.text, outs(backend)) == ("Hello", [True, False])
        (status,) = backend.models()
        assert (status.state, status.slots) == (ModelState.READY, 1)
        one["/health"] = Answer(["{}"])
        await until(lambda: backend.models()[0].slots == 5)


@pytest.mark.usefixtures("fast")
async def test_models_of_a_server_that_is_out_are_not_offered() -> None:
    one = pages(HELLO)
    async with serving(one) as server, openai.opened_all((upstream(server, "a"),), 4, 32, Watch()) as backend:
        await until(lambda: outs(backend) == [False])
        one["/health"] = Answer(["{}"], status=503)
        await until(lambda: outs(backend) == [True])
        assert backend.models()[0].detail == "is not ready (status 503)"
        with pytest.raises(errors.Unavailable, match="a is not ready"):
            await backend.generate(job("hi", model="m"), Reader())
        assert not server.times_asked("/v1/chat/completions")
        one["/health"] = Answer(["{}"])
        await until(lambda: outs(backend) == [False])
        await backend.generate(job("hi", model="m"), Reader())


@pytest.mark.usefixtures("fast")
async def test_a_scrape_tells_whether_a_server_is_up_and_refuses_the_account() -> None:
    one, metrics = pages(Answer(["{}"], status=401)), Metrics("inference")

    def exposed(name: str) -> float | None:
        return metrics.registry.get_sample_value(f"ai_platform_upstream_{name}", {"server": "upstream a"})

    async with serving(one) as server, openai.opened_all((upstream(server, "a"),), 4, 32, Watch()) as backend:
        backend.expose(metrics)
        await until(lambda: exposed("up") == 1)
        assert exposed("refused") == 0
        with pytest.raises(errors.Unavailable):
            await backend.generate(job("hi", model="m"), Reader())
        await until(lambda: exposed("refused") == 1)
        one["/health"] = Answer(["{}"], status=503)
        await until(lambda: exposed("up") == 0)
        (removed,) = backend.servers
        backend.remove(removed)
        assert exposed("up") is exposed("refused") is None
        backend.add(removed)
        assert exposed("up") == 0


@pytest.mark.usefixtures("fast")
async def test_a_request_waits_if_no_other_server_can_answer() -> None:
    one, other = pages([HANGS]), pages(HELLO, slots=1)
    async with (
        serving(one) as first,
        serving(other) as second,
        openai.opened_all((upstream(first, "a"), upstream(second, "b")), 4, 32, Watch()) as backend,
    ):
        await until(lambda: backend.models()[0].slots == 5)
        waiting = asyncio.create_task(backend.generate(job("hi", model="m"), Reader()))
        await until(lambda: first.asked)
        other["/health"] = Answer(["{}"], status=503)
        await until(lambda: outs(backend) == [False, True])
        one["/health"] = HANGS
        await until(lambda: outs(backend) == [True, True])
        asked = first.times_asked("/health")
        await until(lambda: first.times_asked("/health") > asked + 2)
        assert not waiting.done()
        other["/health"] = Answer(["{}"])
        async with asyncio.timeout(30):
            await waiting


@pytest.mark.usefixtures("fast")
async def test_a_server_that_starts_after_the_worker_is_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_models, "REFRESH_SECONDS", 1000.0)
    one: dict[str, Answer | list[Answer]] = {"/v1/models": Answer([], silent=True), "/health": Answer([], silent=True)}
    async with (
        serving(one) as server,
        openai.opened_all((upstream(server, "a", dialect=Dialect.LLAMA_CPP),), 4, 32, Watch()) as backend,
    ):
        await until(lambda: "does not answer" in backend.models()[0].detail)
        one |= pages(HELLO, slots=300)
        await until(lambda: backend.models()[0].slots == 300, 10)


@pytest.mark.usefixtures("fast")
async def test_requests_of_others_count() -> None:
    one, other = pages(HELLO), pages(HELLO)
    async with (
        serving(one) as first,
        serving(other) as second,
        openai.opened_all((upstream(first, "a"), upstream(second, "b")), 4, 32, Watch()) as backend,
    ):
        await until(lambda: backend.models()[0].slots == 8)
        one["/slots"] = Answer([json.dumps([{"is_processing": True}] * 4)])
        await until(lambda: backend.models()[0].running == 4)
        assert backend.servers[0].models.load(ModelName("m")).busy == 4
        for _ in range(4):
            await backend.generate(job("hi", model="m"), Reader())
    assert [server.times_asked("/v1/chat/completions") for server in (first, second)] == [0, 4]


@pytest.mark.usefixtures("fast")
async def test_a_page_without_an_end_is_cut() -> None:
    one = pages(HELLO)
    one["/slots"] = Answer([" " * 65536], endless=True)
    async with serving(one) as server, openai.opened_all((upstream(server, "a"),), 4, 32, Watch()) as backend:
        await until(lambda: server.times_asked("/slots") == 3)
        await until(lambda: server.times_asked("/health") > 10)
        assert (server.times_asked("/slots"), outs(backend)) == (3, [False])


async def test_the_owners_number_of_slots_counts() -> None:
    async with serving(pages(HELLO, slots=300)) as server, openai.opened_all((upstream(server, "a", slots=2),), 4, 32, Watch()) as backend:
        await until(lambda: server.times_asked("/props") and backend.models()[0].state is ModelState.READY)
        assert backend.models()[0].slots == 2


SGLANG = {
    "/get_model_info": Answer(['{"model_path": "m"}']),
    "/get_server_info": Answer(['{"model_path": "m", "max_running_requests": 48, "version": "0.5.4"}']),
    "/get_load": Answer(['[{"dp_rank": 0, "num_reqs": 5, "num_waiting_reqs": 2, "num_tokens": 9}]']),
    # SGLang's /health is too slow to be polled.
    "/health": HANGS,
}
TENSORRT = {"/health": Answer([""]), "/version": Answer(['{"version": "1.2.0"}'])}


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    ("owner", "known", "more", "named", "seen"),
    [
        pytest.param("sglang", SGLANG_FIELDS, SGLANG, None, (48, 5, True), id="SGLang"),
        pytest.param("tensorrt_llm", TENSORRT_FIELDS, TENSORRT, None, (4, 0, True), id="TensorRT-LLM"),
        pytest.param(None, MLX_FIELDS, {"/health": Answer(['{"status": "ok"}'])}, Dialect.MLX, (4, 0, False), id="MLX, by its name"),
    ],
)
async def test_a_strict_server_is_recognized_and_gets_only_what_it_knows(
    owner: str | None, known: set[str], more: dict[str, Answers], named: Dialect | None, seen: tuple[int, int, bool]
) -> None:
    slots, running, is_salted = seen
    async with (
        serving(strict_pages(owner, known, more)) as server,
        openai.opened_all((upstream(server, "a", dialect=named),), 4, 32, Watch()) as backend,
    ):
        await until(lambda: [(one.state, one.slots, one.running) for one in backend.models()] == [(ModelState.READY, slots, running)])
        reader = Reader()
        end = await backend.generate(asked.job("hi", model=MODEL, top_k=0, repeat_penalty=1.1, min_p=0.1, seed=3, stop=("x",)), reader)
        assert (reader.text, end.usage.prompt_tokens, end.usage.completion_tokens) == ("Hello", 3, 2)
        assert ("cache_salt" in server.asked[-1], server.asked[-1]["repetition_penalty"]) == (is_salted, 1.1)
        assert outs(backend) == [False]
